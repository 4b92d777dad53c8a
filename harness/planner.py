"""From cells to stages: what each stage's artifact depends on, and so what its key holds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.axes import Sparsity
from harness.catalog import Dataset
from harness.cell import Cell, expand
from harness.errors import Fault, FileError
from harness.miniature import Shrink, stand_in
from harness.names import DENSE, FILE, SMALL, Choice
from harness.plan import Plan, Stage
from harness.plugins import Plugin
from harness.probe import misfit
from harness.protocol import Protocol
from harness.recipes import read_recipe
from harness.refusals import refuse
from harness.sources import Source, find_source
from harness.spec import Sweep
from harness.specs import Specs
from harness.store import Store, digest, file_sha256
from tost.catalog import PARTS, Entry, Model, Part

DATA_VERSION = 1
TRAIN_VERSION = 2
MASK_VERSION = 2
RESCALE_VERSION = 1
COST_VERSION = 1
"""Raised whenever the same spec would give another artifact: a change of the loop, of the selection, of decoding."""


def data_folder(sweep: Sweep, given: Path | None) -> Path:
    """Return where data sets lie: as given, `data:` of the file (relative to it), $HARNESS_DATA, or ./data."""
    if given is None and sweep.file.data:
        given = Path(sweep.document.file).parent / sweep.file.data
    return given or Path(os.environ.get("HARNESS_DATA", "data"))


def make_plan(sweep: Sweep, store: Store, data: Path, miniature: bool = False, together: int = 0) -> Plan:
    """Expand a sweep into cells and their stages. Reads the data sets' files to hash them; runs nothing.

    A miniature has the same graph with few steps of everything, and reads no data set; in it, `together` cells of those
    that ask for several processes are trained by two.
    """
    cells, united = expand(sweep)
    planner = Planner(sweep, store, data, miniature)
    plan = planner.plan
    plan.united = united
    masks_only: list[Cell] = []
    if miniature:
        cells, masks_only = Shrink(sweep.names, together).cells(cells)
    by_key: dict[str, Cell] = {}
    worlds: dict[str, int] = {}
    for cell in cells:
        key = planner.cell(cell)
        worlds[key] = max(worlds.get(key, 1), cell.world)
        if key in by_key and by_key[key].protocol is cell.protocol:
            plan.united += 1
            continue
        by_key[key] = cell
        plan.cells.append((cell, key))
    masks = (planner.mask(cell, planner.ticket(cell)) for cell in masks_only)
    plan.beside = [mask for mask in masks if mask is not None]
    plan.give_worlds(worlds)
    plan.imports.update((sha256, path) for _, path, sha256 in sweep.foreign_files())
    plan.plugins = list(sweep.names.plugins.values())
    return plan


class Planner:
    """Turns cells into stages; every part of a spec is made once and shared."""

    def __init__(self, sweep: Sweep, store: Store, data: Path, miniature: bool = False) -> None:
        self.sweep, self.store, self.data, self.miniature = sweep, store, data, miniature
        self.blind = {"blind": True} if sweep.search else {}
        self.plan = Plan(sweep.name)
        self.sources: dict[Choice, Source] = {}
        self.memo: dict[tuple[Any, ...], str] = {}
        self.specs = Specs(sweep.names)
        self.fits: set[tuple[Any, ...]] = set()
        self.plain: dict[int, Protocol] = {}

    def cell(self, cell: Cell) -> str:
        """Return the key of the training that a cell ends in."""
        refuse(cell, self.sweep)
        self.fitting(cell)
        ticket = self.ticket(cell)
        theta, parents = self.theta(cell, ticket)
        if (mask := self.mask(cell, ticket)) is not None:
            parents["mask"] = mask
        more: dict[str, Any] = {}
        if self.specs.at(cell.mask) == "training":
            more["prune"] = self.pruning(cell)
        if cell.protocol.match_cost:
            matched = read_recipe(cell.protocol.match_cost, self.sweep.names)
            more["match_cost"] = {"version": COST_VERSION, "recipe": self.specs.recipe(matched, cell.protocol)}
        for part in cell.recipe.parts:
            entry = self.sweep.names.entry("part", part.name)
            if isinstance(entry, Part) and entry.stage:
                parents["rescale"] = self.rescale(ticket, theta, parents, part)
        recipe = self.specs.recipe(cell.recipe, cell.protocol)
        key = self.train(cell, theta, parents, cell.label, seed=cell.seed, recipe=recipe, **more)
        self.plan.stages[key] = replace(self.plan.stages[key], label=cell.label)  # where a chain's round is a cell too
        return key

    def fitting(self, cell: Cell) -> None:
        """Raise FileError where a recipe's part has nothing to hold on to in another library's network."""
        parts = tuple(part for part in cell.recipe.parts if part.name in PARTS)
        if ":" not in cell.arch.name or not parts or (cell.arch, parts) in self.fits:
            return
        self.fits.add((cell.arch, parts))
        if said := misfit(cell.arch, parts, self.store.root / "cache"):
            raise FileError([Fault(self.sweep.document.mark(("grid",)), f"{cell.label}: {said}")])

    def ticket(self, cell: Cell) -> Cell:
        """Return a cell as its ticket sees it: without its control and without a lengthened training."""
        protocol = cell.protocol
        if protocol.match_cost:
            self.plain.setdefault(id(protocol), protocol.model_copy(update={"match_cost": ""}))
            protocol = self.plain[id(protocol)]
        return replace(cell, protocol=protocol, mask=cell.mask.without("control"))

    def theta(self, cell: Cell, ticket: Cell) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what the weights that training starts from depend on: spec fields and parents."""
        spec: dict[str, Any] = {"arch": self.specs.entry("arch", cell.arch), "ticket_seed": cell.ticket_seed}
        parents = {"data": self.dataset(cell)}
        if cell.mask.get("control", "none") == "fresh":
            spec["init"] = "fresh"
        if cell.mask.name == SMALL:
            spec["small"] = {"sparsity": cell.sparsity.canonical, "prunable": cell.protocol.prunable}
        if epoch := int(cell.mask.get("rewind", 0)):
            spec["rewind"] = epoch
            parents["start"] = self.start(ticket, epoch)
        return spec, parents

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
        if self.miniature:
            made = {"standin": dict(stand_in(cell.dataset, arch))}
            return self.add("data", {"version": DATA_VERSION, **made}, {}, f"stand-in for {cell.dataset.label}")
        memo = ("data", cell.dataset, size)
        if memo not in self.memo:
            source = self.source(cell.dataset, entry)
            spec = {
                "version": DATA_VERSION,
                "dataset": self.specs.entry("dataset", cell.dataset),
                "content": source.content,
            }
            if size:
                spec["size"] = size
            key = self.add("data", spec, {}, f"data {cell.dataset.label}", source.place)
            self.memo[memo] = key
            if source.missing:
                self.plan.absent[key] = source.missing
        return self.memo[memo]

    def source(self, choice: Choice, entry: Entry) -> Source:
        """Locate a data set once."""
        if choice not in self.sources:
            self.sources[choice] = find_source(choice, entry, self.data, self.store.root / "cache")
        return self.sources[choice]

    def train(
        self,
        cell: Cell,
        theta: dict[str, Any],
        parents: dict[str, str],
        label: str,
        *,
        seed: int,
        recipe: list[dict[str, Any]],
        **more: Any,
    ) -> str:
        """Return the training of a network from its first weights, with a recipe and a seed for the data order."""
        spec = {
            "version": TRAIN_VERSION,
            **theta,
            "seed": seed,
            "recipe": recipe,
            "protocol": cell.protocol.training,
            **self.specs.views(cell),
            **self.specs.augment(cell),
            **self.blind,
            **more,
        }
        return self.add("train", spec, parents, label)

    def rescale(self, ticket: Cell, theta: dict[str, Any], parents: dict[str, str], part: Choice) -> str:
        """Return the scales that a part learns for a ticket, whatever recipe it is in."""
        spec = {
            "version": RESCALE_VERSION,
            **theta,
            "method": self.specs.entry("part", part),
            "batch": ticket.protocol.batch,
            **self.specs.views(ticket),
            **self.specs.augment(ticket),
        }
        return self.add("rescale", spec, dict(parents), f"{part.name} {self.where(ticket)}")

    def mask(self, cell: Cell, ticket: Cell) -> str | None:
        """Return the mask of a cell, where it has one before training."""
        at = self.specs.at(ticket.mask)
        if at in ("none", "training"):
            return None
        memo = ("mask", *self.identity(ticket), ticket.sparsity)
        if memo not in self.memo:
            parents = {"data": self.dataset(ticket)}
            if at in ("trained", "chain"):
                parents["trained"] = self.chain(ticket, ticket.sparsity.chain_level if at == "chain" else 0)
            self.memo[memo] = self.cut(ticket, ticket.sparsity, parents)
        key = self.memo[memo]
        if cell.mask.get("control", "none") != "shuffled":
            return key
        spec = {"version": MASK_VERSION, "control": "shuffled", "ticket_seed": cell.ticket_seed}
        return self.add("mask", spec, {"mask": key}, f"shuffled mask {self.where(ticket)}")

    def cut(self, ticket: Cell, sparsity: Sparsity, parents: dict[str, str]) -> str:
        """Return the mask stage that keeps a sparsity's share of the highest scores."""
        spec = {
            "version": MASK_VERSION,
            "arch": self.specs.entry("arch", ticket.arch),
            **self.pruning(replace(ticket, sparsity=sparsity)),
            "ticket_seed": ticket.ticket_seed,
            **self.specs.views(ticket),
        }
        return self.add("mask", spec, parents, f"mask {self.where(replace(ticket, sparsity=sparsity))}")

    def pruning(self, cell: Cell) -> dict[str, Any]:
        """Return what a mask depends on beside the network: method, sparsity, prunable set; of a file, its content."""
        spec = self.specs.pruning(cell)
        if cell.mask.name == FILE:
            spec["method"]["sha256"] = self.imported(Path(cell.mask.folder))
        return spec

    def imported(self, path: Path) -> str:
        """Return the hash of a file of masks, read once; the plan keeps a copy of the file for the workers."""
        memo = ("file", path)
        if memo not in self.memo:
            self.memo[memo] = file_sha256(path)
            self.plan.imports[self.memo[memo]] = path
        return self.memo[memo]

    def identity(self, ticket: Cell) -> tuple[Any, ...]:
        """Return what the stages of a ticket are remembered by."""
        return (ticket.dataset, ticket.arch, ticket.mask, ticket.ticket_seed, id(ticket.protocol))

    def where(self, ticket: Cell) -> str:
        """Return a ticket in one line."""
        shown = [ticket.dataset.label, ticket.arch.label, ticket.mask.label]
        if ticket.mask.name != DENSE:
            shown.append(ticket.sparsity.label)
        return " ".join([*shown, f"ticket seed {ticket.ticket_seed}"])

    def chain(self, ticket: Cell, level: int) -> str:
        """Return the training of a chain's round; round 0 is dense, each later one wears the cut of the round before.

        The rounds are plain `default` trainings ordered by the ticket seed, so that round 0 is the dense row too.
        """
        memo = ("chain", *self.identity(ticket))
        first = max((n for n in range(level + 1) if (*memo, n) in self.memo), default=-1)
        theta, parents = self.theta(ticket, ticket)
        for n in range(first + 1, level + 1):
            worn = {}
            if n > 0:
                trained = {"data": parents["data"], "trained": self.memo[(*memo, n - 1)]}
                worn["mask"] = self.cut(ticket, Sparsity(level=n), trained)
            shown = f"{ticket.dataset.label} {ticket.arch.label} {ticket.mask.label} round {n}"
            label = f"{shown} ticket seed {ticket.ticket_seed}"
            self.memo[(*memo, n)] = self.train(
                ticket, theta, {**parents, **worn}, label, seed=ticket.ticket_seed, recipe=[]
            )
        return self.memo[(*memo, level)]

    def start(self, ticket: Cell, epoch: int) -> str:
        """Return the dense training up to the epoch that tickets are rewound to."""
        spec: dict[str, Any] = {"arch": self.specs.entry("arch", ticket.arch), "ticket_seed": ticket.ticket_seed}
        label = f"{ticket.dataset.label} {ticket.arch.label} to epoch {epoch} ticket seed {ticket.ticket_seed}"
        parents = {"data": self.dataset(ticket)}
        return self.train(ticket, spec, parents, label, seed=ticket.ticket_seed, recipe=[], until=epoch)
