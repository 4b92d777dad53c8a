"""A finished table: entries by row and column, each with the cells it is made of."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from harness.declared import EFFECT
from harness.foreign import Foreign
from harness.report.frame import Line
from harness.report.metrics import percent
from harness.report.pairing import Pair
from harness.report.stats import Effect, Interval, t_interval

METRIC = "metric"
"""The level of columns that a table with several values has."""
HEADS = {"dataset": "data set", "arch": "network", "mask": "mask", "sparsity": "sparsity", "recipe": "recipe"}
ALL = "all"
"""The column of a table of effects in which its cells are pooled."""

Labels = tuple[str, ...]
Placed = tuple[Labels, Labels]
"""A row and a column."""


@dataclass(frozen=True)
class Entry:
    """A number of a table: its values over seeds, the paired differences to the baseline, the reasons of holes."""

    values: tuple[float, ...] = ()
    differences: tuple[float, ...] = ()
    holes: tuple[str, ...] = ()
    at_chance: int = 0
    """How many of the values are accuracies no better than guessing."""
    planned: bool = True
    show: Callable[[float], str] = percent
    value: str = "accuracy"
    """The metric."""
    lines: tuple[Line, ...] = ()
    """The cells, those without a result too."""
    pairs: tuple[Pair, ...] = ()
    """What the differences are of."""
    effect: Effect | None = None
    """In a table of effects, the entry's number."""
    terms: tuple[tuple[str, str, tuple[tuple[Line, float], ...]], ...] = ()
    """What an effect is of: (cell, seed, results with their weights)."""
    words: str = ""
    """In place of a number: what a table has to say there, such as a verdict."""
    foreign: Foreign | None = None
    strong: bool = False
    """Whether it is to be set in bold."""
    p: float | None = None
    """Where asked for: p of its difference, adjusted for its family (Holm, 1979)."""
    expected: bool = False
    """Whether it is one that is compared, with a result or without."""

    @property
    def number(self) -> str:
        """Return mean ± std (n); of an effect, its mean and interval; of a foreign number, what was published."""
        if self.words:
            return self.words
        if self.effect is not None:
            return f"{self.effect.mean:+.2f}{_bracket(self.effect)} ({self.effect.n})"
        if self.foreign is not None:
            std = "" if self.foreign.std is None else f" ± {self.show(self.foreign.std)}"
            n = "" if self.foreign.n is None else f" ({self.foreign.n})"
            return f"{self.show(self.foreign.value)}{std}{n}†"
        if not self.values:
            return ""
        mean, runs = statistics.fmean(self.values), len(self.values)
        return f"{self.show(mean)}{f' ± {self.show(statistics.stdev(self.values))}' if runs > 1 else ''} ({runs})"

    @cached_property
    def interval(self) -> Interval | None:
        """Return the mean difference to the baseline with its 95 % interval."""
        return t_interval(self.differences) if self.differences else None

    @property
    def difference(self) -> str:
        """Return the mean difference to the baseline, signed, with its interval, and its pairs where they are fewer."""
        if not self.interval:
            return ""
        fewer = f" ({self.interval.n} of {len(self.values)})" if self.interval.n != len(self.values) else ""
        return f"{self.interval.mean:+.2f}{_bracket(self.interval)}{fewer}"

    @property
    def hole(self) -> str:
        """Return the reasons why numbers are missing, with their counts."""
        return ", ".join(f"{count} {reason}" for reason, count in Counter(self.holes).items())

    @property
    def aside(self) -> str:
        """Return what a reader must know of the number: what is missing, and what is no better than guessing."""
        return ", ".join(filter(None, [self.hole, f"{self.at_chance} at chance" if self.at_chance else ""]))

    @property
    def text(self) -> str:
        """Return the entry as plain text."""
        if not self.planned:
            return ""
        parts = [self.number or "–"]
        if self.difference:
            parts.append(self.difference)
        if self.aside:
            parts.append(f"[{self.aside}]")
        return " ".join(parts)

    def in_bold(self) -> Entry:
        """Return the entry as one that stands out."""
        return replace(self, strong=True)


def _bracket(found: Interval) -> str:
    return f" [{found.low:+.2f}, {found.high:+.2f}]" if found.known else ""


@dataclass
class Grid:
    """A finished table: its entries by row and column, and what a reader must know."""

    name: str
    rows: Labels
    columns: Labels
    entries: dict[Placed, Entry] = field(default_factory=dict)
    caption: str = ""
    refusal: str = ""
    """Why there is no table."""
    report: str = ""
    """The sweeps of the report that it is in, as `a` or `a+b`."""
    lines: Sequence[Line] = ()

    @property
    def row_keys(self) -> list[Labels]:
        """Return the rows in order."""
        return list(dict.fromkeys(row for row, _ in self.entries))

    @property
    def column_keys(self) -> list[Labels]:
        """Return the columns in order."""
        return list(dict.fromkeys(column for _, column in self.entries))

    def entry(self, row: Labels, column: Labels) -> Entry:
        """Return an entry; one that the grid never asked for is empty."""
        return self.entries.get((row, column), Entry(planned=False))

    @property
    def heads(self) -> list[str]:
        """Return the names of the row axes."""
        return [HEADS.get(axis, axis) for axis in self.rows]

    @property
    def of_effects(self) -> bool:
        """Return whether its entries are effects of recipe parts."""
        return EFFECT in self.rows
