"""From a wish to a publisher at work: the server probed, the lease taken, what a killed one left behind ended."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.store import Store
from harness.track.delivery import Delivery
from harness.track.desk import Desk, Stalled, end_left_over
from harness.track.ledger import acquire
from harness.track.publisher import Progress, Publisher
from harness.track.target import Target, Wish

PROBE = 40.0
"""Seconds that loading wandb and asking the server may take."""
LOG = "log"


class Unreachable(Exception):
    """Nothing can be sent now, for a reason."""


def find_target(wish: Wish, mode: str) -> Target:
    """Ask the server whose project it is. Raises Unreachable where nothing can be sent, or is not to be."""
    desk = Desk("online")
    try:
        answer = desk.ask(PROBE, do="probe", mode=mode, entity=wish.entity)
    except Stalled as error:
        raise Unreachable(str(error)) from None
    finally:
        desk.close()
    if not answer.get("online"):
        raise Unreachable(str(answer.get("why") or answer.get("error")))
    return Target(str(answer["host"]), str(answer["entity"]), wish.project)


@contextlib.contextmanager
def publisher(
    store: Store, wish: Wish, target: Target, say: Callable[[str], None], waits: Callable[[], bool] = lambda: False
) -> Iterator[Publisher]:
    """Hold a target's lease while the block runs.

    Raises UserError where another process publishes there, and `waits` says not to wait.
    """
    folder = target.folder(store)
    lease = acquire(folder, waits, say)
    try:
        end_left_over(folder)
        delivery = Delivery(folder, target.entity, bool(target.host))
        try:
            yield Publisher(store, wish, target, folder, lease, delivery, logged(folder, say))
        finally:
            delivery.close()
    finally:
        lease.release()


def logged(folder: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a way to say something that is kept beside the mirror too: who listens may be gone."""

    def speak(sentence: str) -> None:
        with contextlib.suppress(OSError), (folder / LOG).open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {sentence}\n")
        with contextlib.suppress(OSError):
            say(sentence)

    return speak


def follow(work: Publisher, leave: Callable[[], bool], wait: Callable[[float], None], patience: float) -> Progress:
    """Publish until all is over and has come; asked to leave, until what there is has come, or patience ends.

    `patience`: passes in a row that may bring not everything once there is nothing else to wait for.
    """
    while True:
        leaving = leave()
        progress = work.one_pass(rebuild=leaving)
        nothing_else = leaving or (progress.left == 0 and not progress.fault)
        enough = progress.complete or work.faults >= patience or work.refusals >= patience
        if not work.lease.held or (nothing_else and enough):
            return progress
        wait(max(work.pause, 0.0 if leaving else look_every(progress)))


def drop_offline(work: Publisher) -> None:
    """Remove the offline folders of runs that have come: synced by hand they would append every row once more."""
    kept = Target("", "", work.target.project).folder(work.store) / "offline" / "wandb"
    sent = {run for entry in work.ledger.entries.values() for run, shown in entry.runs.items() if shown.digest}
    for folder in kept.glob("offline-run-*") if kept.is_dir() else ():
        if folder.name.split("-", 3)[-1] in sent:
            shutil.rmtree(folder, ignore_errors=True)


def look_every(progress: Progress) -> float:
    """Return the seconds between two looks at the store: more where there is more to look at."""
    return min(60.0, 5.0 + progress.stages / 200)
