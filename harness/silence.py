"""How long a trainer may say nothing, before its supervisor takes it for stalled: not dead, and never done either."""

from __future__ import annotations

from dataclasses import dataclass

STALL = 600.0
"""Seconds without a word that are always allowed between two steps.

That is several times what writes a large checkpoint to a slow file system, compiles a network that has changed, or
evaluates a batch of images on one core: what happens between two steps and is no step.
"""
TIMES = 20
"""How many times as long as ever before, in the same attempt, a trainer may say nothing.

Steps of one training last as long as each other; other users of a machine, and recompiling, make some of them ten times
as long.
"""
FIRST = 6
"""How many times STALL may pass until the first step: data are loaded over a network, networks compiled."""
WHOLE = 36
"""The same of a mask by a method of the catalog, which says nothing until it is found."""
LONGEST = 144
"""The same of what is the user's own code, or a data set of millions of images, decoded on one core: a day.

Nothing may be silent for longer. The processes of one training wait for each other as long, so that it is always their
supervisor, who sees all of them, that decides.
"""
A_LOOK = 1.0
"""Seconds of silence that a supervisor can have heard between two looks. Where more time has passed it was itself
suspended, or waited for the store's file system, and knows nothing of the trainer."""


@dataclass
class Silence:
    """A trainer's silence during one stage, as its supervisor has heard it."""

    stall: float
    """Seconds that are always allowed between two steps: STALL, or another number."""
    first: int = FIRST
    """How many times that may pass until the first word."""
    seconds: float = 0.0
    """Of the silence that lasts."""
    longest: float = 0.0
    """Seconds of the longest that has ended."""
    begun: bool = False
    """Whether a word was said."""

    def last(self, seconds: float) -> None:
        """Take in that so much time has passed since the last look, without a word."""
        self.seconds += min(seconds, A_LOOK)

    def end(self) -> None:
        """Take in a word."""
        self.longest, self.seconds, self.begun = max(self.longest, self.seconds), 0.0, True

    @property
    def allowed(self) -> float:
        """Return how many seconds the silence may last."""
        usual = max(self.stall, TIMES * self.longest) if self.begun else self.first * self.stall
        return min(usual, LONGEST * self.stall)

    @property
    def stalled(self) -> bool:
        """Return whether it has lasted too long."""
        return self.seconds > self.allowed

    @property
    def text(self) -> str:
        """Return what is to be said of a trainer that has stalled."""
        usual = f"; before, {self.longest:.1f} s at most" if self.begun else " since it began"
        return f"the trainer stalled: no progress for {self.seconds:.0f} s{usual}"
