"""Cells that cannot be: refused when the plan is made, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from harness.cell import Cell
from harness.errors import Fault, FileError
from harness.names import SMALL
from harness.spec import Sweep
from harness.specs import Specs


def refuse(cell: Cell, sweep: Sweep) -> None:
    """Raise FileError where a cell's choices exclude one another."""
    faults = [Fault(sweep.document.mark(("grid",)), f"{cell.label}: {said}") for said in _reasons(cell, sweep)]
    if faults:
        raise FileError(faults)


def _reasons(cell: Cell, sweep: Sweep) -> Iterator[str]:
    rewind, control = int(cell.mask.get("rewind", 0)), cell.mask.get("control", "none")
    if rewind >= cell.protocol.epochs:
        yield f"rewind: {rewind} must lie before the end of the {cell.protocol.epochs} epochs"
    if rewind and control == "fresh":
        yield "control: fresh starts from an initialisation that was never trained; it needs rewind: 0"
    if rewind and Specs(sweep.names).at(cell.mask) == "init":
        yield f"rewind: {rewind} goes with a mask of trained weights, but {cell.mask.name} scores the initial ones"
    width = sweep.names.entry("arch", cell.arch.name).knobs.get("width")
    if cell.mask.name == SMALL and (width is None or not isinstance(width.default, float)):
        yield f"{SMALL} makes the network narrower, but {cell.arch.name} has no knob width that is a share such as 1.0"
    if cell.mask.name == "gmp":
        begin, end = float(cell.mask.get("begin", 0.0)), float(cell.mask.get("end", 0.5))
        if begin >= end:
            yield f"gmp ends at {end:g} of training, not after it begins at {begin:g}"
    if cell.protocol.match_cost and cell.recipe.parts:
        yield (
            f"epochs: match_cost({cell.protocol.match_cost}) lengthens the recipe default; give it a block of its own: "
            f"also: [{{recipe: default, epochs: match_cost({cell.protocol.match_cost})}}]"
        )
