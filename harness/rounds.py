"""One look at a sweep and at its launcher's queue, and the workers submitted that are missing. It remembers nothing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.allocation import job
from harness.claims import Observer, Owner
from harness.demand import demand
from harness.index import Standing, stand
from harness.launch import Job, Launcher, Size
from harness.launch.remedies import BROKEN
from harness.planfile import SavedPlan
from harness.store import Store, publish, write_whole

LAST = "last-round"
"""A file whose time says when the last round was gone."""
APART = 10.0
"""Seconds between two rounds of workers that leave."""
STALE = 300.0
"""Seconds after which a round that another began counts as broken off; worst come to worst, two submit the same."""


@dataclass
class Round:
    """What a round saw and did."""

    standing: Standing
    wanted: Counter[Size] = field(default_factory=Counter)
    jobs: list[Job] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    elsewhere: bool = False
    """Whether another round was under way, and this one left all to it."""


def go_round(saved: SavedPlan, store: Store, launcher: Launcher, observer: Observer) -> Round:
    """Look, and submit what is missing. Raises UserError where the scheduler refuses."""
    seen = Round(stand(saved.plan, store, observer))
    seen.wanted = demand(saved.plan, seen.standing, launcher.step_for)
    if not seen.standing.states:
        return seen
    with only_one(store.sweep(saved.plan.name) / "round") as mine:
        if not mine:
            seen.elsewhere = True
            return seen
        seen.jobs = launcher.poll()
        if broken := [each for each in seen.jobs if BROKEN.search(each.reason)]:
            launcher.cancel(broken)
            seen.jobs = [each for each in seen.jobs if each not in broken]
        mine_too = job().partition(".")[0]  # a worker that leaves is no longer one to count on
        there = Counter(each.size for each in seen.jobs if each.state != "leaving" and each.inner != mine_too)
        for size, number in seen.wanted.items():
            missing = min(number, launcher.most) - there[size]
            if missing > 0:
                seen.submitted += launcher.submit(size, missing)
        _now(store, saved.plan.name, LAST)
    return seen


def leaving_round(
    saved: SavedPlan,
    store: Store,
    observer: Observer,
    launcher: Callable[[], Launcher],
    tell: Callable[..., None],
) -> None:
    """Go a round for those that come after a worker, unless somebody has gone one since it began to leave.

    The scheduler is not asked more often than every `APART` seconds, whoever asks; this waits for its turn.
    """
    name = saved.plan.name
    began = _now(store, name, f"leaving-{os.getpid()}")
    while demand(saved.plan, stand(saved.plan, store, observer), launcher().step_for):
        try:
            last = (store.sweep(name) / LAST).stat().st_mtime
        except FileNotFoundError:
            last = 0.0
        if last > began:
            break
        wait = last + APART - _now(store, name, f"leaving-{os.getpid()}")
        if wait <= 0:
            seen = go_round(saved, store, launcher(), observer)
            for sentence in seen.submitted:
                tell(event="note", message=f"submitted {sentence}")
            break
        time.sleep(min(wait, APART))
    (store.sweep(name) / f"leaving-{os.getpid()}").unlink(missing_ok=True)


def _now(store: Store, name: str, file: str) -> float:
    """Write an empty file and return its time: the store's own clock, the same for all machines."""
    path = store.sweep(name) / file
    write_whole(path, b"")
    return path.stat().st_mtime


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Hold a file as a lock, if nobody does; say whether it is held here.

    One whose holder is certainly dead, or that is old by the file system's own clock, is taken over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = json.dumps(asdict(Owner.me())).encode() + b"\n"
    held = publish(path, mine)
    if not held and _broken_off(path):
        path.unlink(missing_ok=True)
        held = publish(path, mine)
    try:
        yield held
    finally:
        if held:
            path.unlink(missing_ok=True)


def _broken_off(path: Path) -> bool:
    owner = Owner.read(path)
    if owner is not None and owner.certainly_gone():
        return True
    probe = path.with_name(f"clock-{os.getpid()}")
    try:
        write_whole(probe, b"")  # its time comes from the clock that also gave the lock its own
        return probe.stat().st_mtime - path.stat().st_mtime > STALE
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)
