"""Studies and their trials: what a search has tried at one place of the grid, written down before each is begun."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cell import AXES, Cell, cell_of
from harness.errors import Fault, FileError
from harness.planner import Planner
from harness.space import Dimension
from harness.spec import Sweep
from harness.store import Store, digest, publish, read_json

PLACE = tuple(axis for axis in AXES if axis not in ("seed", "ticket_seed", "world", "protocol"))
REDRAWS = 50
"""Draws in a row that were all tried before, after which a space counts as exhausted."""


@dataclass(frozen=True)
class Trial:
    """Settings that are tried out: the number of the trial, and the settings by axis."""

    number: int
    settings: Mapping[str, Any]
    path: Path

    @property
    def stop(self) -> Path:
        """Return the file that says that the search wants no more of this trial."""
        return self.path.with_suffix(".stop")


@dataclass
class Study:
    """One place of the grid with one recipe, what may be set there, and how often it is tried."""

    point: dict[str, Any]
    cell: Cell
    space: tuple[Dimension, ...]
    samples: int
    folder: Path
    identity: str
    """What trials must share to be compared: the cell with its untuned settings, the space and the metric."""
    seed: int = 0
    trials: list[Trial] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Return the study's place in one line."""
        return self.cell.label.rpartition(" seed ")[0]

    @property
    def at(self) -> dict[str, str]:
        """Return the axes and labels that settings found here are for."""
        names = [axis for axis in PLACE if axis != "sparsity" or self.cell.sparsity.share]
        found = {axis: str(self.cell.axis(axis)) for axis in (*names, *(name for name, _ in self.cell.extra))}
        return {**found, "recipe": self.point["recipe"].label}  # without the knobs that are axes, which stand beside it

    def look(self) -> None:
        """Read the trials that were begun, other calls' too."""
        found = [_read(path) for path in sorted(self.folder.glob("*.json"))]
        self.trials = [trial for identity, trial in filter(None, found) if identity == self.identity]

    def spent(self) -> int:
        """Return how many trials this place has cost, those of other spaces and settings among them."""
        return sum(1 for _ in self.folder.glob("*.json"))

    def begin(self, settings: Mapping[str, Any]) -> Trial:
        """Write a trial down, under a number that nobody else has."""
        body = {"study": self.label, "identity": self.identity, "settings": dict(settings)}
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in self.folder.glob("*.json")), default=0) + 1
        while not publish(path := self.folder / f"{number:05d}.json", json.dumps(body, indent=1).encode()):
            number += 1
        self.trials.append(Trial(number, settings, path))
        return self.trials[-1]

    def draw(self) -> dict[str, Any] | None:
        """Return settings drawn at random, the same for the same count of trials; None where all were tried."""
        for again in range(REDRAWS):
            source = random.Random(f"{self.seed} {self.identity} {len(self.trials)} {again}")  # noqa: S311 - no secret # nosec B311
            settings = {dimension.axis: dimension.draw(source) for dimension in self.space}
            if settings not in [trial.settings for trial in self.trials]:
                return settings
        return None

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


def _read(path: Path) -> tuple[str, Trial] | None:
    body = read_json(path) or {}
    if not isinstance(body.get("settings"), dict) or not isinstance(body.get("identity"), str):
        return None
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in body["settings"].items()}
    return body["identity"], Trial(int(path.stem), settings, path)


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
        says = {"cell": planner.cell(cell), "space": [str(d) for d in space], "metric": hunt.form.metric}
        study = Study(point, cell, space, 1, Path(), digest(says), hunt.form.seed)
        study.folder = store.sweep(sweep.name) / "search" / _folder_name(study)
        study.samples = hunt.trials(cell.recipe) if space else 1
        found.setdefault(study.identity + study.label, study)
    for study in found.values():
        study.look()
    return list(found.values())


def _folder_name(study: Study) -> str:
    return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', study.label)[:80]}-{digest(study.label)[:8]}"


def value_of(rows: Sequence[Mapping[str, Any]], metric: str, report: str) -> float:
    """Return what a training is judged by after some epochs: its last row, or its best so far, as tables report it.

    The best is chosen by dev accuracy, and never in an epoch in which ghosts live or masks tighten.
    """
    if report == "test@best-dev" and (bests := [row for row in rows if row["best"]]):
        return float(bests[-1][metric])
    return float(rows[-1][metric])
