"""Claims as they were registered, and the analysis of each: files in the store that are never changed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.declared import Claim
from harness.facts import Facts
from harness.planfile import SavedPlan
from harness.sealed import seal, unseal
from harness.store import Store, digest, publish, read_json

UNSAID = ("seed", "ticket_seed", "world")
"""Axes that do not tell one claim from another."""
SHOWN = 12
"""Hex digits of a claim's hash."""


@dataclass(frozen=True)
class Registered:
    """A claim's record: what was said, when, and how many of its cells had a result by then."""

    claim: Claim
    hash: str
    folder: Path
    record: Mapping[str, Any]
    """Empty where nothing was registered yet."""

    @property
    def seeds(self) -> list[str]:
        """Return the seeds that it is decided with."""
        return [str(seed) for seed in self.record.get("seeds", ())]

    @property
    def analysis(self) -> Mapping[str, Any] | None:
        """Return its analysis, where it was made."""
        found = _read(self._analysis)
        return found if {"verdict", "effect", "data"} <= set(found) else None

    def keep(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write its analysis down for good and return it; of two made at once, both return the one written first."""
        body = {"date": now(), "seeds": self.claim.seeds, **said}
        publish(self._analysis, seal(body))
        return self.analysis or body

    @property
    def _analysis(self) -> Path:
        return self.folder / f"look-{self.claim.seeds:04d}.json"


def now() -> str:
    """Return the time as records hold it, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def members(saved: SavedPlan, claim: Claim) -> list[tuple[dict[str, str], str, Facts]]:
    """Return a claim's cells, as axis -> label, with their keys and facts."""
    cells = (saved.cells[n] for n in saved.declared.members.get(claim.name, []))
    return [(dict(zip(saved.axes, cell.labels, strict=True)), cell.key, cell.facts) for cell in cells]


def _seeds(saved: SavedPlan, claim: Claim) -> list[int]:
    """Return the seeds that a claim is planned with: the first ones."""
    return sorted({int(labels["seed"]) for labels, _, _ in members(saved, claim)})[: claim.seeds]


def registered(saved: SavedPlan, store: Store) -> list[Registered]:
    """Return a sweep's claims with their records, where they have any.

    A claim's hash is of all that it says and of its cells with their protocols, those of the planned seeds: a wider or
    narrower grid, or a longer training, makes another claim; more seeds do not.
    """
    found = []
    for claim in saved.declared.claims:
        planned = {str(seed) for seed in _seeds(saved, claim)}
        cells = {
            digest([{k: v for k, v in labels.items() if k != "world"}, facts.protocol, facts.dev])
            for labels, _, facts in members(saved, claim)
            if labels["seed"] in planned
        }
        # `looks`, interim analyses, was a field once: what is hashed has it still, so that no registration is lost
        body = {"claim": {**claim.model_dump(mode="json"), "looks": []}, "cells": sorted(cells)}
        name = digest(body)[:SHOWN]
        folder = store.sweep(saved.plan.name) / "claims" / f"{claim.name}-{name}"
        found.append(Registered(claim, name, folder, _read(folder / "registered.json")))
    return found


def register(saved: SavedPlan, store: Store) -> list[Registered]:
    """Register the claims of a whole sweep that are not yet; return those that were registered by this call."""
    made = []
    for one in registered(saved, store):
        if one.record:
            continue
        cells = members(saved, one.claim)
        record = {
            "claim": one.claim.model_dump(mode="json"),
            "hash": one.hash,
            "date": now(),
            "cells": len(cells),
            "results": sum(store.folder("train", key).result() is not None for _, key, _ in cells),
            "seeds": _seeds(saved, one.claim),
            "source": saved.source,
        }
        one.folder.mkdir(parents=True, exist_ok=True)
        publish(one.folder / "registered.json", seal(record))
        made.append(Registered(one.claim, one.hash, one.folder, _read(one.folder / "registered.json") or record))
    return made


def replaced(saved: SavedPlan, store: Store) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Yield the records of claims that were registered once and that the file has no more, with their analyses.

    One that was registered with interim analyses, by an earlier version, is among them and may have several.
    """
    current = {one.folder.name for one in registered(saved, store)}
    for folder in sorted((store.sweep(saved.plan.name) / "claims").glob("*")):
        record = _read(folder / "registered.json")
        if folder.name not in current and record:
            yield record, [look for path in sorted(folder.glob("look-*.json")) if (look := _read(path))]


def _read(path: Path) -> Mapping[str, Any]:
    """Return a record, nothing where it is gone or damaged; those of old have no checksum, and a line for each key."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    with contextlib.suppress(ValueError):
        return unseal(data)
    return (read_json(path) or {}) if data.startswith(b"{\n") else {}
