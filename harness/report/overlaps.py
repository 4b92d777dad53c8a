"""How much masks have in common, read from the store's artifacts; what was computed once is kept beside them."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from pathlib import Path

from harness.sealed import keep_note, read_note
from harness.store import Store

MOST_READ = 6
"""Masks kept in memory: those of one panel's comparisons."""


class Overlaps:
    """Intersections over union of pairs of masks, by the hashes of their files."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path = store.root / "cache" / "overlaps.json"
        self.known: dict[str, float | None] = (read_note(self.path) or {}).get("overlaps", {})
        self.fresh = False
        self.read: dict[str, Mapping[str, object] | None] = {}

    def mean(self, one: Mapping[str, tuple[str, str]], other: Mapping[str, tuple[str, str]]) -> float | None:
        """Return the mean over the seeds that both have; None where no file is there any more.

        `one`, `other`: seed -> (stage key, SHA-256 of the artifact).
        """
        values = [self.of(one[seed], other[seed]) for seed in one if seed in other]
        there = [value for value in values if value is not None]
        return statistics.fmean(there) if there else None

    def of(self, one: tuple[str, str], other: tuple[str, str]) -> float | None:
        """Return the intersection over union of two masks."""
        if one[1] == other[1]:
            return 1.0
        name = "-".join(sorted((one[1][:32], other[1][:32])))
        if name not in self.known:
            value = self._compute(one, other)
            if value is None:
                return None
            self.known[name], self.fresh = value, True
        return self.known[name]

    def _compute(self, one: tuple[str, str], other: tuple[str, str]) -> float | None:
        import numpy as np

        first, second = self._load(*one), self._load(*other)
        if first is None or second is None or set(first) != set(second):
            return None
        both = either = 0
        for name, mask in first.items():
            a, b = np.asarray(mask) != 0, np.asarray(second[name]) != 0
            if a.shape != b.shape:
                return None
            both += int((a & b).sum())
            either += int((a | b).sum())
        return both / either if either else None

    def _load(self, key: str, sha256: str) -> Mapping[str, object] | None:
        if sha256 not in self.read:
            path: Path = self.store.path("mask", key) / f"{sha256}.safetensors"
            while len(self.read) >= MOST_READ:
                self.read.pop(next(iter(self.read)))
            self.read[sha256] = _load(path, sha256)
        return self.read[sha256]

    def keep(self) -> None:
        """Write down what was computed."""
        if self.fresh:
            keep_note(self.path, {"overlaps": self.known})


def _load(path: Path, sha256: str) -> Mapping[str, object] | None:
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except OSError:
        return None
    return dict(load(data)) if hashlib.sha256(data).hexdigest() == sha256 else None
