"""Runs what a plan lacks: with workers on this machine, followed to their end, or with those of a launcher."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from harness.allocation import job_id, named_cluster, of_cluster, shell, unanswered
from harness.claims import Observer
from harness.demand import demand
from harness.display import Display
from harness.errors import UserError
from harness.events import in_words
from harness.following import Following
from harness.frontier import Frontier, Survey
from harness.index import stand
from harness.inline import Inline
from harness.launch import Launcher
from harness.launch.local import Machine, Workers, slots, this_machine
from harness.launch.profiles import find_profile, load_profile
from harness.launch.slurm import Slurm
from harness.plan import Plan
from harness.planfile import SavedPlan
from harness.rounds import CANCELLED, answered_round, go_round
from harness.shift import Limits, work
from harness.store import Store
from harness.supervisor import Setup, Trouble, Unwritable
from harness.terminal import command, note
from harness.words import count, span

DEBUG_LEASE = 86400.0


@dataclass
class Crew:
    """Workers on this machine that run what a plan lacks."""

    frontier: Frontier
    argv: Sequence[str]
    machine: Machine
    pre_empt: bool = False
    unwritable: bool = field(default=False, init=False)
    """Whether a worker left since the store cannot be written."""

    def run(self, survey: Survey) -> bool:
        """Start workers where something is to be done; return whether they were stopped."""
        if not any(s.claimable or s.name == "running" for s in survey.todo.values()):
            return False
        stages = self.frontier.plan.stages
        machine = replace(self.machine, workers=min(self.machine.workers, len(survey.todo)))
        places = slots(machine, [stages[key].world for key in survey.todo])
        display = Display(len(stages) - len(survey.todo), len(stages), len(places))

        def hear(slot: int, event: dict[str, Any]) -> None:
            self.unwritable = self.unwritable or bool(event.get("unwritable"))
            display.hear(slot, event)

        crew = Workers([*self.argv, *machine.argv], places, hear, pre_empt=self.pre_empt)
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

    def again_with_more_memory(self) -> bool:
        """Run what ran out of memory once more, with the machine to itself; return whether that was stopped."""
        alone = this_machine(1, self.machine.threads, self.machine.device)
        frontier = Frontier(self.frontier.plan, self.frontier.store, self.frontier.observer)
        frontier.has = {"ram": alone.memory, "gpu": alone.gpu_memory}
        survey = frontier.survey()
        short = [s for s in survey.todo.values() if s.cause == "oom" and s.claimable]
        if not short:
            return False
        typer.echo(f"{count(len(short), 'stage')} ran out of memory: once more, one at a time", err=True)
        crew = replace(self, frontier=frontier, machine=alone)
        stopped = crew.run(survey)
        self.unwritable = self.unwritable or crew.unwritable
        return stopped


def run_in_this_process(saved: SavedPlan, store: Store, setup: Setup) -> Unwritable | None:
    """Run what a plan lacks in this process, where a debugger reaches it.

    Return why no more was run where the store cannot be written, None otherwise.

    Between two stages nobody can say that it lives, so that others must not take it for dead for a long while.
    """
    patient = replace(setup, as_one=True, lease=DEBUG_LEASE)
    try:
        work(saved, store, patient, Limits(), threading.Event(), in_words, Inline)
    except Trouble as error:
        in_words(event="trouble", message=f"no more stages are taken: {error}")
        return error if isinstance(error, Unwritable) else None
    return None


def launcher_for(via: str, beside: Path, store: Store, name: str, argv: Sequence[str], plan: str) -> Slurm:
    """Return the launcher of a cluster profile. Raises UserError where there is none of that name."""
    profile, document = load_profile(find_profile(via, beside))
    return Slurm(profile, store, name, argv, document, plan=plan)


def texts(launcher: Slurm, plan: Plan, observer: Observer) -> list[str]:
    """Return what would be submitted, one sbatch file a size of worker and of array."""
    lines = []
    for size, number in sorted(demand(plan, stand(plan, launcher.store, observer), launcher).items()):
        for tasks, times in Counter(launcher.arrays(min(number, launcher.most))).items():
            again = f", {count(times, 'time')}" if times > 1 else ""
            workers = f"{count(tasks, 'worker')} of {count(size.world, 'process')}"
            lines += [f"  {workers}{again}:", launcher.text(size, tasks)]
    return lines


def run_elsewhere(saved: SavedPlan, store: Store, launcher: Launcher, observer: Observer, detach: bool) -> bool:
    """Submit workers; follow them, unless asked not to. Return whether somebody ended the following early."""
    name = saved.plan.name
    launcher.begin()
    (store.sweep(name) / CANCELLED).unlink(missing_ok=True)
    if detach:
        seen = answered_round(
            lambda: go_round(saved, store, launcher, observer, by_hand=True, wait=note),
            f"run the same command later, or `{command('tick', name, store=store.root)}`, to submit what is missing",
            note,
        )
        nothing = "another round is under way" if seen.elsewhere else "all that can be used is there"
        submitted = [f"submitted {sentence}" for sentence in seen.submitted or [f"nothing: {nothing}"]]
        said = [*submitted, *seen.notes(launcher), seen.waiting(launcher), launcher.later()]
        for sentence in filter(None, said):
            typer.echo(sentence, err=True)
        return False
    following = Following(saved, store, launcher, observer)
    interrupted = following.run(Display(0, len(saved.plan.stages), 0))
    for sentence in following.trouble:
        typer.echo(sentence, err=True)
    return interrupted


def refuse_login_node() -> None:
    """Raise UserError on a machine that looks like a cluster's login node: not the place to train by accident."""
    if job_id() or not shutil.which("sbatch"):
        return
    found = "Slurm answers"
    try:
        shell(of_cluster(["sinfo", "--noheader"], named_cluster()))
    except (OSError, subprocess.SubprocessError) as error:
        if not (silence := unanswered(error)):
            return
        found = f"Slurm is set up, though it does not answer: {silence}"
    raise UserError(
        f"this looks like a cluster's login node ({found}; no allocation); to train here all the same: "
        "--via local; to submit: --via and a profile of slurm/"
    )
