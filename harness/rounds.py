"""One look at a sweep and at its launcher's queue, and the workers submitted that are missing. It remembers nothing."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.allocation import APART, insist, job_id
from harness.claims import Observer, Owner
from harness.demand import demand, over
from harness.errors import SchedulerUnavailable, UserError
from harness.failure_limit import Reached, check_limit
from harness.index import Standing, stand
from harness.launch import Job, Launcher, Size
from harness.launch.remedies import BROKEN
from harness.planfile import SavedPlan
from harness.store import Store, place, publish, write_whole
from harness.terminal import command
from harness.words import count

LAST = "last-round"
"""A file whose time says when the last round began to look: what became ready since it may not have seen."""
CANCELLED = "cancelled"
"""A file that keeps ticks and leaving workers from submitting; the sweep command removes it."""
LEAVING = "leaving"
"""What the files of workers that leave begin with, each with the number of its job."""
STAYING = "staying"
"""The same of workers that go a round and go on."""
UNDER_WAY = 1.0
"""Seconds before a round that another has begun is looked at again; it may have looked before what is ready was."""
STALE = 300.0
"""Seconds after which a round that another began counts as broken off: more than sbatch ever takes."""


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


def go_round(saved: SavedPlan, store: Store, launcher: Launcher, observer: Observer, by_hand: bool = False) -> Round:
    """Look, and submit what is missing; `by_hand` even where workers ended at their start before.

    Raises UserError where the scheduler refuses, or where worker after worker ended at its start.
    """
    folder = store.sweep(saved.plan.name)
    with Turn(folder / "round") as turn:
        seen = Round(stand(saved.plan, store, observer))
        seen.wanted = demand(saved.plan, seen.standing, launcher)
        seen.over = over(saved.plan, seen.standing, launcher)
        seen.reached = check_limit(saved.plan, store, observer, seen.standing)
        seen.cancelled = (folder / CANCELLED).exists()
        seen.elsewhere = not (turn.held or seen.over)
        if turn.held and not seen.over:
            try:
                _submit(seen, saved, launcher, turn, by_hand)
                turn.date(folder / LAST)
            except SchedulerUnavailable as error:
                seen.unanswered = str(error)
    return seen


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


def _submit(seen: Round, saved: SavedPlan, launcher: Launcher, turn: Turn, by_hand: bool) -> None:
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
    leaving = {path.name.split("-")[1] for path in turn.path.parent.glob(f"{LEAVING}-*")}  # not to be counted on
    there = Counter(each.size for each in seen.jobs if each.state != "leaving" and each.inner not in leaving)
    for size, number in seen.wanted.items():
        missing = min(number, launcher.most) - there[size]
        if missing <= 0 or seen.reached or not turn.still() or (turn.path.parent / CANCELLED).exists():
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
    own = f"{LEAVING if stop is None else STAYING}-{job_id()}-{uuid.uuid4().hex[:8]}"
    began = _now(store, name, own)
    try:
        while demand(saved.plan, stand(saved.plan, store, observer), launcher()):
            try:
                last = (store.sweep(name) / LAST).stat().st_mtime
            except FileNotFoundError:
                last = 0.0
            if last > began:
                return
            wait = last + APART - _now(store, name, own)
            if wait <= 0:
                later = f"`{command('tick', name, store=store.root)}` submits the rest later"
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
                wait = UNDER_WAY
            if stop is None:
                time.sleep(min(wait, APART))
            elif stop.wait(min(wait, APART)):
                return
    finally:
        (store.sweep(name) / own).unlink(missing_ok=True)


def _now(store: Store, name: str, file: str) -> float:
    """Write an empty file and return its time: the store's own clock, the same for all machines."""
    path = store.sweep(name) / file
    write_whole(path, b"")
    return path.stat().st_mtime


class Turn:
    """A file that one process holds at a time; one that is certainly dead, or far too slow, loses it to the next."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, False
        self.mark = json.dumps(asdict(Owner.me())).encode() + f"\n{uuid.uuid4().hex}\n".encode()

    def __enter__(self) -> Turn:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.held = publish(self.path, self.mark) or (self._take_over() and publish(self.path, self.mark))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.still():
            self.path.unlink(missing_ok=True)

    def still(self) -> bool:
        """Return whether this still holds it."""
        with contextlib.suppress(FileNotFoundError):
            return self.held and self.path.read_bytes() == self.mark
        return False

    def date(self, path: Path) -> None:
        """Write an empty file that is as old as this turn."""
        if self.still():
            began, draft = self.path.stat().st_mtime_ns, path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
            write_whole(draft, b"")
            os.utime(draft, ns=(began, began))
            draft.replace(path)

    def _take_over(self) -> bool:
        """Move the file aside where its holder is gone; put it back where it is meanwhile another's."""
        try:
            found = self.path.read_bytes()
            if not self._broken_off():
                return False
            aside = self.path.with_name(f"{self.path.name}-{uuid.uuid4().hex[:8]}")
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        mine = aside.read_bytes() == found
        if not mine:
            place(aside, self.path)
        aside.unlink(missing_ok=True)
        return mine

    def _broken_off(self) -> bool:
        owner = Owner.read(self.path)
        if owner is not None and owner.certainly_gone():
            return True
        probe = self.path.with_name(f"clock-{uuid.uuid4().hex[:8]}")
        write_whole(probe, b"")  # its time comes from the clock that also gave the other its own
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime > STALE
        finally:
            probe.unlink(missing_ok=True)
