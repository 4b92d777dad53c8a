"""Ways in which a file may be damaged: each does it, by a draw, and says what it did."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.conftest import Record, amount

Damage = Callable[[Path, random.Random], str]


def truncate(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    length = draw.randrange(len(data))
    path.write_bytes(data[:length])
    return f"cut to {length} of {len(data)} bytes"


def flip(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))
    return f"bit {bit} of byte {place} flipped"


def empty(path: Path, draw: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def delete(path: Path, draw: random.Random) -> str:
    path.unlink()
    return "deleted"


def folder(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("of somebody's")
    return "replaced by a folder"


def garbage(path: Path, draw: random.Random) -> str:
    size = path.stat().st_size
    path.write_bytes(draw.randbytes(size))
    return f"replaced by {size} random bytes"


FOLDER = "a folder in its place"
DAMAGES: Mapping[str, Damage] = {
    "truncated": truncate,
    "a bit flipped": flip,
    "emptied": empty,
    "deleted": delete,
    FOLDER: folder,
    "random bytes": garbage,
}
CHANGES_SIZE = ("truncated", "emptied", "deleted")
"""Damages that show without a file being read: it has another size, or is not there."""
DRAWN = ("truncated", "a bit flipped", "random bytes")
"""Damages that differ from draw to draw."""


@dataclass
class Tally:
    """What became of many damages of one kind of file."""

    kind: str
    injected: int = 0
    lost: int = 0
    wrong: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, what: str, lost: int, wrong: int, said: object, *, well: bool = True) -> None:
        """Count one damage, and keep what was said where it did not end well."""
        self.injected += 1
        self.lost += lost
        self.wrong += wrong
        if lost or wrong or not well:
            self.bad.append(f"{what}: {said}")

    def note(self, record: Record, found: str) -> None:
        """Add the row of the table, and fail where anything was lost, wrong, or not as it should be."""
        record.note(f"{self.kind}, damaged in six ways", self.injected, found, lost=self.lost, wrong=self.wrong)
        assert (self.lost, self.wrong) == (0, 0), self.bad[:3]
        assert not self.bad, self.bad[:3]


def draws(kind: str) -> Iterator[tuple[str, random.Random]]:
    """Yield damages with a source of chance of their own: in full all, those that differ from draw to draw often."""
    some = random.Random(f"some for {kind}").sample(list(DAMAGES), amount(2, len(DAMAGES)))
    for name in some:
        for number in range(amount(1, 12) if name in DRAWN else 1):
            yield name, random.Random(f"{kind} {name} {number}")


def undo_folder(path: Path) -> None:
    """Remove a folder that is in a file's place, as whoever is told of it would."""
    shutil.rmtree(path)
