"""What cells have in common: the smallest condition over axes that covers a group of them."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MOST_AXES = 4


@dataclass(frozen=True)
class Condition:
    """A conjunction over axes, how many cells satisfy it, and how many of those are in the group."""

    terms: tuple[tuple[str, tuple[str, ...]], ...]
    covered: int
    members: int

    @property
    def text(self) -> str:
        """Return the condition as a person reads it, with its count: `all 36: arch=mobilenet and mask=grasp`."""
        count = f"all {self.members}" if self.covered == self.members else f"{self.members} of {self.covered}"
        said = [
            f"{axis}={values[0]}" if len(values) == 1 else f"{axis} in ({', '.join(values)})"
            for axis, values in self.terms
        ]
        return f"{count}: {' and '.join(said) or 'every cell'}"


def smallest_condition(axes: Sequence[str], cells: Sequence[Mapping[str, str]], group: Sequence[int]) -> Condition:
    """Return the condition that covers the group and as few other cells as can be, with the fewest axes and values.

    `group` holds the places of its members among `cells`. Sets of cells are whole numbers, a bit a cell.
    """
    members = _bits(group, len(cells))
    masks: dict[str, dict[str, int]] = {axis: {} for axis in axes}
    for axis in axes:
        bits: dict[str, list[int]] = {}
        for place, cell in enumerate(cells):
            bits.setdefault(cell[axis], []).append(place)
        masks[axis] = {value: _bits(places, len(cells)) for value, places in bits.items()}
    values = {axis: tuple(v for v, mask in masks[axis].items() if mask & members) for axis in axes}
    telling = [axis for axis in axes if len(values[axis]) < len(masks[axis])]
    allowed = {axis: _union(masks[axis][value] for value in values[axis]) for axis in telling}
    best: tuple[tuple[int, int, int], tuple[str, ...], int] | None = None
    for size in range(min(MOST_AXES, len(telling)) + 1):
        for chosen in itertools.combinations(telling, size):
            covered = (1 << len(cells)) - 1
            for axis in chosen:
                covered &= allowed[axis]
            rank = ((covered & ~members).bit_count(), size, sum(len(values[axis]) for axis in chosen))
            if best is None or rank < best[0]:
                best = (rank, chosen, covered)
        if best is not None and best[0][0] == 0:
            break
    assert best is not None  # the empty condition is always tried # noqa: S101
    terms = tuple((axis, values[axis]) for axis in best[1])
    return Condition(terms, best[2].bit_count(), members.bit_count())


def _bits(places: Sequence[int], size: int) -> int:
    raw = bytearray(size // 8 + 1)
    for place in places:
        raw[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(raw, "little")


def _union(masks: Iterable[int]) -> int:
    return functools.reduce(operator.or_, masks, 0)
