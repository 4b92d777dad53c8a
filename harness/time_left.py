"""The time that a worker has, and which stages are worth starting in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.costs import Costs
from harness.plan import Stage

WORTH = 60.0
"""Seconds for which a training, which can go on elsewhere from its checkpoint, is worth starting."""
LEAVING = 0.02
"""The share of its time that a worker keeps for saving and leaving, within the two bounds below."""
LEAVING_LEAST, LEAVING_MOST = 3.0, 60.0


@dataclass
class TimeLeft:
    """A worker's time, on its own monotonic clock."""

    ends: float
    leaving: float
    costs: Costs
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, seconds: float, costs: Costs, clock: Callable[[], float] = time.monotonic) -> TimeLeft:
        """Return the time from now on, some of it kept for leaving."""
        leaving = min(max(LEAVING_LEAST, LEAVING * seconds), LEAVING_MOST, seconds / 2)
        return cls(clock() + seconds, leaving, costs, clock)

    @property
    def left(self) -> float:
        """Return the seconds in which stages may run."""
        return self.ends - self.leaving - self.clock()

    def over(self) -> bool:
        """Return whether it is time to leave."""
        return self.left <= 0

    def allows(self, stage: Stage, lost: float = 0.0) -> bool:
        """Return whether a stage is worth starting.

        It is where it is predicted to fit, where it is a training with time for some progress that a checkpoint keeps,
        and where nothing is known of it, but for the seconds `lost` on it that were not enough.
        """
        estimate = self.costs.estimate(stage)
        if stage.kind == "train" and self.left >= WORTH:
            return True
        return self.left > lost if estimate is None else estimate.high <= self.left
