"""One call of the sweep command: read, plan, start workers, follow them, write the tables."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import typer

from harness.check import load_sweep
from harness.claims import Observer
from harness.display import Display, ask, span
from harness.errors import UserError, printable
from harness.frontier import Frontier, Survey
from harness.launch.local import Machine, Workers, this_machine
from harness.only import cell_filter
from harness.plan import Plan
from harness.planfile import save_plan
from harness.planner import make_plan, unlaunchable
from harness.report.frame import failures, read_frame
from harness.report.tables import build
from harness.report.writers import on_terminal, write_report
from harness.shift import release
from harness.spec import MOST_CELLS, Sweep
from harness.store import KINDS, Store
from tost.catalog import nearest

MANY_CELLS = 1_000_000
CAUSES = ("all", "code", "input", "oom", "device", "died", "diverged")


@dataclass(frozen=True)
class Options:
    """How one call wants its stages run; what is None is the sweep file's to say."""

    via: str | None
    workers: int | None
    threads: int | None
    device: str | None
    retry: str
    checkpoint_every: float
    lease: float

    @property
    def argv(self) -> list[str]:
        """Return what every worker is told."""
        return ["--checkpoint-every", str(self.checkpoint_every), "--lease", str(self.lease)]


class Driver:
    """One call of the command: the sweep, its plan, and the store as it stands."""

    sweep: Sweep
    plan: Plan
    frontier: Frontier

    def __init__(self, file: Path, store: Path, data: Path | None, yes: bool) -> None:
        for path in (store, *store.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"--store {store}: {path} is a file; name a folder")
        self.file, self.store, self.data, self.yes = file, Store(store), data, yes

    def load(self, only: str, limit: int | None) -> None:
        """Read the file and make the plan of the wanted cells."""
        self.sweep = load_sweep(self.file)
        size = self.sweep.size()
        if size > MOST_CELLS:
            raise UserError(f"{self.file}: the grid has {size:,} points; at most {MOST_CELLS:,} are allowed")
        if size > MANY_CELLS and not self.yes and not (sys.stdin.isatty() and ask(f"{size:,} grid points. Go on?")):
            raise UserError(f"{self.file}: not started; the grid has {size:,} points. If that is meant: --yes")
        plan = make_plan(self.sweep, self.store, self._data_folder())
        self.chosen = bool(only or limit)
        cells = plan.cells
        if only:
            wanted = cell_filter(only, plan)
            cells = [pair for pair in cells if wanted(pair[0])]
        if self.chosen:
            plan = plan.keep(cells[:limit])
        if not plan.cells:
            raise UserError(f"{self.file}: no cell is left after exclude")
        self.plan = plan
        self.frontier = Frontier(plan, self.store, Observer())

    def _data_folder(self) -> Path:
        """Return where data sets lie: --data, `data:` of the file (relative to it), $HARNESS_DATA, or ./data."""
        if self.data is None and self.sweep.file.data:
            return self.file.parent / self.sweep.file.data
        return self.data or Path(os.environ.get("HARNESS_DATA", "data"))

    def lacks(self, via: str | None) -> list[str]:
        """Return what keeps the sweep from running, printed too."""
        found = [*self.plan.missing(), *([] if via == "local" else map(str, unlaunchable(self.sweep)))]
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
        lines += [f"  {kind:8s} {kinds[kind]:7,}   to run {needed[kind]:7,}" for kind in KINDS if kinds[kind]]
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

    def run(self, options: Options) -> int:
        """Run what is missing; return the exit code."""
        if options.retry and options.retry not in CAUSES:
            raise UserError(f"--retry {options.retry}: choose from {', '.join(CAUSES)}{nearest(options.retry, CAUSES)}")
        if self.lacks(options.via):
            return 2
        _refuse_login_node(options.via or self.sweep.file.launch.model_fields_set & {"via"})
        if self.sweep.file.wandb:
            typer.echo(
                "wandb: nothing is mirrored to Weights & Biases by this version; results are in the store", err=True
            )
        if self.plan.united:
            typer.echo(f"{self.plan.united} duplicate cells united", err=True)
        self.frontier = Frontier(self.plan, self.store, Observer(options.lease))
        if options.retry:
            released = release(self.frontier, options.retry)
            typer.echo(f"{_count(released, 'failed stage')} released for another try", err=True)
        launch = self.sweep.file.launch
        survey = self.frontier.survey()
        if not survey.todo:
            return self.report(interrupted=False)
        saved = save_plan(self.plan, self.store, self.sweep, whole=not self.chosen)
        machine = this_machine(
            options.workers or launch.workers, options.threads or launch.threads, options.device or launch.device
        )
        argv = [self.plan.name, "--plan", saved.name, "--store", str(self.store.root), *options.argv, *machine.argv]
        return self.report(self._work(argv, machine, survey))

    def _work(self, argv: list[str], machine: Machine, survey: Survey) -> bool:
        """Start workers where something is to be done; return whether they were stopped."""
        if not any(s.claimable or s.name == "running" for s in survey.todo.values()):
            return False
        machine = replace(machine, workers=min(machine.workers, len(survey.todo)))
        display = Display(len(self.plan.stages) - len(survey.todo), len(self.plan.stages), machine.workers)
        crew = Workers(argv, machine, display.hear)
        began, before_run = time.monotonic(), display.done

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
        display.say(f"{_count(display.done - before_run, 'stage')} run in {span(time.monotonic() - began)}")
        return crew.stopping > 0

    def report(self, interrupted: bool) -> int:
        """Write and print the tables and the failures; return the exit code."""
        from rich.console import Console

        self.frontier.forget()
        survey = self.frontier.survey()
        frame = read_frame(self.plan, self.frontier, survey)
        grids = [grid for table in self.sweep.file.tables for grid in build(table, frame)]
        folder = self.store.sweep(self.plan.name) / ("report" if not self.chosen else "report.part")
        done = sum(key in survey.results for _, key in self.plan.cells)
        out = Console(highlight=False)
        for grid in grids if done or not interrupted else ():
            out.print(*on_terminal(grid, out.width), sep="\n")
        where = f"tables in {_short(folder)}"
        try:
            write_report(folder, self.plan.name, frame, grids)
        except OSError as error:
            where = f"the report could not be written: {error.strerror}"
        failed = failures(self.plan, self.frontier, survey)
        for sentence, held, log in failed[:20]:
            typer.echo(printable(f"{sentence}; {_count(held, 'cell')} held back"), err=True)
            if log:
                typer.echo(f"  log: {_short(Path(log))}", err=True)
        if failed:
            typer.echo(f"{_count(len(failed), 'stage')} failed; --retry all runs them once more", err=True)
        left = len(survey.todo)
        typer.echo(f"{done} of {_count(len(self.plan.cells), 'cell')} done; {where}", err=True)
        if interrupted:
            typer.echo("stopped; the same command goes on from here", err=True)
            return 130
        return 1 if left else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _refuse_login_node(named: object) -> None:
    if not named and shutil.which("sbatch") and "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "this looks like a cluster's login node (sbatch is there, no allocation); "
            "to train here all the same: --via local"
        )
