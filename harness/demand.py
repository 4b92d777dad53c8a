"""How many workers of which size a sweep can use: those that find a stage at once, or after seconds of scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from harness.index import Standing
from harness.launch import Launcher, Size
from harness.plan import Plan
from harness.states import LACKING, State


def demand(
    plan: Plan, standing: Standing, launcher: Launcher, sizes: Mapping[str, Size] | None = None
) -> Counter[Size]:
    """Count by size the stages that run, that are ready, or that wait for nothing but masks, scales and data.

    A stage below an unfinished training is not counted: a worker submitted for it would wait for hours. Nor is one
    that failed, unless for want of memory or time that another worker has. `sizes`: of the workers that run, by job
    number; a stage that runs counts for the size that runs it. What others than the launcher's workers run is theirs,
    but keeps one worker watching, who goes on with it should they die.
    """
    wanted: Counter[Size] = Counter()
    short: Counter[Size] = Counter()
    late, others = set[str](), False
    """Stages below an unfinished training, or below one that failed."""
    for key, state in standing.states.items():
        stage = plan.stages[key]
        above = [parent for parent in stage.parents.values() if parent in standing.states]
        if any(parent in late or plan.stages[parent].kind == "train" for parent in above):
            late.add(key)
            continue
        step = _step(state, launcher)
        if step is None:
            late.add(key)
        elif key in standing.owners and not launcher.serves(standing.owners[key][0]):
            others = True
        elif key in standing.owners and (size := (sizes or {}).get(standing.owners[key][0].job.partition(".")[0])):
            wanted[size] += 1
        elif stage.kind == "train":
            wanted[launcher.size_for(stage.world, step)] += 1
        else:
            short[launcher.size_for(1, step)] += 1
    for size, number in short.items():  # they take seconds, and any worker of that memory runs them
        if not any(other.step == size.step for other in wanted):
            wanted[size] = number
    return wanted or Counter({launcher.size_for(1, 0): int(others)} if others else {})


def _step(state: State, launcher: Launcher) -> int | None:
    """Return the step of memory or time that a stage needs; None where no worker can take it."""
    if not state.over:
        return 0
    return launcher.step_for(state.amount, state.resource) if state.cause in LACKING else None
