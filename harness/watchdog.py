"""The watchdog of a trainer: how long it may make no progress before its supervisor takes it for stalled."""

from __future__ import annotations

from dataclasses import dataclass

STALL = 600.0
"""Seconds without progress that are always allowed between two steps.

That is several times what writes a large checkpoint to a slow file system, compiles a network that has changed, or
evaluates a batch of images on one core: what happens between two steps and is no step.
"""
TIMES = 20
"""How many times as long as ever before, in the same attempt, a trainer may make no progress.

Steps of one training last as long as each other; other users of a machine, and recompiling, make some of them ten times
as long.
"""
FIRST = 6
"""How many times STALL may pass until the first step: data are loaded over a network, networks compiled."""
WHOLE = 36
"""The same of a mask by a method of the catalog, which reports nothing until it is found."""
LONGEST = 144
"""The same of what is the user's own code, or a data set of millions of images, decoded on one core: a day.

The longest that is ever allowed. The processes of one training wait for each other as long, so that it is always their
supervisor, which sees all of them, that decides.
"""
A_LOOK = 1.0
"""Seconds that count between two looks of the supervisor: where more have passed, it was itself suspended or waited for
the store's file system, and knows nothing of the trainer."""


@dataclass
class Watchdog:
    """Counts the seconds since a trainer's last progress, as far as its supervisor could have seen any."""

    stall: float
    """Seconds that are always allowed between two steps: STALL, or another number."""
    first: int = FIRST
    """How many times that may pass until the first progress."""
    seconds: float = 0.0
    """Seconds since the last progress."""
    startup: float = 0.0
    """Seconds until the first progress: what compiles a network again may take as long."""
    longest: float = 0.0
    """Seconds of the longest wait since, among those that have ended."""
    begun: bool = False
    """Whether there was any progress."""

    def elapse(self, seconds: float) -> None:
        """Count the time since the last look, in which there was no progress."""
        self.seconds += min(seconds, A_LOOK)

    def reset(self) -> None:
        """Note progress."""
        if self.begun:
            self.longest = max(self.longest, self.seconds)
        else:
            self.startup = self.seconds
        self.seconds, self.begun = 0.0, True

    @property
    def timeout(self) -> float:
        """Return how many seconds may pass without progress."""
        usual = max(self.stall, self.startup, TIMES * self.longest) if self.begun else self.first * self.stall
        return min(usual, LONGEST * self.stall)

    @property
    def expired(self) -> bool:
        """Return whether the trainer counts as stalled."""
        return self.seconds > self.timeout

    @property
    def message(self) -> str:
        """Return what is reported of a trainer that has stalled."""
        usual = f"; before, {self.longest:.1f} s at most" if self.begun else " since it began"
        return f"the trainer stalled: no progress for {self.seconds:.0f} s{usual}"
