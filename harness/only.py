"""The option --only: some of a sweep's cells, chosen by their axes."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.axes import read_sparsity
from harness.cell import AXES, Cell
from harness.errors import UserError
from harness.plan import Plan
from tost.catalog import nearest


def cell_filter(only: str, plan: Plan) -> Callable[[Cell], bool]:
    """Compile --only: cells must match every axis given; a value given twice for an axis widens it."""

    wanted: dict[str, set[str]] = {}
    extra = {name for cell, _ in plan.cells for name, _ in cell.extra}
    for item in filter(str.strip, re.split(r",(?![^()]*\))", only)):
        axis, equals, value = (part.strip() for part in item.partition("="))
        known = [*AXES[:-1], *sorted(extra)]
        if not equals or axis not in known:
            raise UserError(
                f"--only {item.strip()!r}: write AXIS=VALUE with one of {', '.join(known)}{nearest(axis, known)}"
            )
        if axis == "sparsity":
            try:
                value = read_sparsity(value).label
            except ValueError as error:
                raise UserError(f"--only: {error}") from None
        there = {str(cell.axis(axis)) for cell, _ in plan.cells} | {
            c.mask.name for c, _ in plan.cells if axis == "mask"
        }
        if value not in there:
            shown = ", ".join(sorted(there)[:20])
            raise UserError(f"--only {axis}={value}: no cell has it; there are {shown}{nearest(value, there)}")
        wanted.setdefault(axis, set()).add(value)

    def matches(cell: Cell) -> bool:
        return all(
            {str(cell.axis(axis)), cell.mask.name if axis == "mask" else ""} & values for axis, values in wanted.items()
        )

    found = [cell for cell, _ in plan.cells if matches(cell)]
    if not found:
        raise UserError(f"--only {only}: no cell has all of these together; leave one out")
    return matches
