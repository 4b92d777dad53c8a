"""A worker's shift: it signs in, takes ready stages one after another, and signs out when none is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.claims import Claim, Observer, Owner, take
from harness.costs import Costs, Place
from harness.failure_limit import check_limit, reached
from harness.frontier import Frontier
from harness.inline import Inline
from harness.machine import machine
from harness.plan import Stage
from harness.planfile import SavedPlan, read_plan
from harness.presence import Presence, crowded, present
from harness.provenance import provenance, source_digest
from harness.records import tell_loss
from harness.states import LACKING, State
from harness.store import Store
from harness.supervisor import Setup, Supervisor
from harness.time_left import TimeLeft
from harness.trainer import Trainer
from harness.words import span

POLL = 0.5
"""Seconds between two looks at what others run."""
PATIENT = 20
"""Looks in vain after which they come less often, for the sake of the file system."""


class Worker:
    """Takes stage after stage: the ready one with the longest chain below it first."""

    def __init__(
        self, frontier: Frontier, supervisor: Supervisor, stop: threading.Event, tell: Any, left: TimeLeft | None = None
    ) -> None:
        self.frontier, self.supervisor, self.stop, self.tell, self.time = frontier, supervisor, stop, tell, left
        self.follows: Path | None = None
        """A plan's file that may be replaced by that of an edited sweep."""
        self.written = 0
        """When that file was written, as it was read."""
        self.token = uuid.uuid4().hex
        self.patience: float | None = None
        """Seconds of looking in vain after which it leaves."""
        self.todo: dict[str, Stage] = {}
        self.absent: set[str] = set()
        self.freed: Callable[[], None] | None = None
        """Sees to workers for what this one has made ready and cannot run alone."""
        self.took = False
        """Whether it has taken a stage."""
        self.refused = ""
        """Why the last stage that was ready and free could not be taken by this worker."""
        self.asked: set[tuple[str, int]] = set()
        """Lost attempts that a scheduler was asked about."""
        self.idle = 0
        self.read: set[str] = set()
        """Stages whose artifact is needed, since one that is to run is made from it; of others the result is enough."""
        self.broken: set[str] = set()
        """Stages that failed, and all below them."""

    def run(self) -> None:
        """Work until all is done or blocked by failures, a stop is asked for, or the time is up."""
        self.look()
        since: float | None = None
        while not (self.stop.is_set() or (self.time and self.time.over()) or self.outdated() or self.halted()):
            self.supervisor.beat()
            taken, others = self.take()
            self.idle = 0 if taken is not None else self.idle + 1
            if taken is not None:
                since = None
            elif since is None:
                since = time.monotonic()
            elif self.patience is not None and time.monotonic() - since > self.patience:
                return
            if taken is not None:
                self.took, began = True, time.monotonic()
                outcome = self.supervisor.run(*taken)
                self._learn(taken[0], outcome)
                if outcome not in ("published", "stopped", "gave up"):
                    self._count()
                if self.frontier.changed:
                    self.look()
                elif outcome == "published":
                    self.todo.pop(taken[0].key, None)
                if self.freed and outcome == "published" and self._frees(taken[0], time.monotonic() - began):
                    self.freed()
            elif others:
                lease = self.frontier.observer.lease
                longer = 1.3 ** min(max(0, self.idle - PATIENT), PATIENT)
                self.stop.wait(min(POLL * longer, max(POLL, lease / 40), lease / 20))
            else:
                before = set(self.todo)
                self.look()
                if not self.todo or set(self.todo) == before:
                    return

    def halted(self) -> bool:
        """Return whether too many stages failed for one cause, so that no more are begun."""
        found = reached(self.frontier.store, self.frontier.plan.name)
        if found is not None:
            self.tell(event="note", message=str(found))
        return found is not None

    def _count(self) -> None:
        check_limit(self.frontier.plan, self.frontier.store, self.frontier.observer)

    def _frees(self, stage: Stage, seconds: float) -> bool:
        """Return whether a stage made more ready than this worker goes on with, which no workers were submitted for.

        They were for what waits for short stages alone.
        """
        if stage.kind != "train" and (self.patience is None or seconds <= self.patience):
            return False
        plan, setup = self.frontier.plan, self.supervisor.setup
        found, made = [], {stage.key}
        for key, below in plan.stages.items():  # parents before children
            if key not in self.todo or made.isdisjoint(below.parents.values()):
                continue
            if below.kind != "train":
                made.add(key)
            if below.kind == "train" or key not in plan.inner:
                found.append(below)
        return len(found) > 1 or any(s.kind == "train" and s.world != setup.world and not setup.as_one for s in found)

    def outdated(self) -> bool:
        """Return whether the plan was replaced since this began: what the sweep's file no longer has is not started."""
        return not self.stop.is_set() and self._written() != self.written

    def _written(self) -> int:
        try:
            return self.follows.stat().st_mtime_ns if self.follows else self.written
        except FileNotFoundError:
            return self.written

    def _learn(self, stage: Stage, outcome: str) -> None:
        if self.time and outcome == "published" and (result := self.frontier.fresh_result(stage.key)):
            self.time.costs.add(stage, result)

    def look(self) -> None:
        """Read from the store what is left to do."""
        self.frontier.forget()
        heights = self.frontier.plan.heights
        survey = self.frontier.survey()
        keys = sorted(survey.todo, key=lambda key: (-heights[key], hash((self.token, key))))
        self.todo = {key: self.frontier.plan.stages[key] for key in keys}
        self.read = {parent for stage in self.todo.values() for parent in stage.parents.values()}
        self.broken = set(self.frontier.blocked(survey))

    def ready(self) -> Iterator[tuple[Stage, State]]:
        """Yield the stages whose parents are done, with their states; what others finished leaves the list."""
        progress = True
        while progress:
            progress = False
            for key, stage in list(self.todo.items()):
                if key in self.broken or any(p in self.todo for p in stage.parents.values()):
                    if any(p in self.broken for p in stage.parents.values()):
                        self.broken.add(key)
                    continue
                if self.frontier.result(key, with_artifact=key in self.read):
                    del self.todo[key]
                    progress = True
                    continue
                yield stage, self.frontier.state(stage)

    def take(self) -> tuple[tuple[Stage, Claim] | None, bool]:
        """Claim a stage; else say whether others run something that may be waited for."""
        others = False
        seen: set[str] = set()
        shunned: list[tuple[Stage, State]] = []
        for stage, found in self.ready():
            if stage.key in seen:
                continue
            seen.add(stage.key)
            state = self._explained(stage, found)
            if state.over:
                self.broken.add(stage.key)
            elif state.claimable and not self._fits(stage, state):
                others = others or self._served(stage)
            elif not state.claimable:
                others = True
            elif self._elsewhere(stage):
                continue
            elif self.time and not self.time.allows(stage, state.lost):
                self.refused = f"{stage.label}: more than the {span(self.time.left)} that are left"
            elif state.host == machine()[0]:
                shunned.append((stage, state))
            elif (claim := self._claim(stage, state)) is not None:
                return (stage, claim), True
            else:
                others = True
        for stage, state in shunned:  # its device failed here: only where there is nothing else to do
            if (claim := self._claim(stage, state)) is not None:
                return (stage, claim), True
        return None, others or bool(shunned)

    def _explained(self, stage: Stage, state: State) -> State:
        """Return a lost stage's state with what the scheduler of its worker knows of that one's end, asked once."""
        folder = self.frontier.store.folder(stage.kind, stage.key)
        if state.name == "lost" and (stage.key, state.generation) not in self.asked:
            self.asked.add((stage.key, state.generation))
            if tell_loss(folder, state.generation):
                self._count()
                return self.frontier.state(stage)
        return state

    def _fits(self, stage: Stage, state: State) -> bool:
        """Return whether this worker has the processes that a training asks for; what is none needs but one.

        One with more memory or time than others is kept for what ran out of it.
        """
        setup = self.supervisor.setup
        if setup.large and state.cause not in LACKING:
            return False
        return stage.kind != "train" or setup.as_one or stage.world == setup.world

    def _served(self, stage: Stage) -> bool:
        """Return whether another worker has the processes that a training asks for."""
        there = list(present(self.frontier.store, self.frontier.plan.name))
        about = [worker.about for worker in there if not self.frontier.observer.lost(worker.path)]
        return any(said.get("world") == stage.world or said.get("as_one") for said in about)

    def _elsewhere(self, stage: Stage) -> bool:
        """Return whether a data set's files are not on this machine, where another may have them; said once."""
        if not stage.place or Path(stage.place).exists():
            return False
        self.refused = f"{stage.label}: {stage.place} is not on this machine"
        if stage.key not in self.absent:
            self.absent.add(stage.key)
            self.tell(event="note", message=f"{self.refused}; left to others")
        return True

    def _claim(self, stage: Stage, state: State) -> Claim | None:
        folder = self.frontier.store.folder(stage.kind, stage.key)
        if folder.generation != state.generation:
            return None
        limit = self.time.take(stage) if self.time else 0.0
        claim = take(folder, state.generation, replace(self.supervisor.owner(), limit=limit))
        if claim is not None and self.frontier.result(stage.key, with_artifact=stage.key in self.read):
            claim.end("gave up", message="it was published just before")  # between the look and the claim
            return None
        return claim


@dataclass(frozen=True)
class Limits:
    """How long a worker may work, in seconds, and beside how many others of its machine."""

    until: float | None = None
    notice: float = 0.0
    """Seconds before the end of that within which a signal to leave means that the time is up."""
    at_most: int | None = None
    idle: float | None = None
    """Seconds after which it leaves when all that is left is in others' hands; None: it waits."""
    follow: bool = False
    """Whether it goes on with the new plan where the sweep's file is edited and run again meanwhile."""
    sign_in: str = ""
    """A file to make when the trainer is ready, before any stage is looked for; it says why none could be taken."""


def work(
    saved: SavedPlan,
    store: Store,
    setup: Setup,
    limits: Limits,
    stop: threading.Event,
    tell: Callable[..., None],
    start: Callable[[str], Trainer | Inline] = Trainer,
    freed: Callable[[], None] | None = None,
) -> None:
    """Be one worker: sign in, take stage after stage, sign out.

    `freed` is called between two stages where the first has made more ready than this worker goes on with.
    """
    if saved.source != source_digest():
        tell(
            event="note",
            message=f"this worker's code ({source_digest()}) differs from the code that made the plan "
            f"({saved.source}); results name the code that made them",
        )
    provenance(store, setup.device)  # of the code as it is now, whatever is edited while this worker lives
    frontier = Frontier(saved.plan, store, Observer(setup.lease), brief=True)
    _tidy(setup.scratch, frontier)
    presence = Presence(store, saved.plan.name, presence_owner(setup), **about(setup))
    try:
        if limits.at_most is not None and crowded(store, saved.plan.name, limits.at_most, presence.path):
            tell(event="note", message=f"{limits.at_most} workers run on this machine already; leaving")
            return
        left = _time(frontier, setup, limits)
        stopping = (lambda: stop.is_set() or left.over()) if left else stop.is_set
        supervisor = Supervisor(frontier, setup, tell, stopping, start)
        supervisor.beside = presence.beat
        if left:
            left.begin()
            supervisor.because = left.because
        with contextlib.closing(supervisor):
            if limits.sign_in and supervisor.ready:
                Path(limits.sign_in).write_text("")
            written = saved.written
            while True:
                worker = Worker(supervisor.frontier, supervisor, stop, tell, left)
                worker.patience, worker.follows = limits.idle, saved.path if limits.follow else None
                worker.written, worker.freed = written, freed
                worker.run()
                if not worker.outdated():
                    if limits.sign_in and worker.refused and not worker.took:
                        Path(limits.sign_in).write_text(worker.refused)
                    break
                saved = read_plan(saved.path)
                written = saved.written
                supervisor.use(Frontier(saved.plan, store, Observer(setup.lease), brief=True))
    finally:
        presence.leave()


def _tidy(scratch: str, frontier: Frontier) -> None:
    """Remove checkpoints on this machine's own disk of stages that were finished elsewhere."""
    folder = Path(scratch)
    for own in folder.iterdir() if scratch and folder.is_dir() else ():
        if own.name in frontier.plan.stages and frontier.fresh_result(own.name):
            shutil.rmtree(own, ignore_errors=True)


def presence_owner(setup: Setup) -> Owner:
    """Return who signs in."""
    return Owner.me(lease=setup.lease)


def about(setup: Setup) -> dict[str, Any]:
    """Return what a worker tells of itself when it signs in."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    more = {"world": setup.world, "as_one": setup.as_one}
    return {"device": setup.device, "threads": setup.threads, "visible": visible, "source": source_digest(), **more}


def _time(frontier: Frontier, setup: Setup, limits: Limits) -> TimeLeft | None:
    if limits.until is None:
        return None
    place = Place("cuda" if setup.device.startswith("cuda") else setup.device, setup.threads)
    costs = Costs.of(frontier.plan, frontier.survey().results, place)
    return TimeLeft.of(limits.until, costs, limit=setup.time, notice=limits.notice)
