"""One look at a sweep and at its launcher's queue, and the workers submitted that are missing. It remembers nothing."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.allocation import APART, insist, job_id
from harness.claims import Lease, Observer
from harness.demand import demand, over
from harness.errors import SchedulerUnavailable, UserError
from harness.failure_limit import Reached, check_limit
from harness.index import Standing, stand
from harness.launch import Job, Launcher, Size
from harness.launch.remedies import BROKEN
from harness.planfile import SavedPlan
from harness.store import Store, is_number, write_whole
from harness.terminal import command
from harness.words import count

ROUNDS = "rounds"
"""The folder of the lease that a round is held under."""
LENGTH = 60.0
"""Seconds without a heartbeat after which a round on another host counts as broken off."""
LONGEST = 300.0
"""Seconds after which a round shows no heartbeat any more: sbatch, which nothing else bounds, hangs."""
ANSWERED = "answered"
"""How the lease of a round ends for which the scheduler has said what is there."""
CANCELLED = "cancelled"
"""A file that keeps ticks and leaving workers from submitting; the sweep command removes it."""
LEAVING = "leaving"
"""What the files of workers that leave begin with, each with the number of its job."""
UNDER_WAY = 1.0
"""Seconds before a round that another has begun is looked at again; it may have looked before what is ready was."""


@dataclass
class Round:
    """What a round saw and did."""

    standing: Standing
    wanted: Counter[Size] = field(default_factory=Counter)
    jobs: list[Job] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    """What to say of nodes on which workers fail at their start."""
    over: bool = False
    """Whether nothing is left that runs or could ever be run."""
    cancelled: bool = False
    """Whether the sweep was cancelled, so that nothing is submitted until it is run again."""
    reached: Reached | None = None
    """Why no stage is begun any more, so that nothing is submitted either."""
    elsewhere: bool = False
    """Whether another round was under way, and this one left all to it."""
    unanswered: str = ""
    """What there is to say where the scheduler did not answer, so that its jobs are not known; else empty."""

    def notes(self, launcher: Launcher) -> list[str]:
        """Return what is to be said of jobs that can never start or that nobody knows of, and of excluded nodes."""
        reasons = Counter(each.reason for each in self.jobs if each.name)
        unknown = [f"{count(number, 'job')} {reason}" for reason, number in reasons.items()]
        never = [f"{each.number} cannot start: {said}" for each in self._pending if (said := launcher.never(each))]
        return [*unknown, *self.excluded, *never]

    def waiting(self, launcher: Launcher) -> str:
        """Return what jobs wait for, and how many; empty where none does, or no reason is known."""
        queued = [each for each in self._pending if not (each.name or launcher.never(each))]
        reasons = Counter(filter(None, map(launcher.waits, queued)))
        return "; ".join(f"{count(number, 'job')} waiting: {reason}" for reason, number in sorted(reasons.items()))

    @property
    def _pending(self) -> list[Job]:
        return [each for each in self.jobs if each.state == "pending"]


def go_round(
    saved: SavedPlan,
    store: Store,
    launcher: Launcher,
    observer: Observer,
    by_hand: bool = False,
    wait: Callable[[str], None] | None = None,
) -> Round:
    """Look, and submit what is missing; `by_hand` even where workers ended at their start before.

    One round at a time: where another is under way, all is left to that. A single round gives `wait`, which is told
    of the wait for the other's end, its heartbeat, or its loss; rounds in a row share an observer, which sees the same.
    Raises UserError where the scheduler refuses, or where worker after worker ended at its start.
    """
    lease, outcome = _lease(store, saved.plan.name, observer), "released"
    held = lease.settle(wait) if wait else lease.acquire()
    try:
        seen = Round(stand(saved.plan, store, observer))
        seen.wanted = demand(saved.plan, seen.standing, launcher)
        seen.over = over(saved.plan, seen.standing, launcher)
        seen.reached = check_limit(saved.plan, store, observer, seen.standing)
        seen.cancelled = (store.sweep(saved.plan.name) / CANCELLED).exists()
        seen.elsewhere = not (held or seen.over)
        if held and not seen.over:
            try:
                _submit(seen, saved, store, launcher, lease, by_hand)
                outcome = ANSWERED
            except SchedulerUnavailable as error:
                seen.unanswered = str(error)
    finally:
        lease.release(outcome, time=time.time())
    return seen


def _lease(store: Store, name: str, observer: Observer) -> Lease:
    return Lease(store.sweep(name) / ROUNDS, LENGTH, observer, LONGEST)


def answered_round(go: Callable[[], Round], later: str, tell: Callable[[str], None]) -> Round:
    """Go a round, and while the scheduler does not answer another one, for about a minute.

    Raises SchedulerUnavailable that says what to do `later`.
    """

    def attempt() -> Round:
        seen = go()
        if seen.unanswered:
            for sentence in seen.submitted:
                tell(f"submitted {sentence}")
            raise SchedulerUnavailable(seen.unanswered)
        return seen

    return insist(attempt, later, tell)


def _submit(seen: Round, saved: SavedPlan, store: Store, launcher: Launcher, lease: Lease, by_hand: bool) -> None:
    """Clear the queue of jobs that can never start or that ask for what is no longer wanted; submit the missing."""
    jobs = launcher.poll()
    useless = [
        each
        for each in jobs
        if BROKEN.search(each.reason) or (each.state == "pending" and (each.outdated or seen.reached))
    ]
    if useless and launcher.cancel(useless):
        useless = []  # some may go on, and count until the queue shows that they do not
    seen.jobs = [each for each in jobs if each not in useless]
    seen.excluded = launcher.exclude(seen.jobs)
    seen.wanted = demand(saved.plan, seen.standing, launcher, seen.jobs)
    folder = store.sweep(saved.plan.name)
    leaving = {path.name.split("-")[1] for path in folder.glob(f"{LEAVING}-*")}  # not to be counted on
    there = Counter(each.size for each in seen.jobs if each.state != "leaving" and each.inner not in leaving)
    for size, number in seen.wanted.items():
        missing = min(number, launcher.most) - there[size]
        if missing <= 0 or seen.reached or not lease.held or (folder / CANCELLED).exists():
            continue
        if not by_hand and not there[size] and (said := launcher.in_vain(size)):
            raise UserError(said)
        for sentence in launcher.submit(size, missing):
            seen.submitted.append(sentence)


def round_in_turn(
    saved: SavedPlan,
    store: Store,
    observer: Observer,
    launcher: Callable[[], Launcher],
    tell: Callable[..., None],
    stop: threading.Event | None = None,
) -> None:
    """Go a round for those that come after a worker that leaves, or for what it has made ready while it goes on.

    Nothing is done where somebody has begun and ended one since this began. The scheduler is not asked more often than
    every `APART` seconds, whoever asks; this waits for its turn. `stop`: of a worker that goes on, which ends the wait.
    """
    name = saved.plan.name
    lease, mark = _lease(store, name, observer), store.sweep(name) / f"{LEAVING}-{job_id()}-{uuid.uuid4().hex[:8]}"
    if stop is None:
        write_whole(mark, b"")
    before, began = lease.last()[0], time.monotonic()
    later = f"`{command('tick', name, store=store.root)}` submits the rest later"
    try:
        while demand(saved.plan, stand(saved.plan, store, observer), launcher()):
            number, end = lease.last()
            pause = 0.0
            if end and end.get("outcome") == ANSWERED:
                if number > before:
                    return
                since = time.time() - float(end["time"]) if is_number(end.get("time")) else APART
                pause = APART - max(since, time.monotonic() - began)
            if pause <= 0:
                if stop is None:
                    seen = answered_round(
                        lambda: go_round(saved, store, launcher(), observer),
                        later,
                        lambda sentence: tell(event="note", message=sentence),
                    )
                elif (seen := go_round(saved, store, launcher(), observer)).unanswered:
                    tell(event="note", message=f"{seen.unanswered}; {later}")
                for sentence in seen.submitted:
                    tell(event="note", message=f"submitted {sentence}")
                if not seen.elsewhere:
                    return
                pause = UNDER_WAY
            if stop is None:
                time.sleep(min(pause, APART))
            elif stop.wait(min(pause, APART)):
                return
    finally:
        mark.unlink(missing_ok=True)
