"""Check what a sweep file declares of its report: tables, claims, and files of numbers from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.declared import EFFECT, PLAIN, Claim, Table
from harness.errors import usable_path
from harness.expressions import Condition
from harness.foreign import foreign_bytes, read_foreign
from harness.form import SweepFile
from harness.reading import Path_
from harness.spec import Stated

Reader = Callable[[str], Callable[[Any], Any]]
Tell = Callable[[Path_, str], None]


def check_declared(
    file: SweepFile, folder: Path, reader: Reader, condition: Callable[[str, Path_], Condition], fault: Tell
) -> tuple[list[Table], list[Stated]]:
    """Tell every fault by its place in the file; return tables with labels as they are printed, and claims as read."""
    tables = []
    for index, table in enumerate(file.tables):
        faults = _table_faults(table, reader)
        for said in faults:
            fault(("tables", index), f"tables: {said}")
        tables.append(table if faults else _with_labels(table, reader))
    for index, path in enumerate(file.baselines):
        try:
            rows = read_foreign(foreign_bytes(usable_path(path, folder)), path)
            for axis in dict.fromkeys(axis for row in rows for axis in row.labels):
                reader(axis)
        except (ValueError, OSError) as error:
            said = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            fault(("baselines", index), f"baselines: {path}: {said}")
    stated = []
    for index, claim in enumerate(file.claims):
        try:
            first, second = _compared(claim, reader)
        except ValueError as error:
            fault(("claims", index), f"claims: {claim.name}: {error}")
            continue
        where = condition(claim.where, ("claims", index, "where")) if claim.where else None
        stated.append(Stated(claim, first, second, where))
    return tables, stated


def _label(value: Any) -> str:
    return str(getattr(value, "label", value))


def _with_labels(table: Table, reader: Reader) -> Table:
    """Return a table whose baseline is written as the axes' labels are."""
    labels = {
        axis: value if (axis, value) == ("mask", PLAIN) else _label(reader(axis)(value))
        for axis, value in table.written.items()
    }
    baseline = labels["recipe"] if isinstance(table.baseline, str) else labels
    return table.model_copy(update={"baseline": baseline})


def _table_faults(table: Table, reader: Reader) -> list[str]:
    faults = []
    for axis in (*table.rows, *table.columns, *table.blocks):
        try:
            if axis != EFFECT:
                reader(axis)
        except ValueError as error:
            faults.append(str(error))
    if kept := [axis for axis in table.blocks if axis in ("seed", "ticket_seed", "world")]:
        faults.append(f"blocks: {kept[0]} makes no block; a table is over seeds")
    if EFFECT in (*table.columns, *table.blocks):
        faults.append(f"{EFFECT} stands in rows only")
    for axis, value in table.written.items():
        try:
            if (axis, value) != ("mask", PLAIN):
                reader(axis)(value)
        except ValueError as error:
            faults.append(f"baseline: {error}")
    return faults


def _compared(claim: Claim, reader: Reader) -> tuple[str, str]:
    """Return the labels that a claim compares. Raises ValueError for what is no axis, or no value of it."""
    read = reader(claim.axis)
    first, second = (read(value) for value in claim.compare[claim.axis])
    labels = _label(first), _label(second)
    for axis in claim.over:
        reader(axis)
    if labels[0] == labels[1]:
        raise ValueError(f"compares {labels[0]} with itself")
    if claim.axis in (*claim.over, "seed", "ticket_seed", "world"):
        raise ValueError(f"{claim.axis} is no axis to compare" + (" and to pool" if claim.axis in claim.over else ""))
    return labels
