"""The forecast of a plan: compute time, wall time for some slots, disk and files, each with an interval."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.cell import Cell
from harness.costs import FILES, LEVELS, Costs, Estimate
from harness.plan import Plan


@dataclass(frozen=True)
class Forecast:
    """What the stages of a plan that are still to be run will take. Times are in seconds: (low, middle, high)."""

    work: tuple[float, float, float]
    wall: tuple[float, float, float]
    chain: float
    """The longest chain of stages that must follow one another: no number of slots makes it shorter."""
    slots: int
    bytes: int
    files: int
    unknown: Mapping[str, int]
    """Stages of each kind whose time nothing is known of; they are left out of all sums."""
    unsized: int
    """Stages whose artifact's size is not known."""
    basis: Mapping[str, int]
    """How many estimates rest on what likeness."""

    def dump(self) -> dict[str, Any]:
        """Return the forecast as it is written to a file."""
        return asdict(self)


def forecast(plan: Plan, todo: Sequence[str], costs: Costs, slots: int) -> Forecast:
    """Add up the estimates of the stages to run, and lay them out over slots, long chains first."""
    estimates = {key: costs.estimate(plan.stages[key]) for key in todo}
    known = {key: estimate for key, estimate in estimates.items() if estimate is not None}
    sizes = {key: costs.bytes(plan.stages[key]) for key in todo}
    mids = {key: estimate.mid for key, estimate in known.items()}
    tails = _tails(plan, todo, mids)
    return Forecast(
        work=_three(known.values()),
        wall=(
            _wall(plan, todo, {k: e.low for k, e in known.items()}, tails, slots),
            _wall(plan, todo, mids, tails, slots),
            _wall(plan, todo, {k: e.high for k, e in known.items()}, tails, slots),
        ),
        chain=max(tails.values(), default=0.0),
        slots=slots,
        bytes=sum(size for size in sizes.values() if size is not None),
        files=sum(FILES[plan.stages[key].kind] for key in todo),
        unknown=dict(Counter(plan.stages[key].kind for key in todo if key not in known)),
        unsized=sum(size is None for size in sizes.values()),
        basis=dict(Counter(LEVELS[estimate.level] for estimate in known.values())),
    )


def _three(estimates: Any) -> tuple[float, float, float]:
    listed: list[Estimate] = list(estimates)
    return sum(e.low for e in listed), sum(e.mid for e in listed), sum(e.high for e in listed)


def _tails(plan: Plan, todo: Sequence[str], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return for each stage the time of the longest way from its start down to a cell."""
    tails = dict.fromkeys(todo, 0.0)
    wanted = set(todo)
    for key in reversed(todo):  # parents stand before their children
        tails[key] += seconds.get(key, 0.0)
        for parent in plan.stages[key].parents.values():
            if parent in wanted:
                tails[parent] = max(tails[parent], tails[key])
    return tails


def _wall(
    plan: Plan, todo: Sequence[str], seconds: Mapping[str, float], tails: Mapping[str, float], slots: int
) -> float:
    """Return when the last stage ends if every free slot takes the ready stage with the longest tail."""
    wanted = set(todo)
    waiting = {key: sum(p in wanted for p in plan.stages[key].parents.values()) for key in todo}
    children: dict[str, list[str]] = {}
    for key in todo:
        for parent in plan.stages[key].parents.values():
            if parent in wanted:
                children.setdefault(parent, []).append(key)
    ready = [(-tails[key], key) for key in todo if not waiting[key]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, key = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds.get(key, 0.0), key))
        now, done = heapq.heappop(running)
        for child in children.get(done, ()):
            waiting[child] -= 1
            if not waiting[child]:
                heapq.heappush(ready, (-tails[child], child))
    return now


def within(
    cells: Sequence[tuple[Cell, str]], plan: Plan, todo: Sequence[str], costs: Costs, budget: float
) -> tuple[list[tuple[Cell, str]], float]:
    """Return the cells that fit into a budget of seconds, taken in grid order, and what they cost together.

    What cells share is counted once. The upper end of each estimate counts; a cell with a stage that nothing is known
    of does not fit, since nobody could promise that it does.
    """
    paid: set[str] = set()
    wanted, chosen, spent = set(todo), [], 0.0
    for cell, key in cells:
        needed = [k for k in plan.ancestors(key) if k in wanted and k not in paid]
        estimates = [costs.estimate(plan.stages[k]) for k in needed]
        price = sum(e.high for e in estimates if e is not None)
        if any(e is None for e in estimates) or spent + price > budget:
            continue
        spent += price
        paid.update(needed)
        chosen.append((cell, key))
    return chosen, spent
