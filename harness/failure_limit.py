"""`--stop-after N`: no stage of a sweep is begun any more once N have failed for one cause since the sweep was run.

The limit stands in the sweep's folder, and so does that it was reached: workers heed it, wherever they were started.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.claims import Observer
from harness.index import Standing, stand
from harness.memory import clearly_more
from harness.plan import Plan
from harness.states import FAILED, LACKING, State
from harness.store import Store, publish, read_json, write_whole
from harness.words import count

LIMIT, REACHED = "failure-limit.json", "failure-limit-reached"
NOT_COUNTED = ("cancelled", "diverged")
"""Causes that are nobody's fault: a person's wish, and a training's result."""


def normalised(message: str) -> str:
    """Return a message without what differs from one failure to the next: numbers, addresses, paths, keys."""
    text = message.splitlines()[0] if message else ""
    text = re.sub(r"(?:/[\w.@+-]+){2,}/?", "PATH", text)
    text = re.sub(r"\b(?:0x)?[0-9a-f]{8,}\b", "HEX", text)
    return re.sub(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "N", text)


def reason(state: State) -> tuple[str, str]:
    """Return what a stage failed of: the cause, and the message as failures are grouped by it."""
    return state.cause or state.name, normalised(state.detail)


@dataclass(frozen=True)
class Reached:
    """Why no stage is begun any more."""

    cause: str
    stages: int
    key: str
    """One of the stages that failed of it."""
    example: str
    """That one, with its message."""

    def __str__(self) -> str:
        failed = f"{count(self.stages, 'stage')} failed for one cause ({self.cause}), such as {self.example}"
        return f"{failed}; no more are begun until the sweep command is run again"


def set_limit(plan: Plan, store: Store, observer: Observer, number: int | None, most: Mapping[str, float]) -> None:
    """Set a sweep's limit, or none; what failed before does not count, and a limit that was reached is lifted.

    `most`: what any worker has at most, bytes of `ram` and `gpu`, seconds of `time`; what failed with clearly less is
    tried again.
    """
    folder = store.sweep(plan.name)
    if number is None:
        (folder / LIMIT).unlink(missing_ok=True)
    else:
        states = stand(plan, store, observer, keep=False).states
        before = {key: state.generation for key, state in states.items() if state.name in FAILED}
        folder.mkdir(parents=True, exist_ok=True)
        said = {"number": number, "most": most, "before": before, "run": uuid.uuid4().hex[:8]}
        write_whole(folder / LIMIT, json.dumps(said).encode())
    for path in folder.glob(f"{REACHED}*"):
        path.unlink(missing_ok=True)


def reached(store: Store, name: str) -> Reached | None:
    """Return why no stage of a sweep is begun any more, None where nothing keeps it."""
    folder = store.sweep(name)
    limit = read_json(folder / LIMIT)
    said = read_json(_path(folder, limit)) if limit else None
    return Reached(**said) if said else None


def _path(folder: Path, limit: Mapping[str, Any]) -> Path:
    """Return the file that says that a limit was reached; a worker that still counts by the one before has another."""
    return folder / f"{REACHED}-{limit.get('run', '')}.json"


def check_limit(plan: Plan, store: Store, observer: Observer, standing: Standing | None = None) -> Reached | None:
    """Count failures by cause and message, and write it down where the limit is reached; return what `reached` does."""
    folder = store.sweep(plan.name)
    limit = read_json(folder / LIMIT)
    if limit is None or (found := reached(store, plan.name)) is not None:
        return None if limit is None else found
    states = (standing or stand(plan, store, observer, keep=False)).states
    groups = defaultdict(list)
    for key, state in states.items():
        if _counts(state, limit["most"]) and limit["before"].get(key) != state.generation:
            groups[reason(state)].append(key)
    (cause, _), keys = max(groups.items(), key=lambda group: len(group[1]), default=(("", ""), []))
    if len(keys) < limit["number"]:
        return None
    said = Reached(cause, len(keys), keys[0], f"{plan.stages[keys[0]].label}: {states[keys[0]].detail}")
    publish(_path(folder, limit), json.dumps(asdict(said)).encode())
    return reached(store, plan.name)


def _counts(state: State, most: Mapping[str, float]) -> bool:
    """Return whether a stage failed for good, and by a fault."""
    again = state.cause in LACKING and clearly_more(most.get(state.resource, 0), state.amount)
    return state.name in FAILED and state.cause not in NOT_COUNTED and not again
