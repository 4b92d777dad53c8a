"""Cells: the points of a grid after its rules, each frozen and complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.axes import Sparsity
from harness.catalog import DATASETS, Dataset
from harness.errors import Fault, FileError
from harness.expressions import Values
from harness.names import DENSE, Choice, Names
from harness.protocol import Protocol, as_fields
from harness.recipes import Recipe
from harness.spec import Sweep
from harness.tuned import Tuned, for_cell

AXES = ("dataset", "arch", "mask", "sparsity", "recipe", "seed", "ticket_seed", "world", "protocol")
USUAL = Dataset("")
"""How a user's own data set is treated: nobody has said that flips keep its labels' meaning."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid. `extra` holds the values of axes that are protocol fields or part knobs."""

    dataset: Choice
    arch: Choice
    mask: Choice
    sparsity: Sparsity
    recipe: Recipe
    seed: int
    ticket_seed: int
    protocol: Protocol
    world: int
    extra: tuple[tuple[str, Any], ...]
    tuned: Tuned | None = None
    """Where some of its settings come from, if a search found them."""

    def axis(self, name: str) -> Any:
        """Return the value of an axis as a table prints it."""
        value = getattr(self, name) if name in AXES else dict(self.extra).get(name, getattr(self.protocol, name, ""))
        return getattr(value, "label", value)

    @property
    def images(self) -> Dataset:
        """Return how the cell's images are treated."""
        return DATASETS.get(self.dataset.name, USUAL)

    @property
    def dev(self) -> str:
        """Return how the dev split is cut."""
        return self.images.dev if self.protocol.dev == "standard" else self.protocol.dev

    @property
    def augment(self) -> tuple[int, bool]:
        """Return the padding of random crops, in pixels, and whether images are flipped at random."""
        return self.protocol.augmented(self.images.pad, self.images.flip)

    @property
    def label(self) -> str:
        """Return the cell in one line."""
        shown = [self.dataset.label, self.arch.label, self.mask.label]
        if self.mask.name != DENSE:
            shown.append(self.sparsity.label)
        shown.append(self.recipe.label)
        return " ".join([*shown, *(f"{k}={v}" for k, v in self.extra), f"seed {self.seed}"])


def view(cell: Cell) -> Values:
    """Return what a condition sees of a cell."""
    point = {axis: getattr(cell, axis) for axis in AXES[:-1]}
    return _View(point, cell.protocol)


class _View(dict[str, Any]):
    """What a condition sees of a point: names and numbers; other names are protocol fields."""

    def __init__(self, point: Mapping[str, Any], protocol: Protocol) -> None:
        seed = point["seed"]
        super().__init__(seed=seed, ticket_seed=point.get("ticket_seed", seed), world=point.get("world", 1))
        self["sparsity"] = point["sparsity"].share
        self["recipe"] = point["recipe"].label
        for axis in ("dataset", "arch", "mask"):
            self[axis] = point[axis].name
        self._protocol = protocol

    def __missing__(self, name: str) -> Any:
        return getattr(self._protocol, name)


def expand(sweep: Sweep) -> tuple[list[Cell], int]:
    """Return the sweep's distinct cells in grid order, and how many duplicates were united.

    Conditions of `when` are applied in order, each seeing what the ones before it set; then `exclude`.
    """
    cells: dict[tuple[Any, ...], Cell] = {}
    total = 0
    for point in sweep.points():
        cell = cell_of(sweep, point)
        if cell is None:
            continue
        total += 1
        identity = (cell.dataset, cell.arch, cell.mask, cell.sparsity, cell.recipe.parts, cell.seed, cell.ticket_seed)
        cells.setdefault((*identity, id(cell.protocol), cell.world), cell)
    return list(cells.values()), total - len(cells)


def cell_of(sweep: Sweep, point: dict[str, Any]) -> Cell | None:
    """Return the cell of one point of the grid, after the sweep's rules; None where one excludes it."""
    try:
        for index, (condition, changes) in enumerate(sweep.rules):
            path: tuple[str | int, ...] = ("when", index)
            if condition(_View(point, _protocol(sweep, point))):
                point = {**point, **changes}
        protocol = _protocol(sweep, point)
        view: Values = _View(point, protocol) if sweep.excludes else {}
        for index, excluded in enumerate(sweep.excludes):
            path = ("exclude", index)
            if excluded(view):
                return None
    except ValueError as error:
        raise FileError([Fault(sweep.document.mark(path), f"{path[0]}: {error}")]) from None
    mask, sparsity = point["mask"], point["sparsity"]
    if mask.name == DENSE or sparsity.share == 0:
        mask, sparsity = Choice(DENSE), Sparsity()
    tuned = _tuned(sweep, point, mask, sparsity, protocol)
    settings = dict(tuned.settings) if tuned else {}
    recipe, used = _with_knobs(point["recipe"], {**point, **settings}, sweep.names, quiet=settings)
    extra = tuple((k, v) for k, v in point.items() if k in Protocol.model_fields or k in used)
    return Cell(
        point["dataset"],
        point["arch"],
        mask,
        sparsity,
        recipe,
        point["seed"],
        point.get("ticket_seed", point["seed"]),
        _protocol(sweep, {**point, **settings}) if settings else protocol,
        point.get("world", 1),
        extra,
        tuned,
    )


def _tuned(
    sweep: Sweep, point: Mapping[str, Any], mask: Choice, sparsity: Sparsity, protocol: Protocol
) -> Tuned | None:
    """Return the settings that a search found for a point."""
    here = {**point, "mask": mask, "sparsity": sparsity}

    def label(axis: str) -> Any:
        value = here.get(axis, getattr(protocol, axis, ""))
        return getattr(value, "label", value)

    try:
        return for_cell(sweep.tuned, label, point)
    except ValueError as error:
        raise FileError([Fault(sweep.document.mark(("tuned",)), f"tuned: {error}")]) from None


def _protocol(sweep: Sweep, point: Mapping[str, Any]) -> Protocol:
    preset, more = point.get("protocol", (sweep.preset, {}))
    fields = as_fields({k: v for k, v in point.items() if k in Protocol.model_fields})
    return sweep.protocol(preset, {**sweep.overrides, **more, **fields})


def _with_knobs(
    recipe: Recipe, point: Mapping[str, Any], names: Names, quiet: Iterable[str] = ()
) -> tuple[Recipe, set[str]]:
    """Lay axes such as `gsw.b1` over a recipe; one whose part the recipe lacks has no effect on the cell.

    The recipe's label does not show those that are `quiet`.
    """
    axes = [axis for axis in point if "." in axis]
    used: set[str] = set()
    parts = []
    for part in recipe.parts:
        given = dict(part.given)
        for axis in axes:
            name, _, knob = axis.partition(".")
            if name == part.name:
                used.add(axis)
                given[knob] = point[axis]
                if point[axis] == names.entry("part", name).knobs[knob].default:
                    del given[knob]
        parts.append(replace(part, given=tuple(sorted(given.items()))))
    hidden = frozenset(quiet) & used
    return (replace(recipe, parts=tuple(parts), quiet=hidden), used - hidden) if used else (recipe, used)
