"""A stage's lives: attempts that continue one another, each life one run of the mirror, and the rows it may show."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.rows import rows_of_attempt
from harness.states import FAILED
from harness.store import Folder, Result

CHECKPOINTS = "checkpoint-*.safetensors"
LONGEST_HEADER = 100_000_000
"""Bytes: what safetensors itself accepts."""


@dataclass(frozen=True)
class Life:
    """Generations that continue one another, and how they ended."""

    first: int
    last: int
    current: bool
    """Whether what the stage is now came of it; else it is superseded."""
    result: Result | None = None
    end: Mapping[str, Any] | None = None
    """How its last generation ended, where it failed or died."""

    @property
    def generations(self) -> range:
        """Return its generations, the newest first."""
        return range(self.last, self.first - 1, -1)

    @property
    def over(self) -> bool:
        """Return whether nothing more is added to it."""
        return not self.current or self.result is not None or (self.end or {}).get("outcome") in FAILED


def lives_of(folder: Folder) -> list[Life]:
    """Return a stage's lives, oldest first.

    A life ends where an attempt failed or published, where somebody asked for another try, and where the next attempt
    did not go on from it: its first row is another. An attempt that only brought an artifact's file back is none, and
    what is being made anew is none until it publishes.
    """
    usual = max(1, folder.generation)
    results = {int(result.provenance.get("generation", usual)): result for result in folder.results()}
    newest = max(results, default=0)
    ends = {n: folder.end(n) or {} for n in range(1, max(folder.generation, newest) + 1)}
    chains: list[list[int]] = []
    goes_on, row = False, None
    for n, end in ends.items():
        if end.get("released") or end.get("outcome") == "restored":
            goes_on = False
            continue
        began = next(rows_of_attempt(folder, n), None)
        if goes_on and (row is None or began is None or began == row):
            chains[-1].append(n)
            row = began if row is None else row
        else:
            chains.append([n])
            row = began
        goes_on = n not in results and end.get("outcome") not in FAILED
    shown = [chain for chain in chains if not newest or chain[-1] <= newest]
    return [
        Life(
            chain[0],
            chain[-1],
            chain[-1] == newest if newest else chain is shown[-1],
            results.get(chain[-1]),
            _bad(ends[chain[-1]]) if chain[-1] not in results else None,
        )
        for chain in shown
    ]


def _bad(end: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return end if end.get("outcome") in (*FAILED, "died", "fault") else None


def rows_of_life(folder: Folder, life: Life) -> list[dict[str, Any]]:
    """Return the rows of a life that will not change any more.

    Of one that is over, all of them. Of one that goes on, those of its newest attempt that a checkpoint holds too:
    what came after it is done again. An attempt writes the rows that it inherits first, so that a checkpoint which an
    overtaken worker still wrote is not believed.
    """
    if life.result:
        return list(rows_of_attempt(folder, life.last))
    newest = next((rows for n in life.generations if (rows := list(rows_of_attempt(folder, n)))), [])
    if life.over or not newest:
        return newest
    saved = itertools.chain(*(folder.attempt(n).glob(CHECKPOINTS) for n in life.generations))
    return newest[: max((_agree(newest, rows_of_checkpoint(path)) for path in saved), default=0)]


def _agree(rows: Sequence[Any], others: Sequence[Any]) -> int:
    """Return how many rows two lists begin with in common."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(rows, others, strict=False))
    return sum(1 for _ in same)


def checkpoints(folder: Folder) -> list[str]:
    """Return the names of a stage's checkpoints, which change with every one that is written."""
    return sorted(path.name for path in folder.path.glob(f"attempt-*/{CHECKPOINTS}"))


def rows_of_checkpoint(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a checkpoint holds, from its header alone; none where it is gone or cannot be read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < LONGEST_HEADER else {}
        return list(json.loads(header["__metadata__"]["position"])["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
