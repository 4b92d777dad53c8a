"""Failures in groups: by what they died of, with the cells that each group holds back and what those have in common."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from harness.conditions import Condition, smallest_condition
from harness.index import Standing
from harness.planfile import SavedPlan
from harness.states import FAILED
from harness.store import Store

REMEDIES = {
    "oom": "it is tried again by a worker with more memory; or lower `workers`, then --retry oom",
    "device": "another machine may do it: --retry device",
    "died": "its trainer was ended from outside, or crashed: --retry died",
    "code": "mend the code, then --retry code",
    "input": "mend what it names, then --retry input",
    "diverged": "a loss or gradient became infinite: that is its result; another lr or warmup is another cell",
}


@dataclass
class Group:
    """Stages that failed for the same reason."""

    cause: str
    message: str
    """The reason, its numbers and paths left out."""
    example: str
    stages: list[str] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """The places, among the plan's cells, of those that a stage of this group is or holds back."""
    condition: Condition | None = None
    log: str = ""


def normalised(message: str) -> str:
    """Return a message without what differs from one failure to the next: numbers, addresses, paths, keys."""
    text = message.splitlines()[0] if message else ""
    text = re.sub(r"(?:/[\w.@+-]+){2,}/?", "PATH", text)
    text = re.sub(r"\b(?:0x)?[0-9a-f]{8,}\b", "HEX", text)
    return re.sub(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "N", text)


def group_failures(saved: SavedPlan, store: Store, standing: Standing) -> list[Group]:
    """Group what failed by cause and message, the group that holds most cells first."""
    blocked = standing.blocked(saved.plan)
    groups: dict[tuple[str, str], Group] = {}
    of_stage: dict[str, Group] = {}
    for key, state in standing.states.items():
        if state.name not in FAILED:
            continue
        cause = state.cause or state.name
        name = (cause, normalised(state.detail))
        if name not in groups:
            stage = saved.plan.stages[key]
            log = store.folder(stage.kind, key).attempt(state.generation) / "log"
            groups[name] = Group(cause, name[1], f"{stage.label}: {state.detail}", log=str(log) if log.exists() else "")
        groups[name].stages.append(key)
        of_stage[key] = groups[name]
    for place, cell in enumerate(saved.cells):
        if blocked.get(cell.key) in of_stage:
            of_stage[blocked[cell.key]].cells.append(place)
    if groups:
        cells = [cell for cell, _ in saved.places()]
        axes = [axis for axis in saved.axes if axis != "ticket_seed" or _own(cells)]
        for group in groups.values():
            group.condition = smallest_condition(axes, cells, group.cells) if group.cells else None
    return sorted(groups.values(), key=lambda group: -len(group.cells))


def _own(cells: list[dict[str, str]]) -> bool:
    """Return whether tickets have seeds of their own, and not just the cells'."""
    seen: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        seen[cell["seed"]].add(cell["ticket_seed"])
    return any(tickets != {seed} for seed, tickets in seen.items())
