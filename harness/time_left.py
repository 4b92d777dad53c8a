"""The time that a worker has, and which stages are worth starting in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.costs import Costs
from harness.plan import Stage

WORTH = 60.0
"""Seconds for which a training, which can go on elsewhere from its checkpoint, is worth starting."""
LEAVING = 0.02
"""The share of its time that a worker keeps for saving and leaving, within the two bounds below."""
LEAVING_LEAST, LEAVING_MOST = 3.0, 60.0
WHOLE = 0.75
"""The share of its time that must be left for a stage to count as given all of it: no worker like it will have more."""


@dataclass
class TimeLeft:
    """A worker's time, on its own monotonic clock."""

    ends: float
    leaving: float
    costs: Costs
    clock: Callable[[], float] = time.monotonic
    limit: float = 0.0
    """The whole time limit, of which some was over when the worker began."""
    notice: float = 0.0
    """Seconds before the end within which who is asked to leave is asked since the time is up."""
    most: float = 0.0
    """Seconds that there were for a first stage."""
    given: float = 0.0
    """The limit where the stage that was taken last had nearly all of it, else 0."""
    needs: float = 0.0
    """The limit that the stage that was taken last is predicted to need, 0 where nothing is known of it."""

    @classmethod
    def of(
        cls,
        seconds: float,
        costs: Costs,
        clock: Callable[[], float] = time.monotonic,
        limit: float = 0.0,
        notice: float = 0.0,
    ) -> TimeLeft:
        """Return the time from now on, some of it kept for leaving."""
        leaving = min(max(LEAVING_LEAST, LEAVING * seconds), LEAVING_MOST, seconds / 2)
        found = cls(clock() + seconds, leaving, costs, clock, limit or seconds, notice)
        found.begin()
        return found

    def begin(self) -> None:
        """Count from now on what there is for stages: the worker is ready."""
        self.most = self.left

    @property
    def left(self) -> float:
        """Return the seconds in which stages may run."""
        return self.ends - self.leaving - self.clock()

    def over(self) -> bool:
        """Return whether it is time to leave."""
        return self.left <= 0

    @property
    def unspent(self) -> bool:
        """Return whether nearly all of the time is left."""
        return self.left > WHOLE * self.most

    def allows(self, stage: Stage, lost: float = 0.0) -> bool:
        """Return whether a stage is worth starting.

        It is where it is predicted to fit, where it is a training with time for some progress that a checkpoint keeps,
        where nothing is known of it, but for the seconds `lost` on it that were not enough, and where nearly all of the
        time is left: whoever comes next will have no more.
        """
        estimate = self.costs.estimate(stage)
        if self.unspent or (stage.kind == "train" and self.left >= WORTH):
            return not self.over()
        return self.left > lost if estimate is None else estimate.high <= self.left

    def take(self, stage: Stage) -> float:
        """See a stage taken; return the time limit where it is given nearly all of it, else 0."""
        estimate = self.costs.estimate(stage)
        self.given = self.limit if self.unspent else 0.0
        self.needs = estimate.mid + self.limit - self.most if estimate else 0.0
        return self.given

    def because(self) -> dict[str, Any]:
        """Return how the attempt ends that is asked to stop now, in an end's terms: nothing where time is left."""
        if not self.over() and self.ends - self.clock() > self.notice:
            return {}
        return {"cause": "time", **({"limit": self.given, "needs": self.needs} if self.given else {})}
