"""What the tests of faults share: how much of them is wanted, and the record that docs/reliability.md is made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

FULL = os.environ.get("CHAOS") == "full"
"""Whether `make chaos` asks for everything, and not `.ci/run` for a short form of it."""


T = TypeVar("T")


def amount(short: T, full: T) -> T:
    """Return how much of something, or what of it, is wanted."""
    return full if FULL else short


@dataclass
class Fault:
    """A row of the table: a fault, how often it was injected, and what became of results."""

    area: str
    fault: str
    injected: int
    found: str
    """How it shows, and what is done then."""
    lost: int = 0
    """Finished results that were gone, or that nothing brought back."""
    wrong: int = 0
    """Results that differ from an undisturbed run's, or damaged ones that were used."""


@dataclass
class Record:
    """What one test has injected."""

    area: str
    rows: list[Fault] = field(default_factory=list)

    def note(self, fault: str, injected: int, found: str, *, lost: int = 0, wrong: int = 0) -> None:
        """Add a row. The test asserts that `lost` and `wrong` are 0, after this, so that a failure is told too."""
        self.rows.append(Fault(self.area, fault, injected, found, lost, wrong))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Collect rows; they go to the file that $CHAOS_RECORD names, where it does, with the test's name."""
    module = request.module.__doc__ or ""
    kept = Record(getattr(request.module, "AREA", module.partition(":")[0]))
    yield kept
    if path := os.environ.get("CHAOS_RECORD"):
        test = request.node.nodeid.partition("[")[0]
        with Path(path).open("a") as file:
            for row in kept.rows:
                file.write(json.dumps({**asdict(row), "test": test, "full": FULL}) + "\n")
