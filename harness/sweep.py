"""The main command: `python -m harness.sweep sweeps/x.yaml` plans a sweep, runs what is missing, prints its tables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from harness.claims import LEASE
from harness.errors import UserError, printable

if TYPE_CHECKING:
    from harness.cell import Cell
    from harness.frontier import Frontier, Survey
    from harness.plan import Plan
    from harness.spec import Sweep

MANY_CELLS = 1_000_000

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="The sweep file.")] = Path("-"),
    plan: Annotated[bool, typer.Option("--plan", help="Print what would run, and start nothing.")] = False,
    only: Annotated[str, typer.Option(help="Only some cells: mask=snip,seed=0.", metavar="AXIS=VALUE,...")] = "",
    limit: Annotated[int | None, typer.Option(help="Only the first N cells.", min=1)] = None,
    store: Annotated[Path, typer.Option(help="The store's folder.")] = Path("runs"),
    data: Annotated[
        Path | None, typer.Option(help="The folder of data sets; else `data:` of the file, $HARNESS_DATA, ./data.")
    ] = None,
    via: Annotated[str | None, typer.Option(help="Where workers live, in place of the file's launch.via.")] = None,
    workers: Annotated[int | None, typer.Option(help="Workers on this machine.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads a worker.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="A torch device: cpu, cuda, mps.")] = None,
    retry: Annotated[
        str, typer.Option(help="Run failed stages again: all, or a cause (code, input, memory, died, diverged).")
    ] = "",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 300.0,
    lease: Annotated[
        float, typer.Option(help="Seconds without a heartbeat after which a worker counts as lost.", min=0.5)
    ] = LEASE,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Never ask.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of sweep files, for editors.")
    ] = False,
) -> None:
    """Run a sweep: what the store lacks is trained, what it has is kept, and the tables are printed at the end.

    Running the same command again is always right. Exit codes: 0 all done, 1 some stages failed, 2 a mistake in the
    file or on the command line, 3 the store cannot be written, 130 stopped.
    """
    try:
        if schema:
            from harness.spec import SweepFile

            print(json.dumps(SweepFile.model_json_schema(), indent=1))  # noqa: T201 - the result of the command
            return
        if file == Path("-"):
            raise UserError("name a sweep file, for example: python -m harness.sweep sweeps/quickstart.yaml")
        command = _Command(file, store, data, yes)
        command.load(only, limit)
        if plan:
            command.print_plan()
            code = 2 if command.lacks(via) else 0
        else:
            code = command.run(via, workers, threads, device, retry, checkpoint_every, lease)
    except UserError as error:
        typer.echo(printable(str(error), 20_000), err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"{error.filename or store}: {error.strerror or error}; nothing that was finished is lost", err=True)
        raise typer.Exit(3) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(code)


class _Command:
    """One call of the command: the sweep, its plan, and the store as it stands."""

    sweep: Sweep
    plan: Plan
    frontier: Frontier

    def __init__(self, file: Path, store: Path, data: Path | None, yes: bool) -> None:
        from harness.store import Store

        self.file, self.store, self.data, self.yes = file, Store(store), data, yes or not sys.stdin.isatty()

    def load(self, only: str, limit: int | None) -> None:
        """Read the file and make the plan of the wanted cells."""
        from harness.claims import Observer
        from harness.display import ask
        from harness.frontier import Frontier
        from harness.plan import make_plan
        from harness.spec import MOST_CELLS, load_sweep

        self.sweep = load_sweep(self.file)
        size = self.sweep.size()
        if size > MOST_CELLS:
            raise UserError(f"{self.file}: the grid has {size:,} points; at most {MOST_CELLS:,} are allowed")
        if size > MANY_CELLS and not self.yes and not ask(f"The grid has {size:,} points. Go on?"):
            raise UserError(f"{self.file}: not started; the grid has {size:,} points")
        data = self.data or Path(
            os.environ.get("HARNESS_DATA")
            or (self.file.parent / (self.sweep.file.data or "") if self.sweep.file.data else "data")
        )
        plan = make_plan(self.sweep, self.store, data)
        self.chosen = bool(only or limit)
        cells = plan.cells
        if only:
            wanted = _filter(only, self.sweep, plan)
            cells = [pair for pair in cells if wanted(pair[0])]
        if self.chosen:
            plan = plan.keep(cells[:limit])
        if not plan.cells:
            raise UserError(f"{self.file}: no cell is left after exclude")
        self.plan = plan
        self.frontier = Frontier(plan, self.store, Observer())

    def lacks(self, via: str | None) -> list[str]:
        """Return what keeps the sweep from running, printed too."""
        from harness.plan import check_parts

        found = [*self.plan.missing, *([] if via == "local" else map(str, check_parts(self.sweep)))]
        if via not in (None, "local"):
            found.append(f"--via {via}: not part of this version; use --via local")
        for sentence in found:
            typer.echo(printable(sentence), err=True)
        return found

    def print_plan(self) -> None:
        """Print cells, stages and sharing."""
        survey = self.frontier.survey()
        plan, counts = self.plan, survey.count()
        kinds = Counter(stage.kind for stage in plan.stages.values())
        needed = Counter(plan.stages[key].kind for key in survey.todo)
        united = f" ({plan.united} duplicates united)" if plan.united else ""
        lines = [f"{plan.name}: {len(plan.cells)} cells{united}, {len(plan.stages)} stages"]
        lines += [
            f"  {kind:8s} {kinds[kind]:7,}   to run {needed[kind]:7,}"
            for kind in ("data", "mask", "rescale", "train")
            if kinds[kind]
        ]
        states = ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items()) if name != "done")
        lines.append(f"  to do: {states or 'nothing, all is there'}")
        lines.append(
            f"  trainings: {kinds['train']:,} with shared tickets; "
            f"{plan.unshared_trainings():,} if every cell made its own"
        )
        for axis in ("dataset", "arch", "mask", "sparsity", "recipe", "seed"):
            values = Counter(str(cell.axis(axis)) for cell, _ in plan.cells)
            shown = ", ".join(f"{label} ({count})" for label, count in list(values.items())[:12])
            lines.append(f"  {axis + ':':10s} {shown}{' ...' if len(values) > 12 else ''}")
        print(printable("\n".join(lines), 20_000))  # noqa: T201 - the result of the command

    def run(
        self,
        via: str | None,
        workers: int | None,
        threads: int | None,
        device: str | None,
        retry: str,
        checkpoint_every: float,
        lease: float,
    ) -> int:
        """Run what is missing; return the exit code."""
        from harness.claims import Observer
        from harness.frontier import Frontier
        from harness.launch.local import this_machine
        from harness.worker import release

        if self.lacks(via):
            return 2
        _refuse_login_node(via or self.sweep.file.launch.model_fields_set & {"via"})
        if self.sweep.file.wandb:
            typer.echo(
                "wandb: nothing is mirrored to Weights & Biases by this version; results are in the store", err=True
            )
        if self.plan.united:
            typer.echo(f"{self.plan.united} duplicate cells united", err=True)
        self.frontier = Frontier(self.plan, self.store, Observer(lease))
        saved = self.plan.save(self.store, self.sweep, whole=not self.chosen)
        if retry:
            typer.echo(f"{release(self.frontier, retry)} failed stages released for another try", err=True)
        launch = self.sweep.file.launch
        machine = this_machine(workers or launch.workers, threads or launch.threads, device or launch.device)
        argv = [
            self.plan.name,
            "--plan",
            saved.name,
            "--store",
            str(self.store.root),
            "--device",
            machine.device,
            "--threads",
            str(machine.threads),
        ]
        argv += ["--checkpoint-every", str(checkpoint_every), "--lease", str(lease)]
        interrupted = self._work(argv, machine)
        return self.report(interrupted)

    def _work(self, argv: list[str], machine: object) -> bool:
        """Start workers where something is to be done; return whether they were stopped."""
        from harness.display import Display
        from harness.launch.local import Machine, Workers

        survey = self.frontier.survey()
        if not any(s.claimable or s.name == "running" for s in survey.todo.values()):
            return False
        assert isinstance(machine, Machine)  # noqa: S101
        machine = replace(machine, workers=min(machine.workers, len(survey.todo)))
        display = Display(len(self.plan.stages) - len(survey.todo), len(self.plan.stages), machine.workers)
        crew = Workers(argv, machine, display.hear)

        def stop(number: int, frame: FrameType | None) -> None:
            crew.stop()
            display.say("stopping: saving where each training stands" if crew.stopping == 1 else "killing the workers")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            with display.shown():
                crew.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for sentence in crew.trouble:
            display.say(sentence)
        return crew.stopping > 0

    def report(self, interrupted: bool) -> int:
        """Write and print the tables and the failures; return the exit code."""
        from rich.console import Console

        from harness.report.frame import failures, read_frame
        from harness.report.tables import build
        from harness.report.writers import on_terminal, write_report

        self.frontier.forget()
        survey = self.frontier.survey()
        frame = read_frame(self.plan, self.frontier, survey)
        grids = [grid for table in self.sweep.file.tables for grid in build(table, frame)]
        folder = self.store.sweep(self.plan.name) / ("report" if not self.chosen else "report.part")
        write_report(folder, self.plan.name, frame, grids)
        out = Console(highlight=False)
        for grid in grids:
            out.print(on_terminal(grid))
        failed = failures(self.plan, self.frontier, survey)
        for label, cause, held in failed[:20]:
            typer.echo(printable(f"failed: {label}: {cause}; {held} cells wait for it"), err=True)
        if failed:
            typer.echo(f"{len(failed)} stages failed; run again with --retry all to try them once more", err=True)
        left = len(survey.todo)
        typer.echo(
            f"{_cells_done(self.plan, survey)} of {len(self.plan.cells)} cells done; tables in {_short(folder)}",
            err=True,
        )
        if interrupted:
            typer.echo("stopped; the same command goes on from here", err=True)
            return 130
        return 1 if left else 0


def _cells_done(plan: Plan, survey: Survey) -> int:
    return sum(key in survey.results for _, key in plan.cells)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _refuse_login_node(named: object) -> None:
    if not named and shutil.which("sbatch") and "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "this looks like a cluster's login node (sbatch is there, no allocation); "
            "to train here all the same: --via local"
        )


def _filter(only: str, sweep: Sweep, plan: Plan) -> Callable[[Cell], bool]:
    """Compile --only: cells must match every axis given; a value given twice for an axis widens it."""
    from harness.axes import read_sparsity
    from harness.cell import AXES
    from tost.catalog import nearest

    wanted: dict[str, set[str]] = {}
    extra = {name for cell, _ in plan.cells for name, _ in cell.extra}
    for item in only.split(","):
        axis, equals, value = (part.strip() for part in item.partition("="))
        known = [*AXES[:-1], *sorted(extra)]
        if not equals or axis not in known:
            raise UserError(
                f"--only {item.strip()!r}: write AXIS=VALUE with one of {', '.join(known)}{nearest(axis, known)}"
            )
        if axis == "sparsity":
            try:
                value = read_sparsity(value).label
            except ValueError as error:
                raise UserError(f"--only: {error}") from None
        there = {str(cell.axis(axis)) for cell, _ in plan.cells} | {
            c.mask.name for c, _ in plan.cells if axis == "mask"
        }
        if value not in there:
            shown = ", ".join(sorted(there)[:20])
            raise UserError(f"--only {axis}={value}: no cell has it; there are {shown}{nearest(value, there)}")
        wanted.setdefault(axis, set()).add(value)

    def matches(cell: Cell) -> bool:
        return all(
            {str(cell.axis(axis)), cell.mask.name if axis == "mask" else ""} & values for axis, values in wanted.items()
        )

    found = [cell for cell, _ in plan.cells if matches(cell)]
    if not found:
        raise UserError(f"--only {only}: no cell has all of these together")
    return matches


if __name__ == "__main__":
    app()
