"""How many workers of which size a sweep can use: those that find a stage at once, or after seconds of scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from harness.index import Standing
from harness.launch import Size
from harness.plan import Plan

StepFor = Callable[[int, str], int | None]


def demand(plan: Plan, standing: Standing, step_for: StepFor) -> Counter[Size]:
    """Count by size the stages that run, that are ready, or that wait for nothing but masks, scales and data.

    A stage below an unfinished training is not counted: a worker submitted for it would wait for hours. Nor is one
    that failed, unless for want of memory that a larger worker has.
    """
    wanted: Counter[Size] = Counter()
    late: set[str] = set()
    """Stages below an unfinished training, or below one that failed."""
    short: Counter[Size] = Counter()
    for key, state in standing.states.items():
        stage = plan.stages[key]
        if any(parent in late or _holds(plan, standing, parent) for parent in stage.parents.values()):
            late.add(key)
            continue
        step = step_for(state.memory, state.resource) if state.cause == "oom" else 0
        if state.name == "diverged" or (state.name == "failed" and (state.cause != "oom" or step is None)):
            late.add(key)
        elif stage.kind == "train":
            wanted[Size(stage.world, step or 0)] += 1
        else:
            short[Size(1, step or 0)] += 1
    for size, number in short.items():  # they take seconds, and any worker of that memory runs them
        if not any(other.step == size.step for other in wanted):
            wanted[size] = number
    return wanted


def _holds(plan: Plan, standing: Standing, parent: str) -> bool:
    return parent in standing.states and plan.stages[parent].kind == "train"
