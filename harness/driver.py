"""One call of the sweep command: read, plan, start workers, follow them, write the tables."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import typer

from harness.cell import Cell
from harness.check import load_sweep
from harness.claims import Observer
from harness.clean import find_waste, orphans, remove
from harness.display import Display, ask
from harness.errors import UserError, printable
from harness.frontier import Frontier, Survey
from harness.launch.local import Machine, Workers, this_machine
from harness.miniature import own_store
from harness.only import cell_filter
from harness.outlook import Outlook, by_axis, data_stages, describe
from harness.plan import Plan
from harness.planfile import save_plan
from harness.planner import data_folder, make_plan, unlaunchable
from harness.presence import present
from harness.report.frame import failures, read_frame
from harness.report.tables import build
from harness.report.writers import on_terminal, write_report
from harness.shift import release
from harness.spec import MOST_CELLS, Sweep
from harness.store import Store
from harness.words import count, size, span
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
    scratch: str = ""
    until: str = ""
    discard_weights: bool = False

    @property
    def argv(self) -> list[str]:
        """Return what every worker is told."""
        argv = ["--checkpoint-every", str(self.checkpoint_every), "--lease", str(self.lease)]
        argv += ["--scratch", self.scratch] if self.scratch else []
        argv += ["--until", self.until] if self.until else []
        return [*argv, "--discard-weights"] if self.discard_weights else argv


class Driver:
    """One call of the command: the sweep, its plan, and the store as it stands."""

    sweep: Sweep
    whole: Plan
    """The plan of the whole file."""
    plan: Plan
    """The plan of the cells that were asked for."""
    frontier: Frontier

    def __init__(self, file: Path, store: Path, data: Path | None, yes: bool, miniature: bool = False) -> None:
        for path in (store, *store.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"--store {store}: {path} is a file; name a folder")
        self.file, self.data, self.yes, self.miniature = file, data, yes, miniature
        self.store = Store(own_store(store) if miniature else store)

    def load(self, only: str, limit: int | None) -> None:
        """Read the file and make the plan of the wanted cells."""
        self.sweep = load_sweep(self.file)
        points = self.sweep.size()
        if points > MOST_CELLS:
            raise UserError(f"{self.file}: the grid has {points:,} points; at most {MOST_CELLS:,} are allowed")
        if points > MANY_CELLS and not self.yes and not (sys.stdin.isatty() and ask(f"{points:,} grid points. Go on?")):
            raise UserError(f"{self.file}: not started; the grid has {points:,} points. If that is meant: --yes")
        self.whole = make_plan(self.sweep, self.store, data_folder(self.sweep, self.data), self.miniature)
        cells = self.whole.cells
        if only:
            wanted = cell_filter(only, self.whole)
            cells = [pair for pair in cells if wanted(pair[0])]
        self.choose(cells[:limit] if only or limit else None)
        if not self.plan.cells:
            raise UserError(f"{self.file}: no cell is left after exclude")

    def choose(self, cells: list[tuple[Cell, str]] | None) -> None:
        """Take some of the cells, or all of them."""
        self.chosen = cells is not None
        self.plan = self.whole if cells is None else self.whole.keep(cells)
        self.frontier = Frontier(self.plan, self.store, Observer())

    def lacks(self, via: str | None) -> list[str]:
        """Return what keeps the sweep from running, printed too."""
        local = via == "local" or self.miniature
        found = [*self.plan.missing(), *([] if local else map(str, unlaunchable(self.sweep)))]
        if via not in (None, "local"):
            found.append(f"--via {via}: not part of this version; use --via local")
        for sentence in found:
            typer.echo(printable(sentence), err=True)
        return found

    def machine(self, options: Options) -> Machine:
        """Return how this machine is used: as the command line says, then as the file does."""
        launch = self.sweep.file.launch
        return this_machine(
            options.workers or launch.workers, options.threads or launch.threads, options.device or launch.device
        )

    def print_plan(self, options: Options, pilot: bool, budget: str) -> None:
        """Print cells, stages and sharing, and what the rest will cost."""
        if pilot and not self.plan.missing():
            self._pilot(options)
        survey = self.frontier.survey()
        outlook = Outlook(self.frontier, survey, self.machine(options))
        lines = [*describe(self.plan, survey), *outlook.lines()]
        if budget:
            fitting = outlook.within(budget)
            lines.append(f"  within {budget}: {count(len(fitting), 'cell')} of {len(self.plan.cells):,}")
            lines += [f"    {line}" for line in by_axis([cell for cell, _ in fitting])] if fitting else []
        if not self.chosen and (left := orphans(self.store, self.plan)):
            shown = "; ".join(left[:3]) + (" ..." if len(left) > 3 else "")
            lines.append(f"  kept though no longer in the file: {count(len(left), 'finished cell')}: {shown}")
        print(printable("\n".join(lines), 20_000))  # noqa: T201 - the result of the command

    def _pilot(self, options: Options) -> None:
        """Make the data sets, and try out some steps of everything that no record tells of."""
        asked, self.plan = self.plan, data_stages(self.plan)
        self.frontier = Frontier(self.plan, self.store, Observer(options.lease))
        if (survey := self.frontier.survey()).todo:
            saved = save_plan(self.plan, self.store, self.sweep, whole=False)
            self._work(self._argv(saved, options), self.machine(options), survey)
        self.plan, self.frontier = asked, Frontier(asked, self.store, Observer(options.lease))
        outlook = Outlook(self.frontier, self.frontier.survey(), self.machine(options))
        outlook.pilot(lambda sentence: typer.echo(printable(sentence), err=True))

    def gc(self) -> int:
        """Show what nothing refers to, and remove it where that is agreed to; return the exit code."""
        waste = find_waste(self.store, self.whole, Observer())
        for folder in waste.stages[:20]:
            typer.echo(f"{folder.path.relative_to(self.store.root)}")
        stages, files = count(len(waste.stages), "stage"), count(len(waste.files), "left-over file")
        said = f"{stages} that no sweep's newest plan refers to, {files}"
        typer.echo(f"{said}: {size(waste.bytes)}; {waste.running} more are being worked on and stay")
        if not (waste.stages or waste.files):
            return 0
        if not self.yes:
            typer.echo("nothing was removed; --gc --yes removes them")
            return 0
        folders = self.store.root.glob("sweeps/*")
        busy = [worker for folder in folders for worker in present(self.store, folder.name)]
        if busy:
            raise UserError(
                f"--gc: {count(len(busy), 'worker')} at work, the first on {busy[0].owner.host}; let them finish, "
                f"or remove {busy[0].path} if it is dead"
            )
        remove(self.store, waste)
        typer.echo("removed")
        return 0

    def run(self, options: Options, budget: str = "") -> int:
        """Run what is missing; return the exit code."""
        if options.retry and options.retry not in CAUSES:
            raise UserError(f"--retry {options.retry}: choose from {', '.join(CAUSES)}{nearest(options.retry, CAUSES)}")
        if self.lacks(options.via):
            return 2
        if not self.miniature:
            _refuse_login_node(options.via or self.sweep.file.launch.model_fields_set & {"via"})
        if self.sweep.file.wandb and not self.miniature:
            typer.echo(
                "wandb: nothing is mirrored to Weights & Biases by this version; results are in the store", err=True
            )
        if self.plan.united:
            typer.echo(f"{self.plan.united} duplicate cells united", err=True)
        if budget:
            self.choose(Outlook(self.frontier, self.frontier.survey(), self.machine(options)).within(budget))
            if not self.plan.cells:
                raise UserError(
                    f"--budget {budget}: no cell fits, at the upper end of its estimate; "
                    "--plan --pilot tries out what nothing is known of"
                )
            typer.echo(f"within {budget}: {count(len(self.plan.cells), 'cell')}", err=True)
        self.frontier = Frontier(self.plan, self.store, Observer(options.lease))
        if options.retry:
            released = release(self.frontier, options.retry)
            typer.echo(f"{count(released, 'failed stage')} released for another try", err=True)
        survey = self.frontier.survey()
        saved = save_plan(self.plan, self.store, self.sweep, whole=not self.chosen)
        if not survey.todo:
            return self.report(interrupted=False)
        machine = self.machine(options)
        outlook, began = Outlook(self.frontier, survey, machine), time.monotonic()
        outlook.keep(saved.parent)
        argv = self._argv(saved, options)
        stopped = self._work(argv, machine, survey) or self._again_with_more_memory(argv, machine)
        self.frontier.forget()
        if said := outlook.outcome(saved.parent, time.monotonic() - began):
            typer.echo(said, err=True)
        return self.report(stopped)

    def _argv(self, saved: Path, options: Options) -> list[str]:
        return [self.plan.name, "--plan", saved.name, "--store", str(self.store.root), *options.argv]

    def _again_with_more_memory(self, argv: list[str], machine: Machine) -> bool:
        """Run what ran out of memory once more, with the machine to itself; return whether that was stopped."""
        alone = this_machine(1, machine.threads, machine.device)
        frontier = Frontier(self.plan, self.store, self.frontier.observer)
        frontier.memory = {"ram": alone.memory, "gpu": alone.gpu_memory}
        short = [s for s in frontier.survey().todo.values() if s.cause == "oom" and s.claimable]
        if not short:
            return False
        typer.echo(f"{count(len(short), 'stage')} ran out of memory: once more, one at a time", err=True)
        return self._work(argv, alone, frontier.survey())

    def _work(self, argv: list[str], machine: Machine, survey: Survey) -> bool:
        """Start workers where something is to be done; return whether they were stopped."""
        if not any(s.claimable or s.name == "running" for s in survey.todo.values()):
            return False
        machine = replace(machine, workers=min(machine.workers, len(survey.todo)))
        display = Display(len(self.plan.stages) - len(survey.todo), len(self.plan.stages), machine.workers)
        crew = Workers([*argv, *machine.argv], machine, display.hear, pre_empt=self.miniature)
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
        display.say(f"{count(display.done - before_run, 'stage')} run in {span(time.monotonic() - began)}")
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
            typer.echo(printable(f"{sentence}; {count(held, 'cell')} held back"), err=True)
            if log:
                typer.echo(f"  log: {_short(Path(log))}", err=True)
        if failed:
            typer.echo(f"{count(len(failed), 'stage')} failed; --retry all runs them once more", err=True)
        left = len(survey.todo)
        typer.echo(f"{done} of {count(len(self.plan.cells), 'cell')} done; {where}", err=True)
        if interrupted:
            typer.echo("stopped; the same command goes on from here", err=True)
            return 130
        return 1 if left else 0


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _refuse_login_node(named: object) -> None:
    if not named and shutil.which("sbatch") and "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "this looks like a cluster's login node (sbatch is there, no allocation); "
            "to train here all the same: --via local"
        )
