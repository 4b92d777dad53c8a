"""The time that a worker has, and which stages are worth starting in it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from harness.costs import Costs
from harness.errors import UserError
from harness.plan import Stage

WORTH = 60.0
"""Seconds for which a training, which can go on elsewhere from its checkpoint, is worth starting."""
LEAVING = 0.02
"""The share of its time that a worker keeps for saving and leaving, within the two bounds below."""
LEAVING_LEAST, LEAVING_MOST = 3.0, 60.0
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_span(text: str) -> float:
    """Read a time such as `55m`, `1h30m`, `90s`, `2d`, `500h`, or Slurm's `D-HH:MM:SS`, in seconds.

    Raises ValueError that says how it is written.
    """
    text = text.strip()
    if found := re.fullmatch(r"(?:(\d+)-)?(\d{1,6}):(\d\d)(?::(\d\d))?", text):
        days, first, second, third = found.groups()
        if third is None and days is None:  # Slurm reads a lone A:B as minutes and seconds, and D-A:B as hours
            return 60.0 * int(first) + int(second)
        return 86400.0 * int(days or 0) + 3600.0 * int(first) + 60.0 * int(second) + int(third or 0)
    if re.fullmatch(r"(?:\d+(?:\.\d+)?[smhd])+", text):
        return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text))
    raise ValueError(f"{text!r} is no time; write 55m, 1h30m, 90s, 2d, or D-HH:MM:SS")


def given_span(option: str, text: str) -> float:
    """Read a time given on the command line. Raises UserError that names the option."""
    try:
        return read_span(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


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
