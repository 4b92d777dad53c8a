"""Settings that differ between cells that are compared, so that a difference of results would be of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cell import Cell
from harness.names import DENSE
from harness.protocol import MASK_FIELDS, PLANNED_FIELDS, Protocol

AXES: Mapping[str, tuple[str, ...]] = {
    "recipe": ("dataset", "arch", "mask", "sparsity", "seed"),
    "mask": ("dataset", "arch", "recipe", "seed"),
}
"""What is compared -> the place that compared cells share; a dense network stands beside every sparsity."""
USUAL = "its default"
FOLLOWING = ("milestones", "warmup")
"""Fields that keep their place relative to the number of epochs."""


@dataclass(frozen=True)
class Differing:
    """A setting of which two values of an axis never have the same, at some place."""

    axis: str
    labels: tuple[str, str]
    field: str
    values: tuple[Any, Any]
    example: str
    """The place, in one line."""


def differing(cells: Sequence[Cell]) -> Iterator[Differing]:
    """Yield each setting once an axis: where every value of it that one label has is lacked by another.

    A setting that is an axis itself, and so has all its values under every label, is none of them; nor are settings
    that a search found, or trainings lengthened to match a cost.
    """
    for axis, place in AXES.items():
        told: set[str] = set()
        for labels, here in _places(cells, place).items():
            if len({(id(cell.protocol), cell.recipe if axis == "mask" else None) for cell in here}) == 1:
                continue
            for found in _at_one(axis, here, " ".join(labels)):
                if found.field not in told:
                    told.add(found.field)
                    yield found


def _places(cells: Sequence[Cell], axes: Sequence[str]) -> dict[tuple[str, ...], list[Cell]]:
    found: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[tuple(_label(cell, axis) for axis in axes)].append(cell)
    return found


def _label(cell: Cell, axis: str) -> str:
    if axis == "recipe":  # without its knobs, which are compared
        return cell.recipe.text
    return f"seed {cell.seed}" if axis == "seed" else str(cell.axis(axis))


def _at_one(axis: str, cells: Sequence[Cell], example: str) -> Iterator[Differing]:
    """Yield the settings that differ at one place."""
    having: dict[str, dict[str, set[Any]]] = defaultdict(lambda: defaultdict(set))
    every = [(str(cell.axis(axis)), _protocol(cell) | (_knobs(cell) if axis == "mask" else {})) for cell in cells]
    knobs = {field for _, settings in every for field in settings if "." in field}
    for label, settings in every:
        for field, value in (dict.fromkeys(knobs, USUAL) | settings).items():
            having[field][label].add(value)
    epochs = False
    for field, by_label in sorted(having.items(), key=lambda item: item[0] != "epochs"):
        if len(set().union(*by_label.values())) == 1 or (epochs and field in FOLLOWING):
            continue
        labels = list(by_label)
        for one, other in ((a, b) for n, a in enumerate(labels) for b in labels[n + 1 :]):
            if not by_label[one] & by_label[other]:
                epochs = epochs or field == "epochs"
                values = next(iter(by_label[one])), next(iter(by_label[other]))
                yield Differing(axis, (one, other), field, values, example)
                break


def _protocol(cell: Cell) -> dict[str, Any]:
    """Return what a cell is trained and judged with, apart from what a search found."""
    skipped = {*_searched(cell), *PLANNED_FIELDS, *(MASK_FIELDS if cell.mask.name == DENSE else ())}
    return {name: getattr(cell.protocol, name) for name in Protocol.model_fields if name not in skipped}


def _knobs(cell: Cell) -> dict[str, Any]:
    """Return the knobs of a cell's recipe that differ from their defaults, apart from what a search found."""
    found = {f"{part.name}.{knob}": value for part in cell.recipe.parts for knob, value in part.given}
    return {name: value for name, value in found.items() if name not in _searched(cell)}


def _searched(cell: Cell) -> Mapping[str, Any]:
    return dict(cell.tuned.settings) if cell.tuned else {}


def unlike_trials(cells: Sequence[Cell]) -> Iterator[tuple[str, tuple[str, int], tuple[str, int], str]]:
    """Yield once an axis: axis, a label and the trials of its settings, another and its fewer trials, the place."""
    for axis, place in AXES.items():
        for labels, here in _places(cells, place).items():
            trials = {str(cell.axis(axis)): cell.tuned.trials if cell.tuned else 0 for cell in here}
            most, least = max(trials, key=lambda label: trials[label]), min(trials, key=lambda label: trials[label])
            if trials[most] > trials[least]:
                yield axis, (most, trials[most]), (least, trials[least]), " ".join(labels)
                break
