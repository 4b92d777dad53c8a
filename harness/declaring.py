"""From a checked file and its plan to what the report must know: claims with their cells, copies of foreign numbers."""

from __future__ import annotations

from collections.abc import Iterator

from harness.cell import AXES, Cell, view
from harness.declared import Declared
from harness.errors import Fault, FileError
from harness.plan import Plan
from harness.spec import Stated, Sweep

UNPOOLED = ("seed", "ticket_seed", "world", "protocol")


def declare(sweep: Sweep, plan: Plan) -> Declared:
    """Return what a plan's file holds of the report. Raises FileError for a claim that the grid cannot decide."""
    members = {stated.claim.name: list(_members(stated, plan)) for stated in sweep.claims}
    return Declared(
        tables=list(sweep.tables),
        figures=sweep.file.figures,
        claims=[
            stated.claim.model_copy(update={"compare": {stated.claim.axis: (stated.first, stated.second)}})
            for stated in sweep.claims
        ],
        baselines={path: sha256 for path, _, sha256 in sweep.foreign_files()},
        file=sweep.document.file,
        members=members,
    )


def _members(stated: Stated, plan: Plan) -> Iterator[int]:
    axis, wanted = stated.claim.axis, (stated.first, stated.second)
    for number, (cell, _) in enumerate(plan.cells):
        if str(cell.axis(axis)) in wanted and (stated.where is None or stated.where(view(cell))):
            yield number


def check_claims(sweep: Sweep, plan: Plan) -> None:
    """Raise FileError where the grid lacks what a claim compares, has too few seeds, or leaves an axis unpooled."""
    faults = []
    for index, stated in enumerate(sweep.claims):
        cells = [plan.cells[number][0] for number in _members(stated, plan)]
        if said := _undecidable(stated, cells):
            faults.append(Fault(sweep.document.mark(("claims", index)), f"claims: {stated.claim.name}: {said}"))
    if faults:
        raise FileError(faults)


def _undecidable(stated: Stated, cells: list[Cell]) -> str:
    claim = stated.claim
    for label in (stated.first, stated.second):
        if not any(str(cell.axis(claim.axis)) == label for cell in cells):
            return f"no cell of the grid has {claim.axis} {label}" + (f" where {claim.where}" if claim.where else "")
    if (seeds := len({cell.seed for cell in cells})) < claim.seeds:
        return f"is planned with {claim.seeds} seeds, the grid has {seeds} of them; write seed: 0..{claim.seeds - 1}"
    names = dict.fromkeys([*AXES, *(name for cell in cells for name, _ in cell.extra)])
    varying = [
        name
        for name in names
        if name not in (*UNPOOLED, claim.axis) and len({str(cell.axis(name)) for cell in cells}) > 1
    ]
    if claim.over and (left := [name for name in varying if name not in claim.over and "." not in name]):
        return f"over leaves out {', '.join(left)}, of which its cells have several values; add it, or narrow `where`"
    return ""
