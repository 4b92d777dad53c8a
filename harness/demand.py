"""How many workers of which size a sweep can use: those that find a stage to take before they leave idle."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from statistics import median
from typing import Any

from harness.claims import BEATS_PER_LEASE, LEASE
from harness.index import Standing
from harness.launch import Job, Launcher, Size
from harness.plan import Plan, Stage
from harness.states import LACKING, State


def demand(plan: Plan, standing: Standing, launcher: Launcher, jobs: Sequence[Job] = ()) -> Counter[Size]:
    """Count by size the trainings that run on one of `jobs`, that are ready, or that wait for nothing but short stages.

    Masks, scales and data are short where they take less time than a worker with nothing to do stays; any worker runs
    them on the way. Slow ones, and those that wait for a larger worker, count as trainings do, which means that what
    waits for them is not counted: a worker submitted for it would leave idle. Neither is a stage that failed, unless
    for want of memory or time that another worker has. A stage that runs counts for the size of the job that runs it;
    one that others run does not count, and of the trainings below a short one, the one that they will go on with does
    not either.
    """
    durations = Durations(plan, standing)
    wanted, short, groups = Counter[Size](), dict[str, Size](), set[int]()
    barred, taken, others = set[str](), set[str](), False
    """Stages that failed, or take long, or wait for one of those; short ones that others run."""
    for key, state in standing.states.items():
        stage, step = plan.stages[key], _step(state, launcher)
        above = [parent for parent in stage.parents.values() if parent in standing.states]
        if step is None or any(parent in barred for parent in above):
            barred.add(key)
            continue
        slow = stage.kind == "train" or step > 0
        slow = slow or (launcher.idle is not None and durations.of(stage, state) > launcher.idle)
        if slow:
            barred.add(key)
        if key in standing.owners:
            size = launcher.size_of(standing.owners[key][0], jobs)
            if size is None:
                others = True
                taken |= set() if slow else {key}
            elif slow:
                wanted[size] += 1
            else:
                short[key] = size
                groups |= {size.step} if size.world > 1 else set()
        elif not slow:
            for parent in above:  # who makes it goes on with this one
                short.pop(parent, None)
            short[key] = launcher.size_for(1, step)
        elif stage.kind == "train" and (theirs := taken.intersection(above)):
            taken -= theirs  # who runs the stage above goes on with this one
        else:
            wanted[launcher.size_for(stage.world if stage.kind == "train" else 1, step)] += 1
    served = {size.step for size in wanted}
    for size, number in Counter(short.values()).items():
        if size.step not in served and (size.world > 1 or size.step not in groups):
            wanted[size] = number
    return wanted or Counter({launcher.size_for(1, 0): int(others)} if others and launcher.idle is None else {})


def over(plan: Plan, standing: Standing, launcher: Launcher) -> bool:
    """Return whether nothing is left that runs or could ever be run: all is done, failed, or waits for what failed."""
    failed = set[str]()
    for key, state in standing.states.items():
        if _step(state, launcher) is None or not failed.isdisjoint(plan.stages[key].parents.values()):
            failed.add(key)
    return len(failed) == len(standing.states)


class Durations:
    """How long the stages that are no trainings take: as those like them took, or at least as long as they run."""

    def __init__(self, plan: Plan, standing: Standing) -> None:
        self.plan, self.standing = plan, standing

    @cached_property
    def known(self) -> dict[Any, list[float]]:
        """Return the seconds of finished stages, by what they depend on most."""
        found = defaultdict(list)
        for key, done in self.standing.done.items():
            if self.plan.stages[key].kind != "train":
                found[_likeness(self.plan.stages[key])].append(done.seconds)
        return found

    def of(self, stage: Stage, state: State) -> float:
        """Return a stage's seconds as far as they are known; 0 where nothing is."""
        like = self.known.get(_likeness(stage))
        found = max(median(like) if like else 0.0, state.lost)
        if stage.key in self.standing.owners:
            owner, beats, changed = self.standing.owners[stage.key]
            every = (owner.lease or LEASE) / BEATS_PER_LEASE
            since = min(max(0.0, time.time() - changed), every)  # a clock that is wrong costs one heartbeat at most
            found = max(found, beats * every + since)
        return found


def _likeness(stage: Stage) -> tuple[str, ...]:
    spec = stage.spec
    about = (spec.get("method", spec.get("control", spec.get("dataset"))), spec.get("arch"), spec.get("batch"))
    return stage.kind, stage.parents.get("data", ""), *map(repr, about)


def _step(state: State, launcher: Launcher) -> int | None:
    """Return the step of memory or time that a stage needs; None where no worker can take it."""
    if not state.over:
        return 0
    return launcher.step_for(state.amount, state.resource) if state.cause in LACKING else None
