"""Orders: what a trainer is told of a stage, with its parents' artifacts as the store has them now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.frontier import Frontier
from harness.plan import Stage
from harness.store import Store


def artifacts(frontier: Frontier, stage: Stage) -> dict[str, tuple[str, str]] | None:
    """Return role -> (path, SHA-256) of the parents' artifacts; None where one of them is gone."""
    found = {}
    for role, key in stage.parents.items():
        result = frontier.result(key, with_artifact=True)
        if result is None:
            return None
        folder = frontier.store.path(frontier.plan.stages[key].kind, key)
        found[role] = (str(folder / result.artifact.file), result.artifact.sha256)
    return found


def order_for(
    stage: Stage, store: Store, attempt: Path, earlier: Iterable[Path], parents: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """Return the order for a stage in a folder; device, threads and the like are the caller's to add."""
    return {
        "key": stage.key,
        "kind": stage.kind,
        "spec": dict(stage.spec),
        "store": str(store.root),
        "attempt": str(attempt),
        "earlier": [str(path) for path in earlier],
        "parents": dict(parents),
        "place": stage.place,
    }
