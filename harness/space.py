"""What a search may choose from: ranges and lists of values, one for each setting that is tuned."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from harness.errors import short

_RANGE = re.compile(r"(\w+)\s*\(([^,()]+),([^,()]+)\)")  # no two parts may match the same spaces: cubic time
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,3})?")
KINDS = ("uniform", "loguniform", "integer")
DIGITS = 4
"""Digits that a drawn number is rounded to: it can be read in a table, and typed into a file."""


@dataclass(frozen=True)
class Dimension:
    """The values that one setting may take: a range, or, of kind `choice`, a list."""

    axis: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.axis}: [{', '.join(map(str, self.values))}]"
        return f"{self.axis}: {self.kind}({self.low:g}, {self.high:g})"

    @property
    def size(self) -> float:
        """Return how many values there are, at most."""
        if self.kind == "choice":
            return len(self.values)
        return self.high - self.low + 1 if self.kind == "integer" else math.inf

    @property
    def ends(self) -> list[Any]:
        """Return the values that a check must see."""
        return list(self.values) if self.kind == "choice" else [self.tidy(self.low), self.tidy(self.high)]

    def tidy(self, value: Any) -> Any:
        """Return a value as it is used: whole where it must be, rounded where it is a fraction, inside the range."""
        if self.kind == "choice":
            return value
        if self.kind == "integer":
            return int(value)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


def read_dimension(axis: str, value: object) -> Dimension:
    """Read `uniform(a, b)`, `loguniform(a, b)`, `integer(a, b)` or a list. Raises ValueError."""
    if isinstance(value, list) and value:
        return Dimension(axis, "choice", values=tuple(tuple(v) if isinstance(v, list) else v for v in value))
    match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[1] not in KINDS:
        raise ValueError(f"{short(value)} is no range; write {', '.join(f'{k}(a, b)' for k in KINDS)}, or a list")
    if not _NUMBER.fullmatch(match[2].strip()) or not _NUMBER.fullmatch(match[3].strip()):
        raise ValueError(f"{short(value)}: both ends of a range are numbers")
    low, high = float(match[2]), float(match[3])
    if not low < high:
        raise ValueError(f"{short(value)} is empty; a range runs from the smaller to the larger number")
    if match[1] == "loguniform" and low <= 0:
        raise ValueError(f"{short(value)}: a range of loguniform begins above 0")
    if match[1] == "integer" and (low % 1 or high % 1):
        raise ValueError(f"{short(value)}: both ends of integer are whole numbers")
    return Dimension(axis, match[1], low, high)
