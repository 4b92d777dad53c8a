"""Axes that are numbers: sparsities, seeds, epochs, ranges, and how they are written and read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from harness.errors import short

IMP_LEVELS = 16
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class Sparsity:
    """The share of weights removed: an exact density, or a level of the lottery-ticket ladder."""

    density: Fraction = Fraction(1)
    level: int = 0

    @cached_property
    def share(self) -> float:
        """Return the nominal share removed, for sorting and conditions."""
        return float(1 - (Fraction(4, 5) ** self.level if self.level else self.density))

    @cached_property
    def label(self) -> str:
        """Return the percentage as a table prints it."""
        return f"{100 * self.share:.2f}%" if self.level else f"{100 * self.share:.10g}%"

    @property
    def canonical(self) -> dict[str, Any]:
        """Return what a key holds."""
        return {"imp": self.level} if self.level else {"density": str(self.density)}

    @property
    def chain_level(self) -> int:
        """Return the level of the last chain network above this sparsity, the one it is cut from."""
        if self.level:
            return self.level - 1
        level = 0
        while Fraction(4, 5) ** (level + 1) > self.density:
            level += 1
        return level


def read_sparsity(value: object) -> Sparsity:
    """Read 0.9, 90%, imp:12, or a ladder level by its rounded percentage (20.00 ... 97.19)."""
    text = str(value).strip()
    hint = f"{short(value)} is no sparsity; write a share below 1 (0.9), a percentage (90%), or a ladder level (imp:12)"
    if isinstance(value, bool) or len(text) > 30:
        raise ValueError(hint)
    if match := re.fullmatch(r"imp:(\d+)", text):
        level = int(match[1])
        if not 1 <= level <= 60:
            raise ValueError(f"{short(text)} is not allowed; ladder levels run from imp:1 to imp:60")
        return Sparsity(level=level)
    number = text.removesuffix("%").strip()
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d{1,2})?", number):
        raise ValueError(hint)
    share = Fraction(number) / (100 if text.endswith("%") else 1)
    if not 0 <= share < 1:
        raise ValueError(hint)
    for level in range(1, IMP_LEVELS + 1):
        if round(float(share) * 100, 2) == round(100 * (1 - 0.8**level), 2) and share != 0:
            return Sparsity(level=level)
    return Sparsity(1 - share)


def read_whole(value: object) -> int:
    """Read a seed."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{short(value)} is not allowed; write whole numbers from 0 on, or a range such as 0..4")
    return value


def read_world(value: object) -> int:
    """Read how many processes a cell trains with."""
    if type(value) is not int or not 1 <= value <= 4096:
        raise ValueError(f"{short(value)} is not allowed; write the number of processes a cell trains with")
    return value


def read_number(value: object) -> float:
    """Read a number that a condition compares with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{short(value)} is not a number")
    return value


def spread(value: object) -> list[tuple[Any, int | None]] | range:
    """Return the values of an axis, each with its place in the file's list: a list's items, `a..b` as a range.

    Raises ValueError for an empty axis and for one of over a million values.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(-?\d{1,18})\s*\.\.\s*(-?\d{1,18})\s*", value)):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ValueError(f"{value!r} is an empty range; it runs from the smaller to the larger number")
        if last - first >= MOST_VALUES:
            raise ValueError(f"{value!r} has {last - first + 1:,} values; at most {MOST_VALUES:,} are allowed")
        return range(first, last + 1)
    if value is None or (isinstance(value, list) and not value):
        raise ValueError("is empty; give at least one value, or leave the axis out")
    flat: list[tuple[Any, int | None]] = []
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        inner = spread(item) if isinstance(item, str) and ".." in item and isinstance(value, list) else [(item, None)]
        if len(flat) + len(inner) > MOST_VALUES:
            raise ValueError(f"has over {MOST_VALUES:,} values")
        place = index if isinstance(value, list) else None
        flat.extend((v, place) for v in inner) if isinstance(inner, range) else flat.append((item, place))
    return flat
