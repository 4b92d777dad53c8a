"""Studies of a search: the places of the grid that are tuned, what may be set there, and how trials are judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cell import AXES, Cell, cell_of
from harness.errors import Fault, FileError
from harness.planner import Planner
from harness.space import Dimension
from harness.spec import Sweep
from harness.store import Store, digest

PLACE = tuple(axis for axis in AXES if axis not in ("seed", "ticket_seed", "world", "protocol"))
OPEN, DONE, STOPPED, FAILED = "open", "done", "stopped", "failed"


@dataclass(frozen=True)
class Trial:
    """Settings that are tried out: the number of the trial from 1, and the settings by axis."""

    number: int
    settings: Mapping[str, Any]
    stop: Path
    """The file that says that the search wants no more of this trial."""


@dataclass
class Standing:
    """How a trial stands."""

    name: str
    """open, done, stopped or failed."""
    value: float | None = None
    """After the epochs it was given; None where it failed."""
    epoch: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Study:
    """One place of the grid with one recipe, what may be set there, and how often it is tried."""

    point: dict[str, Any]
    cell: Cell
    space: tuple[Dimension, ...]
    samples: int
    folder: Path
    identity: str
    """What trials must share to be compared: the cell with its untuned settings, the space and the metric."""

    @property
    def label(self) -> str:
        """Return the study's place in one line."""
        return place_of(self.cell)

    @property
    def at(self) -> dict[str, str]:
        """Return the axes and labels that settings found here are for."""
        names = [axis for axis in PLACE if axis != "sparsity" or self.cell.sparsity.share]
        found = {axis: str(self.cell.axis(axis)) for axis in (*names, *(name for name, _ in self.cell.extra))}
        return {**found, "recipe": self.point["recipe"].label}  # without the knobs that are axes, which stand beside it

    def cell_for(self, sweep: Sweep, settings: Mapping[str, Any]) -> Cell:
        """Return the cell that settings make of this place. Raises FileError where they do not go together."""
        mark = sweep.document.mark(("search", "space"))
        shown = ", ".join(f"{axis}={value}" for axis, value in settings.items())
        try:
            cell = cell_of(sweep, {**self.point, **settings})
        except FileError as error:
            raise FileError([Fault(mark, f"{shown}: {fault.message}") for fault in error.faults]) from None
        if cell is None:
            raise FileError([Fault(mark, f"{shown}: `exclude` leaves it out")])
        return cell


def make_studies(sweep: Sweep, store: Store, planner: Planner) -> list[Study]:
    """Return a study for every place of the grid and recipe, the baseline's beside the others'."""
    hunt = sweep.search
    if hunt is None:
        return []
    found: dict[str, Study] = {}
    points = list(sweep.points())
    if hunt.baseline is not None:
        points += [{**point, "recipe": hunt.baseline} for point in points]
    for point in points:
        if (cell := cell_of(sweep, point)) is None:
            continue
        space = hunt.space_of(cell.recipe)
        identity = digest({"cell": planner.cell(cell), "space": [str(d) for d in space], "metric": hunt.form.metric})
        samples = hunt.trials(cell.recipe) if space else 1
        folder = store.sweep(sweep.name) / "search" / _folder_name(place_of(cell))
        found.setdefault(identity + place_of(cell), Study(point, cell, space, samples, folder, identity))
    return list(found.values())


def place_of(cell: Cell) -> str:
    """Return a cell's place in one line: its label without the seed."""
    return cell.label.rpartition(" seed ")[0]


def _folder_name(place: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', place)[:80]}-{digest(place)[:8]}"


def value_of(rows: Sequence[Mapping[str, Any]], metric: str, report: str) -> float:
    """Return what a training is judged by after some epochs: its last row, or its best so far, as tables report it.

    The best is chosen by dev accuracy, and never in an epoch in which ghosts live or masks tighten.
    """
    if report == "test@best-dev" and (bests := [row for row in rows if row["best"]]):
        return float(bests[-1][metric])
    return float(rows[-1][metric])
