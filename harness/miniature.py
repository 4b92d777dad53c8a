"""The miniature of a sweep: its whole graph on tiny stand-in images, two steps a training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.axes import Sparsity
from harness.catalog import DATASETS
from harness.cell import Cell
from harness.errors import UserError
from harness.names import DENSE, SPECIAL, Choice, Names
from harness.plugins import Plugin
from harness.protocol import Protocol
from harness.recipes import Recipe
from harness.specs import Specs
from tost.catalog import Model

FOLDER = "miniature"
"""The miniature's own store, inside the sweep's."""
EPOCHS = 2
"""Of one step each: in the first, ghosts live, in the second they are gone."""
TRAIN, DEV, TEST, CLASSES = 6, 2, 4, 4
LR = 1e-3
"""The most that a learning rate is: a deep network's first steps on noise diverge with more."""
TOGETHER = 3
"""Cells of those that ask for several processes that are trained by two; the others are trained by one."""
STEPS = {"steps": 3, "iterations": 2, "per_class": 1}
"""The most that a knob of such a name is given."""
SIZE, LARGER = 16, 32
"""Pixels of the stand-in images; the larger ones for networks that halve them more than three times."""


def own_store(root: Path) -> Path:
    """Return an empty folder inside a store for the miniature's stages.

    Raises UserError where something else lies there.
    """
    folder = root / FOLDER
    if folder.exists():
        planned_only = {item.name for item in folder.iterdir()} <= {"cache"}  # by --plan, which remembers answers there
        if not ((folder / "sweeps").is_dir() or planned_only):
            raise UserError(f"{folder} is in the way: it holds no earlier miniature; move it")
        shutil.rmtree(folder)
    return folder


class Shrink:
    """Turns a sweep's cells into their miniature."""

    def __init__(self, names: Names, together: int = 0) -> None:
        self.names, self.together = names, together
        self.protocols: dict[int, Protocol] = {}

    def cells(self, cells: list[Cell]) -> tuple[list[Cell], list[Cell]]:
        """Return the cells to train, and those of which only the mask is made: the other sparsities of the same cell.

        One seed; of what differs in nothing but sparsity, the first is trained.
        """
        seed = cells[0].seed if cells else 0
        trained: dict[tuple[Any, ...], Cell] = {}
        others: dict[tuple[Any, ...], Cell] = {}
        for cell in cells:
            if cell.seed != seed:
                continue
            small = self.cell(cell)
            sort = (small.dataset, small.arch, small.mask, small.recipe, id(small.protocol), small.extra)
            if sort not in trained:
                trained[sort] = replace(small, world=self.world(cell))
            elif small.sparsity != trained[sort].sparsity:
                others.setdefault((*sort[:3], id(small.protocol), small.sparsity), small)
        return list(trained.values()), list(others.values())

    def cell(self, cell: Cell) -> Cell:
        """Return a cell with few steps of everything."""
        return replace(
            cell,
            protocol=self.protocol(cell.protocol),
            mask=self.few("mask", cell.mask),
            sparsity=cell.sparsity if cell.mask.name != DENSE else Sparsity(),
            recipe=self.recipe(cell.recipe),
            world=1,
        )

    def world(self, cell: Cell) -> int:
        """Return 2 for the first few cells that ask for several processes and whose ticket needs no training."""
        if cell.world == 1 or not self.together or Specs(self.names).at(cell.mask) in ("trained", "chain"):
            return 1
        self.together -= 1
        return 2

    def protocol(self, protocol: Protocol) -> Protocol:
        """Return a protocol of two epochs, a step each; what else it says stays."""
        if id(protocol) not in self.protocols:
            few = {
                "epochs": EPOCHS,
                "milestones": (EPOCHS / 2,) if protocol.milestones else (),
                "warmup": 0.0,
                "batch": TRAIN - DEV,
                "lr": min(protocol.lr, LR),
                "dev": f"first:{DEV}",
                "resize": 0,
            }
            self.protocols[id(protocol)] = Protocol(**(protocol.model_dump() | few))
        return self.protocols[id(protocol)]

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return a recipe whose parts iterate twice."""
        return replace(recipe, parts=tuple(self.few("part", part) for part in recipe.parts))

    def few(self, kind: str, choice: Choice) -> Choice:
        """Return a chosen method with few steps, iterations and images, and a rewind that two epochs can hold."""
        if choice.name == DENSE or choice.name in SPECIAL:
            return choice
        knobs = self.names.entry(kind, choice.name).knobs
        given = dict(choice.given)
        for knob, most in STEPS.items():
            if knob in knobs and int(given.get(knob, knobs[knob].default)) > most:
                given[knob] = most
        if int(given.get("rewind", 0)) >= EPOCHS:
            given["rewind"] = EPOCHS - 1
        return replace(choice, given=tuple(sorted(given.items())))


def stand_in(dataset: Choice, arch: object) -> Mapping[str, int]:
    """Return what the stand-in of a data set is made from: its channels, and the pixels that the network takes."""
    channels = DATASETS[dataset.name].channels if dataset.name in DATASETS else 3
    large = isinstance(arch, Model | Plugin) and arch.halvings > 3
    return {
        "channels": channels,
        "size": LARGER if large else SIZE,
        "train": TRAIN,
        "test": TEST,
        "classes": CLASSES,
    }
