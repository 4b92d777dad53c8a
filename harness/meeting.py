"""Two hosts on one store: who wins a name that both want, and how soon each sees what the other wrote."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.semantics import create, link
from harness.store import write_whole

PLACE = ".doctor"
NAMES = 100
"""Names of each sort that both want."""
ROUNDS = 3
"""Times that each way of seeing is timed in each direction."""
PATIENCE = 120.0
"""Seconds that one waits for the other, at the meeting and at every step after it."""
LOOK = 0.002


def rename(path: Path) -> bool:
    """Take a file that both want by renaming it, as a broken-off turn is taken; return whether this call did."""
    own = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        os.rename(path, own)
    except FileNotFoundError:
        return own.exists()  # NFS: the reply was lost, and the repeated call found it gone
    return True


WANTED: Mapping[str, Callable[[Path], bool]] = {"O_EXCL": create, "link": link, "rename": rename}
SEEN = ("by name", "in a listing", "by its growth")
"""How a worker sees what another did: a newer claim, a new result, a heartbeat."""


@dataclass
class Met:
    """What two hosts found out together."""

    other: str
    """The other one's host name."""
    twice: dict[str, int] = field(default_factory=dict)
    """Sort of name -> how many both took for their own."""
    never: dict[str, int] = field(default_factory=dict)
    """Sort of name -> how many neither got."""
    delays: dict[str, float] = field(default_factory=dict)
    """How one sees the other's work -> the most seconds it took, there and back."""


def meet(store: Path, patience: float = PATIENCE) -> Met:
    """Meet whoever runs the same command on another host; return what both found out.

    Raises UserError where nobody comes, or the other one leaves; OSError where the store cannot be written.
    """
    place = store / PLACE
    place.mkdir(parents=True, exist_ok=True)
    own = f"{uuid.uuid4().hex[:12]}-{os.getpid()}-{socket.gethostname().replace('/', '_')}"
    write_whole(place / own, b"")
    try:
        pair = _find(place, own, patience)
        side = _Side(place / "+".join(name[:12] for name in pair), pair.index(own), patience)
        met = Met(pair[1 - side.number].split("-", 2)[2])
        side.folder.mkdir(exist_ok=True)
        for what, attempt in WANTED.items():
            side.contend(met, what, attempt)
        for way in SEEN:
            side.measure(met, way)
        if side.number:
            side.tell("done")
        else:
            side.hear("done")
            shutil.rmtree(side.folder, ignore_errors=True)
        return met
    finally:
        (place / own).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.rmdir()


def _find(place: Path, own: str, patience: float) -> list[str]:
    """Wait for another one that lives: its file grows while one looks, or names us. Return both names in order."""
    deadline, known = time.monotonic() + patience, dict[str, bytes]()
    while time.monotonic() < deadline:
        _say(place / own, ".")
        for name in sorted(os.listdir(place)):
            if name == own or name.count("-") < 2 or name.startswith("."):
                continue
            with contextlib.suppress(OSError):
                said = (place / name).read_bytes()
                if known.setdefault(name, said) != said or own.encode() in said:
                    _say(place / own, name)
                    return sorted([own, name])
        time.sleep(0.05)
    raise UserError(
        f"nobody came to {place} within {patience:.0f} s; run the same command on the other host at the same time"
    )


def _say(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


@dataclass
class _Side:
    """One of the two, and the folder in which they work."""

    folder: Path
    number: int
    patience: float

    def wait(self, what: str, there: Callable[[], bool]) -> float:
        """Wait until something is there; return the seconds it took. Raises UserError where it never is."""
        began = time.monotonic()
        while not there():
            if time.monotonic() - began > self.patience:
                raise UserError(f"the other host has left, or what it wrote is never seen here ({what}); try again")
            time.sleep(LOOK)
        return time.monotonic() - began

    def tell(self, what: str, body: Any = None) -> None:
        """Write a file of one's own."""
        write_whole(self.folder / f"{what}.{self.number}", json.dumps(body).encode())

    def hear(self, what: str) -> Any:
        """Return what the other one wrote, as soon as it is seen."""
        path = self.folder / f"{what}.{1 - self.number}"
        self.wait(what, lambda: path.name in os.listdir(self.folder) and path.exists())
        return json.loads(path.read_bytes())

    def step(self, what: str, body: Any = None) -> Any:
        """Wait until both are here; return what the other one brought."""
        self.tell(what, body)
        return self.hear(what)

    def contend(self, met: Met, what: str, attempt: Callable[[Path], bool]) -> None:
        """Want the same names as the other one, and compare who has which."""
        paths = [self.folder / f"{what}-{number}" for number in range(NAMES)]
        for path in paths if what == "rename" and self.number == 0 else ():
            path.write_bytes(b"")
        self.step(f"{what}-ready")
        mine = {number for number, path in enumerate(paths) if attempt(path)}
        theirs = set(self.step(f"{what}-won", sorted(mine)))
        met.twice[what], met.never[what] = len(mine & theirs), NAMES - len(mine | theirs)

    def measure(self, met: Met, way: str) -> None:
        """Time how long the other one's work takes to be seen, there and back: clocks need not agree for that."""
        self.step(f"{way}-ready")
        seen = [self.ping(way, number) for number in range(ROUNDS)]
        met.delays[way] = max(*seen, *self.step(f"{way}-seen", seen))

    def ping(self, way: str, number: int) -> float:
        """Do something that the other one waits for, and wait for its answer; or answer first, and then ask."""
        one, two = (self.folder / f"{way}-{side}" for side in range(2))
        took = 0.0
        for asks in range(2):
            mine, theirs = (one, two) if self.number == 0 else (two, one)
            if self.number == asks:
                began = time.monotonic()
                self._do(way, mine, 2 * number + asks)
                self.wait(way, self._sight(way, theirs, 2 * number + asks))
                took = time.monotonic() - began
            else:
                self.wait(way, self._sight(way, theirs, 2 * number + asks))
                self._do(way, mine, 2 * number + asks)
        return took

    def _do(self, way: str, path: Path, number: int) -> None:
        if way == SEEN[2]:
            with open(path, "ab") as file:
                file.write(b".")
        else:
            path.with_name(f"{path.name}-{number}").touch()

    def _sight(self, way: str, path: Path, number: int) -> Callable[[], bool]:
        """Return what looks whether the other one has done its part."""
        named = path.with_name(f"{path.name}-{number}")
        if way == SEEN[0]:
            return named.exists
        if way == SEEN[1]:
            return lambda: named.name in os.listdir(self.folder)

        def grown() -> bool:
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                return os.fstat(file.fileno()).st_size > number
            return False

        return grown


def judged(met: Met, lease: float, beats: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and how bad it is, of what two hosts found out; nothing where all is well."""
    for what, twice in met.twice.items():
        if twice:
            yield "bad", f"{what}: {twice} of {NAMES} names were taken by both hosts"
        if met.never[what]:
            yield "bad", f"{what}: {met.never[what]} of {NAMES} names could be taken by neither host"
    for way, seconds in met.delays.items():
        if seconds > lease / 2:
            yield "bad", f"what one host writes is seen by the other, {way}, after up to {seconds:.0f} s"
        elif seconds > lease / beats:
            yield "note", f"what one host writes is seen by the other, {way}, after up to {seconds:.0f} s"
