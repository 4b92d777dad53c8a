"""One call of the sweep command: read, plan, start workers, follow them, write the tables."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from harness.allocation import refuse_salloc_shell
from harness.asked import beside
from harness.cancel import cancel
from harness.catalog import DEVICES, HERE
from harness.cell import Cell
from harness.check import load_sweep
from harness.chosen import choose
from harness.claims import Observer
from harness.closing import close
from harness.declaring import check_claims
from harness.detached import Detached
from harness.display import ask
from harness.dropped import ask_about_dropped
from harness.errors import UserError, printable
from harness.failure_limit import reached, set_limit
from harness.frontier import Frontier, Survey
from harness.launch import Launcher, until
from harness.launch.kept import for_cancelling
from harness.launch.local import Machine, this_machine
from harness.launch.slurm import Slurm
from harness.launching import Crew, launcher_for, refuse_login_node, run_elsewhere, run_in_this_process
from harness.miniature import TOGETHER, own_store
from harness.options import CAUSES, Options, refuse_graphs
from harness.outlook import Outlook, data_stages
from harness.packing import pack
from harness.plan import Plan
from harness.planfile import as_saved, keep_methods, labelled, read_plan, save_plan
from harness.planner import data_folder, make_plan
from harness.probe import Import, imports_of
from harness.registry import register
from harness.retry import release
from harness.rounds import CANCELLED
from harness.search import refuse_for_search
from harness.spec import MOST_CELLS, Sweep
from harness.store import Store
from harness.supervisor import Setup
from harness.terminal import command, note
from harness.tracking.background import mirrored, say_how_to_mirror
from harness.words import count, given_span
from tost.catalog import nearest

if TYPE_CHECKING:
    from harness.ray_run import Share

MANY_CELLS = 1_000_000


class Driver:
    """One call of the command: the sweep, its plan, and the store as it stands."""

    sweep: Sweep
    whole: Plan
    """The plan of the whole file."""
    plan: Plan
    """The plan of the cells that were asked for."""
    frontier: Frontier
    unwritable: bool = False
    """Whether workers left since the store cannot be written."""

    def __init__(
        self, file: Path, store: Path, data: Path | None, options: Options, yes: bool = False, miniature: bool = False
    ) -> None:
        for path in (store, *store.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"--store {store}: {path} is a file; name a folder")
        self.file, self.data, self.options, self.yes, self.miniature = file, data, options, yes, miniature
        self.given_via = options.via
        if Store(store).for_debugging:
            raise UserError(
                f"--store {store}: is harness debug's, which may be removed at any time; name another folder"
            )
        self.store, self.given_store = Store(own_store(store) if miniature else store), store

    def load(self, only: str = "", limit: int | None = None) -> None:
        """Read the file and make the plan of the wanted cells."""
        self.sweep = load_sweep(self.file)
        if not self.miniature and (said := beside(self.file, self.sweep.name, self.given_store)):
            note(said)
        self.options = self.options.over(self.sweep.file.launch, self.miniature)
        if (device := self.options.device) and device.partition(":")[0] not in DEVICES:
            known = nearest(device, DEVICES)
            raise UserError(f"--device {device}: choose from {', '.join(DEVICES)}, or one GPU as cuda:0{known}")
        if device:
            refuse_graphs(self.options.execution, device)
        points = self.sweep.size()
        if points > MOST_CELLS:
            raise UserError(
                f"{self.file}: the grid has {points:,} points; at most {MOST_CELLS:,} are allowed; split it"
            )
        if points > MANY_CELLS and not self.yes and not (sys.stdin.isatty() and ask(f"{points:,} grid points. Go on?")):
            raise UserError(f"{self.file}: not started; the grid has {points:,} points. If that is meant: --yes")
        together = 0 if self.options.via in HERE else TOGETHER
        self.whole = make_plan(self.sweep, self.store, data_folder(self.sweep, self.data), self.miniature, together)
        if self.miniature:  # its numbers mean nothing, smaller knobs have other labels, and compiling takes minutes
            launch = self.sweep.file.launch.model_copy(update={"execution": self.options.execution})
            file = self.sweep.file.model_copy(update={"wandb": None, "launch": launch})
            self.sweep = replace(self.sweep, claims=(), file=file)
        check_claims(self.sweep, self.whole)
        cells = self.whole.cells
        if only:
            axes, labels = labelled(self.whole)
            places = [dict(zip(axes, names, strict=True)) for names in labels]
            cells = list(compress(cells, choose(only, "--only", places, families=True)))
        self.choose(cells[:limit] if only or limit else None)
        if not self.plan.cells:
            raise UserError(f"{self.file}: no cell is left after exclude; narrow its conditions")
        if self.sweep.search:
            refuse_for_search(self.file, self.options.via, self.chosen, self.miniature, self.options.detach)

    def choose(self, cells: list[tuple[Cell, str]] | None) -> None:
        """Take some of the cells, or all of them."""
        self.chosen = cells is not None
        self.plan = self.whole if cells is None else self.whole.keep(cells)
        self.frontier = Frontier(self.plan, self.store, Observer())

    @property
    def observer(self) -> Observer:
        """Return what tells lost workers from others."""
        return Observer(self.options.lease)

    def lacks(self) -> list[str]:
        """Return what keeps the sweep from running, printed too."""
        for sentence in self.plan.missing():
            typer.echo(printable(sentence), err=True)
        return self.plan.missing()

    @cached_property
    def imports(self) -> list[Import]:
        """Return the files of masks that stages to be run use, each with whether it can be."""
        return [] if self.miniature else imports_of(self.plan, self.store.root / "cache", self.frontier.survey().todo)

    def unfit(self) -> list[str]:
        """Return which files of masks cannot be used, printed too."""
        stages: dict[str, list[str]] = {}
        for one in self.imports:
            stages.setdefault(one.said, []).append(one.label)
        said = [(labels, why) for why, labels in stages.items() if why]
        for labels, why in said:
            note(f"{labels[0]}{f' and {len(labels) - 1} more' if labels[1:] else ''}: {why}")
        return [why for _, why in said]

    def machine(self) -> Machine:
        """Return how this machine is used, by as many workers as were asked for, or as it has room for."""
        return this_machine(self.options.most, self.options.threads, self.options.device)

    def workers_machine(self) -> Machine:
        """Return what workers will run on, this machine or a profile's jobs: forecasts are for that."""
        return self.machine() if self.options.via in HERE else self.slurm().machine

    def _most(self) -> dict[str, float]:
        """Return the most memory and time that any worker is given; nothing where a stage gets no second try."""
        if self.options.stop_after is None or self.options.via in ("ray", "debug"):
            return {}
        time = until(self.options.argv)
        if self.options.via != "local":
            most = self.slurm().profile.most
            return {**most, "time": min(time, most["time"])}
        here = self.machine() if self.options.detach else this_machine(1, self.options.threads, self.options.device)
        return {"ram": here.memory, "gpu": here.gpu_memory, "time": time}

    def packed(self, machine: Machine) -> Machine:
        """Return how a machine is used; with `auto` by as many workers as train fastest."""
        if self.options.workers != "auto" or self.miniature or not self.frontier.survey().todo or not self.make_data():
            return machine
        return pack(machine, self.frontier, self.options, _say)

    def make_data(self) -> bool:
        """Make the data sets here, in the store, where workers anywhere read them; return whether all are made."""
        asked, self.plan = self.plan, data_stages(self.plan)
        self.frontier = Frontier(self.plan, self.store, self.observer)
        if (survey := self.frontier.survey()).todo:
            saved = save_plan(self.plan, self.store, self.sweep, whole=False)
            crew = Crew(self.frontier, self._argv(saved), self.machine())
            if crew.run(survey):
                raise KeyboardInterrupt
            if crew.unwritable:
                raise OSError("not all data sets could be made, since it takes no more")
        self.frontier.forget()
        made = not self.frontier.survey().todo
        self.plan, self.frontier = asked, Frontier(asked, self.store, self.observer)
        return made

    def pilot(self) -> None:
        """Make the data sets, and try out some steps of everything that no record tells of.

        Raises UserError where this machine cannot stand for the one that workers will run on.
        """
        machine = self.workers_machine()
        if machine.device == "cuda" and not this_machine(None, None, None).gpus:
            raise UserError(
                f"--pilot times steps on this machine, which has no GPU, and the workers of {self.options.via} have; "
                "call it on a node that has one, or leave --pilot out"
            )
        self._refuse_login_host()
        self.make_data()
        keep_methods(self.plan, self.store)
        outlook = Outlook(self.frontier, self.frontier.survey(), machine)
        outlook.pilot(_say)

    def _refuse_login_host(self) -> None:
        """Raise UserError on a host that is there to submit from, unless `--via local` says that it is meant."""
        if not (self.options.told and self.options.via == "local"):
            refuse_salloc_shell("--via local; to submit: --via and a profile of slurm/")
        if not self.options.told:
            refuse_login_node()

    def run(self, budget: str = "") -> int:
        """Run what is missing; return the exit code."""
        options = self.options
        if options.retry and options.retry not in CAUSES:
            raise UserError(f"--retry {options.retry}: choose from {', '.join(CAUSES)}{nearest(options.retry, CAUSES)}")
        if options.via not in HERE:
            self.slurm()  # a profile that is none is said even where nothing is left to do
        if options.execution == "graphs" and options.via != "ray":
            refuse_graphs(options.execution, self.workers_machine().device)
        if self.lacks() or self.unfit():
            return 2
        away = options.via not in HERE or (options.via == "ray" and self.sweep.file.launch.address)
        if not (away or self.miniature):
            self._refuse_login_host()
        if self.sweep.search:
            return self._search()
        if self.plan.united:
            typer.echo(f"{self.plan.united} duplicate cells united", err=True)
        if budget:
            self._keep_to(budget)
        self.frontier = Frontier(self.plan, self.store, self.observer)
        if options.retry:
            released = release(self.frontier, options.retry)
            typer.echo(f"{count(released, 'failed stage')} released for another try", err=True)
        self.frontier.has = {"time": given_span("--until", options.until) if options.until else math.inf}
        survey = self.frontier.survey()
        if not self.chosen:
            ask_about_dropped(self.plan, self.store, self.file, self.yes)
        saved = save_plan(self.plan, self.store, self.sweep, whole=not self.chosen)
        for claim in register(as_saved(self.whole, self.sweep), self.store) if self.sweep.claims else ():
            typer.echo(f"claim {claim.claim.name} registered: {claim.hash}", err=True)
        set_limit(self.whole, self.store, self.observer, options.stop_after, self._most())
        with mirrored(self.sweep.file.wandb, self.store, self.plan.name, not options.detach):
            return self._run_missing(survey, saved)

    def _run_missing(self, survey: Survey, saved: Path) -> int:
        """Run what a saved plan lacks, where the options say; return the exit code."""
        via, detach = self.options.via, self.options.detach
        if not survey.todo:
            return self._close(interrupted=False)
        if via not in HERE or (via == "local" and detach):
            return self._elsewhere(saved)
        if detach:
            raise UserError(f"--detach: the workers of {via} live and die with this command; use local or a profile")
        return self._close(self._run_on(self.packed(self.machine()), survey, saved))

    def _run_on(self, machine: Machine, survey: Survey, saved: Path) -> bool:
        """Run what a saved plan lacks with workers that die with this command; return whether it was stopped."""
        via = self.options.via
        outlook, began = Outlook(self.frontier, survey, machine), time.monotonic()
        outlook.keep(saved.parent)
        if via == "ray":
            stopped = self._with_ray(saved, machine)
        elif via == "debug":
            setup = self.options.setup(self.options.device or machine.device, machine.threads)
            self.unwritable = run_in_this_process(read_plan(saved), self.store, setup) is not None
            stopped = False  # a stop is raised, not told
        else:
            crew = Crew(self.frontier, self._argv(saved), machine, pre_empt=self.miniature)
            stopped = crew.run(survey)
            if not stopped and reached(self.store, self.plan.name) is None:
                stopped = crew.again_with_more_memory()
            self.unwritable = crew.unwritable
        self.frontier.forget()
        if said := outlook.outcome(saved.parent, time.monotonic() - began):
            typer.echo(said, err=True)
        return bool(stopped)

    def _close(self, interrupted: bool, launcher: Slurm | None = None) -> int:
        code = close(as_saved(self.plan, self.sweep), self.store, self.chosen, interrupted, launcher)
        return 3 if code == 1 and self.unwritable else code

    def _keep_to(self, budget: str) -> None:
        """Leave out the cells that a budget does not cover. Raises UserError where that is all of them."""
        self.choose(Outlook(self.frontier, self.frontier.survey(), self.workers_machine()).within(budget))
        if not self.plan.cells:
            raise UserError(
                f"--budget {budget}: no cell fits, at the upper end of its estimate; "
                "--plan --pilot tries out what nothing is known of"
            )
        typer.echo(f"within {budget}: {count(len(self.plan.cells), 'cell')}", err=True)

    def _with_ray(self, saved: Path, machine: Machine) -> bool:
        """Run what is missing as trials of Ray Tune; return whether that was stopped."""
        from harness.ray_run import run_with_ray

        share, setup = self._trials(machine)
        mark = self.store.sweep(self.plan.name) / CANCELLED
        mark.unlink(missing_ok=True)
        return run_with_ray(self.plan, saved, self.store, setup, share, self.options.most, mark)

    def _trials(self, machine: Machine) -> tuple[Share, Setup]:
        """Return what a trial of Ray Tune is given."""
        from harness.ray_run import Share

        share = Share.of(self.sweep.file.launch, self.options.threads, bool(machine.gpus))
        return share, self.options.setup("cuda" if share.gpus else "cpu", share.cpus)

    def _search(self) -> int:
        """Run the file's search; return the exit code."""
        from harness.searching import run_search

        share, setup = self._trials(self.machine())
        setup, most = replace(setup, discard_weights=True), self.options.most
        data = data_folder(self.sweep, self.data)
        with mirrored(self.sweep.file.wandb, self.store, self.sweep.name, stays=True):
            return run_search(self.sweep, self.store, data, setup, share, most, self.options.stop_after)

    def _elsewhere(self, saved: Path) -> int:
        """Run what is missing with workers of a cluster; return the exit code."""
        launcher, detach = self.launcher(saved.name if self.chosen else ""), self.options.detach
        left = run_elsewhere(as_saved(self.plan, self.sweep), self.store, launcher, self.observer, detach)
        if left or detach:
            follows = "" if self.options.via == "local" else "the same command follows them, "
            shown = command("status", self.plan.name, store=self.store.root)
            said = f"the workers go on; `{shown}` shows them, {follows}--cancel ends them"
            typer.echo(said, err=True)
            if left:
                say_how_to_mirror(self.sweep.file.wandb, self.store, self.plan.name)
            return 130 if left else 0
        return self._close(interrupted=False, launcher=launcher if isinstance(launcher, Slurm) else None)

    def launcher(self, plan: str = "") -> Launcher:
        """Return the launcher of workers that outlive this command; they read the sweep's newest plan, or one named."""
        if self.options.via == "local":
            bound = ["--plan", plan] if plan else []
            return Detached(self.packed(self.machine()), self.store, self.plan.name, [*bound, *self.options.argv])
        return self.slurm(plan)

    def slurm(self, plan: str = "") -> Slurm:
        """Return the launcher of a profile."""
        argv = [self.plan.name, "--store", str(self.store.root.absolute()), *self.options.argv]
        return launcher_for(self.options.via, self.file.absolute().parent, self.store, self.plan.name, argv, plan)

    def standing_for(self) -> Plan:
        """Return the plan whose stages the file stands for: of a search, that of all its trials."""
        if not self.sweep.search:
            return self.whole
        from harness.searching import campaign_of

        return campaign_of(self.sweep, self.store, data_folder(self.sweep, self.data)).plan

    def cancel(self) -> int:
        """End the sweep's workers, wherever they were last submitted; return the exit code.

        1 where some go on, 3 where the scheduler does not answer.
        """
        launcher = for_cancelling(self.store, self.plan.name) if self.given_via in ("", *HERE) else self.slurm()
        if launcher is not None:
            launcher.every = True
        last = self.store.sweep(self.plan.name) / "sweep.yaml"
        if self.chosen and last.exists() and last.read_bytes() != self.file.read_bytes():
            note(f"{self.file} has changed since it was run: --only chooses cells as they are now, --cancel alone all")
        done = cancel(as_saved(self.plan, self.sweep), self.whole, self.store, launcher, self.chosen)
        _say(str(done))
        for sentence in done.left:
            note(f"not ended: {sentence}")
        return 3 if done.unanswered else int(bool(done.left))

    def _argv(self, saved: Path) -> list[str]:
        return [self.plan.name, "--plan", saved.name, "--store", str(self.store.root), *self.options.argv]


def _say(sentence: str) -> None:
    typer.echo(printable(sentence), err=True)
