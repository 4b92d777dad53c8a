"""A stage's attempts: which of them continue one another, and which rows of theirs will not change any more."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from harness.rows import rows_of_attempt
from harness.states import FAILED
from harness.store import Folder, Result

CHECKPOINTS = "checkpoint-*.safetensors"


@dataclass(frozen=True)
class AttemptChain:
    """Attempts of a stage that continue one another, which are one run; and how they ended."""

    first: int
    last: int
    current: bool
    """Whether the stage's state or result is its; else it is superseded."""
    result: Result | None = None
    end: Mapping[str, Any] | None = None
    """How its last attempt ended, where it failed or died."""

    @property
    def attempts(self) -> range:
        """Return its attempts, the newest first."""
        return range(self.last, self.first - 1, -1)

    @property
    def final(self) -> bool:
        """Return whether nothing more is added to it."""
        return not self.current or self.result is not None or (self.end or {}).get("outcome") in FAILED


def attempt_chains(folder: Folder) -> list[AttemptChain]:
    """Return a stage's chains of attempts, oldest first.

    A chain ends where an attempt failed or published, where a retry was asked for, and where the next attempt's first
    row is another: it did not go on from a checkpoint. An attempt that only restored an artifact's file is in none;
    what is being made anew is shown once it publishes.
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
        AttemptChain(
            chain[0],
            chain[-1],
            chain[-1] == newest if newest else chain is shown[-1],
            results.get(chain[-1]),
            _bad_end(ends[chain[-1]]) if chain[-1] not in results else None,
        )
        for chain in shown
    ]


def _bad_end(end: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return end if end.get("outcome") in (*FAILED, "died", "fault") else None


def settled_rows(folder: Folder, chain: AttemptChain, ended: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a chain that will not change any more.

    Of a final one, and where the stage has `ended`, all. Of one that goes on, those of its newest attempt that a
    checkpoint holds too: what came after it is done again. An attempt writes the rows that it inherits first, so that a
    checkpoint which an overtaken worker still wrote is not believed.
    """
    if chain.result:
        return list(rows_of_attempt(folder, chain.last))
    newest = next((rows for n in chain.attempts if (rows := list(rows_of_attempt(folder, n)))), [])
    if chain.final or ended or not newest:
        return newest
    saved = itertools.chain(*(folder.attempt(n).glob(CHECKPOINTS) for n in chain.attempts))
    return newest[: max((_common(newest, checkpoint_rows(path)) for path in saved), default=0)]


def _common(rows: Sequence[Any], others: Sequence[Any]) -> int:
    """Return how many rows two lists begin with in common."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(rows, others, strict=False))
    return sum(1 for _ in same)


def checkpoint_names(folder: Folder) -> list[str]:
    """Return the names of a stage's checkpoints, which change with every one that is written."""
    return sorted(path.name for path in folder.path.glob(f"attempt-*/{CHECKPOINTS}"))


def checkpoint_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a checkpoint holds, from its header alone; none where it is gone or cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return list(json.loads(file.metadata()["position"])["rows"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return []
