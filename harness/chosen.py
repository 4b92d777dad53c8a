"""Cells chosen on the command line by their axes, as mask=snip,seed=0 (`--only`, `--cell`, `--why`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from harness.axes import read_sparsity
from harness.errors import UserError
from tost.catalog import nearest

Labels = Mapping[str, str]
"""Axis -> label, as tables print it."""
SHOWN = 20
"""Values that an error lists of an axis at most."""


def choose(given: str, option: str, cells: Sequence[Labels], families: bool = False) -> list[bool]:
    """Return which cells have the values given of every axis named; a value given twice for an axis widens it.

    With `families`, a mask's name alone means its variants too: snip is also snip(control=shuffled).

    Raises UserError, which names the option, for an axis or a value that no cell has, and where none has them together.
    """
    wanted: dict[str, set[str]] = {}
    axes = list(dict.fromkeys(axis for labels in cells for axis in labels))
    for item in filter(None, map(str.strip, re.split(r",(?![^()]*\))", given))):
        axis, equals, value = (part.strip() for part in item.partition("="))
        if not equals or axis not in axes:
            raise UserError(
                f"{option} {item!r}: write AXIS=VALUE,... with axes of {', '.join(axes)}{nearest(axis, axes)}"
            )
        value = _label(axis, value, option)
        there = dict.fromkeys(name for labels in cells for name in _names(axis, labels, families))
        if value not in there:
            shown = ", ".join([*list(there)[:SHOWN], *(["..."] if len(there) > SHOWN else [])])
            raise UserError(f"{option} {axis}={value}: no cell has it; there are {shown}{nearest(value, there)}")
        wanted.setdefault(axis, set()).add(value)
    kept = [
        all(not values.isdisjoint(_names(axis, labels, families)) for axis, values in wanted.items())
        for labels in cells
    ]
    if not any(kept):
        raise UserError(f"{option} {given}: no cell has all of these together; leave one out")
    return kept


def _names(axis: str, labels: Labels, families: bool) -> tuple[str, ...]:
    """Return what a cell's value of an axis may be called."""
    label = labels.get(axis, "")
    return (label, re.split(r"[(:]", label)[0]) if families and axis == "mask" else (label,)


def _label(axis: str, value: str, option: str) -> str:
    """Return an axis's value as plans label it: a sparsity may be given as a share too."""
    if axis != "sparsity" or not value:
        return value
    try:
        return read_sparsity(value).label
    except ValueError as error:
        raise UserError(f"{option} {axis}: {error}") from None
