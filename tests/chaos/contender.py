"""Processes that fight for a few stages: each claims, holds for some milliseconds, releases or publishes, and logs."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

from harness.claims import Observer, Owner, take
from harness.store import Folder, Store, publish

STAGES = tuple(f"{number:02d}" * 16 for number in range(10))
HOLD, PAUSE = 0.02, 0.02
"""Seconds at most that a stage is held, and that a contender waits where it found one taken."""


def contend(root: Path, number: int, until: float) -> None:
    """Fight until a time on the clock that all processes share, the monotonic one.

    The log has a line for each thing done, written as it was done: `am PID`; `won STAGE GENERATION TIME`; `left STAGE
    GENERATION TIME`, just before the claim is given up; `published STAGE EDITION`; `late STAGE`, where another was
    first.
    """
    store, observer, draw, pause = Store(root), Observer(), random.Random(number), threading.Event()
    log = os.open(root / f"log-{number:03d}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(*words: object) -> None:
        os.write(log, (" ".join(map(str, words)) + "\n").encode())

    say("am", os.getpid())
    while time.monotonic() < until:
        stage = draw.choice(STAGES)
        folder = store.folder("mask", stage)
        if not _free(folder, observer):
            pause.wait(draw.uniform(0, PAUSE))
            continue
        claim = take(folder, folder.generation, Owner.me())
        if claim is None:
            say("late", stage)
            continue
        say("won", stage, claim.generation, time.monotonic())
        pause.wait(draw.uniform(0, HOLD))
        edition, publishes = claim.base_edition + 1, claim.beat() and draw.random() < 0.1
        if publishes and publish(claim.folder.path / f"result-{edition:04d}.json", str(number).encode()):
            say("published", stage, edition)
        say("left", stage, claim.generation, time.monotonic())
        claim.end("published" if publishes else "stopped")


def _free(folder: Folder, observer: Observer) -> bool:
    newest = folder.generation
    return not newest or folder.end(newest) is not None or observer.lost(folder.claim_path(newest))


def begin(root: Path, number: int, until: float) -> int:
    """Fork a contender; return its process number."""
    if pid := os.fork():
        return pid
    try:
        contend(root, number, until)
    except BaseException as error:
        os.write(2, f"contender {number}: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def main(root: str, processes: str, seconds: str) -> int:
    """Keep so many contenders going for so long, one that is killed replaced; return how many broke."""
    until, place, broken = time.monotonic() + float(seconds), Path(root), 0
    for number in range(begun := int(processes)):
        begin(place, number, until)
    while True:
        try:
            _, status = os.wait()
        except ChildProcessError:
            return broken
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            begin(place, begun, until)
            begun += 1
        broken += code > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
