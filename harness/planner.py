"""From cells to stages: what each stage's artifact depends on, and so what its key holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.axes import DENSE, Choice, Recipe, Sparsity
from harness.catalog import Dataset
from harness.cell import Cell, expand
from harness.errors import Fault
from harness.plan import Plan, Stage
from harness.plugins import Plugin
from harness.protocol import Protocol
from harness.sources import Source, find_source
from harness.spec import Sweep
from harness.store import Store, digest
from tost.catalog import Entry, MaskMethod, Model, settings

DATA_VERSION = 1
TRAIN_VERSION = 1
MASK_VERSION = 1
"""Raised whenever the same spec would give another artifact: a change of the loop, of the selection, of decoding."""

WINDOWS = {"early": (0.0, 1 / 6), "permanent": (2.0, 3.0)}


def make_plan(sweep: Sweep, store: Store, data: Path) -> Plan:
    """Expand a sweep into cells and their stages. Reads the data sets' files to hash them; runs nothing."""
    cells, united = expand(sweep)
    planner = _Planner(sweep, store, data)
    plan = planner.plan
    plan.united = united
    by_key: dict[str, Cell] = {}
    for cell in cells:
        key = planner.cell(cell)
        if key in by_key and by_key[key].protocol is cell.protocol:
            plan.united += 1
            continue
        by_key[key] = cell
        plan.cells.append((cell, key))
    plan.plugins = list(sweep.names.plugins.values())
    return plan


class _Planner:
    """Turns cells into stages; every part of a spec is made once and shared."""

    def __init__(self, sweep: Sweep, store: Store, data: Path) -> None:
        self.sweep, self.store, self.data = sweep, store, data
        self.plan = Plan(sweep.name)
        self.sources: dict[Choice, Source] = {}
        self.memo: dict[tuple[Any, ...], str] = {}

    def cell(self, cell: Cell) -> str:
        """Return the key of the training that a cell ends in."""
        mask = None if cell.mask.name == DENSE else self.mask(cell)
        recipe = self.recipe(cell.recipe, cell.protocol)
        key = self.train(cell, mask, recipe, cell.seed, cell.label)
        self.plan.stages[key] = replace(self.plan.stages[key], label=cell.label)  # where a chain's round is a cell too
        return key

    def entry(self, kind: str, choice: Choice) -> dict[str, Any]:
        """Return what a key holds of a chosen method."""
        entry = self.sweep.names.entry(kind, choice.name)
        if isinstance(entry, Plugin):
            spec: dict[str, Any] = {"source": entry.source, "path": entry.path}
        else:
            spec = {"name": choice.name, "version": entry.version}
        return {**spec, "args": dict(choice.given)} if choice.given else spec

    def add(self, kind: str, spec: dict[str, Any], parents: dict[str, str], label: str, place: str = "") -> str:
        """Add a stage, unless the plan has it; return its key."""
        key = digest({"kind": kind, "parents": parents, **spec})
        if key not in self.plan.stages:
            self.plan.stages[key] = Stage(key, kind, spec, parents, label, place)
        return key

    def dataset(self, cell: Cell) -> str:
        """Return the data stage of a cell: its data set, upsampled where the network would halve it away."""
        entry = self.sweep.names.entry("dataset", cell.dataset.name)
        arch = self.sweep.names.entry("arch", cell.arch.name)
        size = cell.protocol.resize
        if not size and isinstance(entry, Dataset) and isinstance(arch, Model | Plugin) and arch.halvings > 3:
            size = entry.upsample
        memo = ("data", cell.dataset, size)
        if memo not in self.memo:
            source = self.source(cell.dataset, entry)
            spec = {"version": DATA_VERSION, "dataset": self.entry("dataset", cell.dataset), "content": source.content}
            if size:
                spec["size"] = size
            key = self.add("data", spec, {}, f"data {cell.dataset.label}", str(source.path))
            self.memo[memo] = key
            if source.missing:
                self.plan.absent[key] = source.missing
        return self.memo[memo]

    def source(self, choice: Choice, entry: Entry) -> Source:
        """Locate a data set once."""
        if choice not in self.sources:
            self.sources[choice] = find_source(choice, entry, self.data, self.store.root / "cache")
        return self.sources[choice]

    def recipe(self, recipe: Recipe, protocol: Protocol) -> list[dict[str, Any]]:
        """Return a recipe's parts with every window resolved to progress."""
        parts = []
        for choice in recipe.parts:
            spec = self.entry("part", choice)
            entry = self.sweep.names.entry("part", choice.name)
            if "window" in entry.knobs or (isinstance(entry, Plugin) and "window" in entry.parameters):
                name = str(settings(entry, dict(choice.given)).get("window", "default"))
                drop = protocol.first_drop
                window = WINDOWS.get(name, (drop / 2, drop * 89 / 90))
                spec["args"] = {**spec.get("args", {}), "window": list(window)}
            parts.append(spec)
        return parts

    def train(self, cell: Cell, mask: str | None, recipe: list[dict[str, Any]], seed: int, label: str) -> str:
        """Return the training with a mask (or dense), a recipe and a seed for the data order."""
        spec: dict[str, Any] = {
            "version": TRAIN_VERSION,
            "arch": self.entry("arch", cell.arch),
            "ticket_seed": cell.ticket_seed,
            "seed": seed,
            "recipe": recipe,
            "protocol": cell.protocol.training,
            **self.views(cell),
        }
        if cell.protocol.augment == "standard":
            spec["augment"] = {"pad": cell.images.pad, "flip": cell.images.flip}
        parents = {"data": self.dataset(cell), **({"mask": mask} if mask else {})}
        return self.add("train", spec, parents, label)

    def mask(self, cell: Cell) -> str:
        """Return the mask of a cell; a lottery ticket is the cut of a chain of trainings."""
        entry = self.sweep.names.entry("mask", cell.mask.name)
        memo = ("mask", cell.dataset, cell.arch, cell.mask, cell.sparsity, cell.ticket_seed, id(cell.protocol))
        if memo not in self.memo:
            parents = {"data": self.dataset(cell)}
            if isinstance(entry, MaskMethod) and entry.chain:
                parents["trained"] = self.chain(cell, cell.sparsity.chain_level)
            self.memo[memo] = self.cut(cell, cell.sparsity, parents)
        return self.memo[memo]

    def cut(self, cell: Cell, sparsity: Sparsity, parents: dict[str, str]) -> str:
        """Return the mask stage that keeps a sparsity's share of the highest scores."""
        spec = {
            "version": MASK_VERSION,
            "arch": self.entry("arch", cell.arch),
            "method": self.entry("mask", cell.mask),
            "sparsity": sparsity.canonical,
            "prunable": cell.protocol.prunable,
            "ticket_seed": cell.ticket_seed,
            **self.views(cell),
        }
        where = f"{cell.dataset.label} {cell.arch.label} {cell.mask.label} {sparsity.label}"
        return self.add("mask", spec, parents, f"mask {where} ticket seed {cell.ticket_seed}")

    def views(self, cell: Cell) -> dict[str, Any]:
        """Return which images are held out for dev, and how pixels are scaled: trainings and scores depend on both."""
        mean, std = cell.images.mean, cell.images.std
        return {"dev": cell.dev, "normalize": [list(mean), list(std)] if mean else "measured"}

    def chain(self, cell: Cell, level: int) -> str:
        """Return the training of a chain's round; round 0 is dense, each later one wears the cut of the round before.

        The rounds are plain `default` trainings ordered by the ticket seed, so that round 0 is the dense row too.
        """
        memo = ("chain", cell.dataset, cell.arch, cell.mask, cell.ticket_seed, id(cell.protocol))
        start = max((n for n in range(level + 1) if (*memo, n) in self.memo), default=-1)
        for n in range(start + 1, level + 1):
            mask = None
            if n > 0:
                parents = {"data": self.dataset(cell), "trained": self.memo[(*memo, n - 1)]}
                mask = self.cut(cell, Sparsity(level=n), parents)
            label = f"{cell.dataset.label} {cell.arch.label} {cell.mask.label} round {n} ticket seed {cell.ticket_seed}"
            self.memo[(*memo, n)] = self.train(cell, mask, [], cell.ticket_seed, label)
        return self.memo[(*memo, level)]


def unlaunchable(sweep: Sweep) -> list[Fault]:
    """Return what a sweep file asks for that this version cannot launch."""
    via = sweep.file.launch.via
    if via == "local":
        return []
    mark = sweep.document.mark(("launch", "via"))
    return [Fault(mark, f"launch.via: {via!r} is not part of this version; use via: local, or --via local")]
