"""Check what a sweep file declares of its report: tables, claims, and files of numbers from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.declared import EFFECT, PLAIN, Claim, Table
from harness.errors import usable_path
from harness.expressions import Condition
from harness.foreign import read_foreign
from harness.form import SweepFile
from harness.reading import Path_
from harness.spec import Stated

Reader = Callable[[str], Callable[[Any], Any]]
Tell = Callable[[Path_, str], None]


def check_declared(
    file: SweepFile, folder: Path, reader: Reader, condition: Callable[[str, Path_], Condition], fault: Tell
) -> list[Stated]:
    """Tell every fault by its place in the file, and return the claims as read."""
    for index, table in enumerate(file.tables):
        for said in _table_faults(table, reader):
            fault(("tables", index), f"tables: {said}")
    for index, path in enumerate(file.baselines):
        try:
            read_foreign(usable_path(path, folder).read_bytes(), path)
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
    return stated


def _table_faults(table: Table, reader: Reader) -> list[str]:
    faults = []
    for axis in (*table.rows, *table.columns, *table.blocks):
        try:
            if axis != EFFECT:
                reader(axis)
        except ValueError as error:
            faults.append(str(error))
    if EFFECT in (*table.columns, *table.blocks):
        faults.append(f"{EFFECT} stands in rows only")
    for axis, value in table.compared.items():
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
    labels = str(getattr(first, "label", first)), str(getattr(second, "label", second))
    for axis in claim.over:
        reader(axis)
    if labels[0] == labels[1]:
        raise ValueError(f"compares {labels[0]} with itself")
    if claim.axis in (*claim.over, "seed", "ticket_seed", "world"):
        raise ValueError(f"{claim.axis} is no axis to compare" + (" and to pool" if claim.axis in claim.over else ""))
    return labels
