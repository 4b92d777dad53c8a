"""What results say, read once: a cache of what a report needs of every finished training, by key and edition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.index import Done
from harness.rows import rows_of
from harness.sealed import keep_note, read_note
from harness.store import Store, is_number

VERSION = 2
CURVES = ("train_loss", "train_accuracy", "dev_accuracy", "test_accuracy", "ghosts")
"""What is kept of every epoch."""
DIGITS = 6
"""Significant digits of a curve's numbers; those of results are kept whole."""


@dataclass(frozen=True)
class Measured:
    """A training's published result, and its learning curves."""

    edition: int
    sha256: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    stamp: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    """Parent stage key -> SHA-256 of the artifact that was read."""
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """By name, a value an epoch; None where none was measured."""


def read_measured(
    store: Store, name: str, done: Mapping[str, Done], keys: Iterable[str], rebuild: bool = False, keep: bool = True
) -> dict[str, Measured]:
    """Return what the finished ones of some trainings measured; only results that are new since are read.

    With `rebuild` nothing that was kept is believed; without `keep` the cache is left as it is.
    """
    path = store.root / "cache" / "measured" / f"{name}.json"
    known = {} if rebuild else _read(path)
    found: dict[str, Measured] = {}
    fresh = False
    for key in dict.fromkeys(keys):
        if key not in done:
            continue
        had = known.get(key)
        if had is not None and (had.edition, had.sha256) == (done[key].edition, done[key].sha256):
            found[key] = had
        elif (measured := measure(store, key)) is not None:
            found[key], fresh = measured, True
    if fresh and keep:
        kept = {**known, **found}  # a part of a sweep forgets nothing of the rest
        keep_note(path, {"version": VERSION, "measured": {key: vars(measured) for key, measured in kept.items()}})
    return found


def _read(path: Path) -> dict[str, Measured]:
    body = read_note(path) or {}
    if body.get("version") != VERSION:
        return {}
    return {key: Measured(**kept) for key, kept in body["measured"].items()}


def measure(store: Store, key: str) -> Measured | None:
    """Read what a training's newest result says; None where it has none."""
    folder = store.folder("train", key)
    result = folder.result()
    if result is None:
        return None
    rows = rows_of(folder)
    return Measured(
        result.edition,
        result.artifact.sha256,
        result.metrics,
        result.stamp,
        result.provenance,
        result.parents,
        {name: [_short(row.get(name)) for row in rows] for name in CURVES if any(name in row for row in rows)},
    )


def _short(value: object) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, bool) or is_number(value) else None
