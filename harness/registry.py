"""Claims as they were registered, and every look taken at them: files in the store that are never changed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.declared import Claim
from harness.planfile import SavedPlan
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

    def look(self, seeds: int, said: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the look at so many seeds: as it was taken first, or taken now and written down for good.

        Of two that look at once, the second one sees what the first one wrote.
        """
        path = self.folder / f"look-{seeds:04d}.json"
        if (found := read_json(path)) is None:
            body = {"date": now(), "seeds": seeds, **said()}
            publish(path, json.dumps(body, indent=1).encode())
            found = read_json(path) or body
        return found


def now() -> str:
    """Return the time as records hold it, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def members(saved: SavedPlan, claim: Claim) -> list[tuple[dict[str, str], str]]:
    """Return a claim's cells, as axis -> label, with their keys."""
    places = saved.declared.members.get(claim.name, [])
    return [(dict(zip(saved.axes, saved.cells[n].labels, strict=True)), saved.cells[n].key) for n in places]


def registered(saved: SavedPlan, store: Store) -> list[Registered]:
    """Return a sweep's claims with their records, where they have any.

    A claim's hash is of all that it says and of its cells, seeds left out: a wider grid makes another claim.
    """
    found = []
    for claim in saved.declared.claims:
        cells = {digest({k: v for k, v in labels.items() if k not in UNSAID}) for labels, _ in members(saved, claim)}
        body = {"claim": claim.model_dump(mode="json"), "cells": sorted(cells)}
        name = digest(body)[:SHOWN]
        folder = store.sweep(saved.plan.name) / "claims" / f"{claim.name}-{name}"
        found.append(Registered(claim, name, folder, read_json(folder / "registered.json") or {}))
    return found


def register(saved: SavedPlan, store: Store) -> list[Registered]:
    """Register the claims of a whole sweep that are not yet; return those that were registered by this call."""
    made = []
    for one in registered(saved, store):
        if one.record:
            continue
        cells = members(saved, one.claim)
        seeds = sorted({int(labels["seed"]) for labels, _ in cells})[: one.claim.seeds]
        record = {
            "claim": one.claim.model_dump(mode="json"),
            "hash": one.hash,
            "date": now(),
            "cells": len(cells),
            "results": sum(store.folder("train", key).result() is not None for _, key in cells),
            "seeds": seeds,
            "source": saved.source,
        }
        one.folder.mkdir(parents=True, exist_ok=True)
        publish(one.folder / "registered.json", json.dumps(record, indent=1).encode())
        made.append(Registered(one.claim, one.hash, one.folder, read_json(one.folder / "registered.json") or record))
    return made


def replaced(saved: SavedPlan, store: Store) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Yield the records, with their looks, of claims that were registered once and that the file has no more."""
    current = {one.folder.name for one in registered(saved, store)}
    for folder in sorted((store.sweep(saved.plan.name) / "claims").glob("*")):
        record = read_json(folder / "registered.json")
        if folder.name not in current and record is not None:
            yield record, [look for path in sorted(folder.glob("look-*.json")) if (look := read_json(path))]
