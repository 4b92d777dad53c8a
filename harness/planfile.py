"""The plan as a file: stages, their shared blocks written once, and the cells with their axes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.cell import AXES
from harness.declared import Declared
from harness.declaring import declare
from harness.errors import UserError
from harness.facts import Facts, Place, fact_reader
from harness.plan import Plan, Stage
from harness.plugins import freeze
from harness.provenance import source_digest
from harness.reading import read_document
from harness.sealed import seal, unseal
from harness.spec import Sweep
from harness.store import Store, canonical, file_sha256, write_whole
from tost.catalog import nearest

FORMAT = 5
NEWEST = "plan.json"


@dataclass(frozen=True)
class SavedPlan:
    """A plan as read back: its stages, its cells by axis labels, and the code that it was made with."""

    path: Path
    plan: Plan
    axes: list[str]
    cells: list[Place] = field(default_factory=list)
    source: str = ""
    launch: Mapping[str, Any] = field(default_factory=dict)
    """The file's `launch:` as it was."""
    declared: Declared = field(default_factory=Declared)
    """What the file says of its report."""
    wandb: Mapping[str, Any] = field(default_factory=dict)
    """The file's `wandb:` as it was, empty where it has none."""
    written: int = 0
    """The time of the plan's file when it was read: another says that it was replaced, and decides no more."""

    def places(self) -> list[tuple[dict[str, str], str]]:
        """Return the cells as axis -> label, with their keys."""
        return [(dict(zip(self.axes, cell.labels, strict=True)), cell.key) for cell in self.cells]


def as_saved(plan: Plan, sweep: Sweep) -> SavedPlan:
    """Return a plan just made as if it had been saved and read back."""
    axes, labels = labelled(plan)
    facts = fact_reader()
    cells = [Place(names, key, facts(cell)) for names, (cell, key) in zip(labels, plan.cells, strict=True)]
    launch = sweep.file.launch.model_dump(mode="json")
    wandb = sweep.file.wandb.model_dump(mode="json") if sweep.file.wandb else {}
    return SavedPlan(Path(), plan, axes, cells, source_digest(), launch, declare(sweep, plan), wandb)


def labelled(plan: Plan) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the axes that tell a plan's cells apart (the grid's, then fields and knobs), and every cell's labels."""
    axes = list(dict.fromkeys([*AXES[:-1], *(name for cell, _ in plan.cells for name, _ in cell.extra)]))
    return axes, [tuple(str(cell.axis(axis)) for axis in axes) for cell, _ in plan.cells]


class _Blocks:
    """Values that many rows share, each written once and named by its number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.known: dict[str | bytes, int] = {}
        self.seen: dict[int, tuple[Any, int]] = {}

    def number(self, value: Any) -> int:
        """Return the number of a value, given one where it is new."""
        if (found := self.seen.get(id(value))) is not None:
            return found[1]
        text = value if isinstance(value, str) else canonical(value)
        if text not in self.known:
            self.known[text] = len(self.values)
            self.values.append(value)
        if not isinstance(value, str):
            self.seen[id(value)] = (value, self.known[text])  # the value is kept, so that its id stays its own
        return self.known[text]


class _Dumps:
    """Facts that many cells share, each written once."""

    def __init__(self, blocks: _Blocks) -> None:
        self.blocks, self.known = blocks, dict[int, tuple[Facts, int]]()

    def number(self, facts: Facts) -> int:
        """Return the number of some facts."""
        if id(facts) not in self.known:
            self.known[id(facts)] = (facts, self.blocks.number(facts.dump()))
        return self.known[id(facts)][1]


def save_plan(plan: Plan, store: Store, sweep: Sweep, whole: bool) -> Path:
    """Write the plan for workers to read, the file as run and the plug-ins' frozen sources; return the plan's path.

    A plan's file is named by its content, so that calls with other cells, or an edited file, leave it alone;
    `plan.json` is the newest plan of the `whole` sweep, for workers started by hand.
    """
    folder = _keep_sources(plan, store, sweep)
    data = dump(as_saved(plan, sweep))
    path = folder / f"plan-{hashlib.sha256(data).hexdigest()[:12]}.json"
    write_whole(path, data)
    if whole:
        write_whole(folder / NEWEST, data)
    return path


def save_growing(plan: Plan, store: Store, sweep: Sweep, own: Path) -> None:
    """Write a plan that is written anew with every trial of a search: as a call's own, and as the sweep's newest."""
    data = dump(as_saved(plan, sweep))
    own.parent.mkdir(parents=True, exist_ok=True)
    for path in (own, _keep_sources(plan, store, sweep) / NEWEST):
        write_whole(path, data)


def _keep_sources(plan: Plan, store: Store, sweep: Sweep) -> Path:
    """Write what workers read beside a plan; return the sweep's folder."""
    folder = store.sweep(plan.name)
    folder.mkdir(parents=True, exist_ok=True)
    keep_methods(plan, store)
    write_whole(folder / "sweep.yaml", Path(sweep.document.file).read_bytes())
    return folder


def keep_methods(plan: Plan, store: Store) -> None:
    """Copy the users' own methods and the files from outside that a plan's stages read into the store."""
    for plugin in plan.plugins:
        freeze(plugin, store.root)
    for sha256, path in plan.imports.items():
        if not (copy := store.imported(sha256)).is_file() or file_sha256(copy) != sha256:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_whole(copy, path.read_bytes())


def dump(saved: SavedPlan) -> bytes:
    """Return a plan as a file's bytes."""
    blocks, row = _Blocks(), {key: number for number, key in enumerate(saved.plan.stages)}
    stages = [
        [
            stage.key,
            stage.kind,
            {name: blocks.number(value) for name, value in stage.spec.items()},
            {role: row[parent] for role, parent in stage.parents.items()},
            stage.label,
            stage.place,
            stage.world,
        ]
        for stage in saved.plan.stages.values()
    ]
    facts = _Dumps(blocks)
    cells = [
        [[blocks.number(label) for label in cell.labels], row[cell.key], facts.number(cell.facts)]
        for cell in saved.cells
    ]
    body = {
        "format": FORMAT,
        "name": saved.plan.name,
        "source": saved.source,
        "launch": dict(saved.launch),
        "wandb": dict(saved.wandb),
        "declared": saved.declared.model_dump(mode="json"),
        "blocks": blocks.values,
        "axes": saved.axes,
        "stages": stages,
        "leaves": [row[key] for key in saved.plan.leaves],
        "cells": cells,
    }
    return seal(body)


def read_plan(path: Path) -> SavedPlan:
    """Read a saved plan. Raises UserError where there is none, or one that this version cannot read."""
    try:
        written = path.stat().st_mtime_ns
        body = unseal(path.read_bytes())
        if body.get("format") != FORMAT:
            raise ValueError("written by another version")
        blocks, keys = body["blocks"], [stage[0] for stage in body["stages"]]
        plan = Plan(body["name"], dict(zip(keys, _stages(body["stages"], blocks, keys), strict=True)))
        plan.leaves = [keys[number] for number in body["leaves"]]
        facts = {number: Facts.read(blocks[number]) for number in {row[2] for row in body["cells"]}}
        cells = [
            Place(tuple(blocks[label] for label in labels), keys[number], facts[known])
            for labels, number, known in body["cells"]
        ]
        declared = Declared.model_validate(body["declared"])
        launch, wandb = body["launch"], body.get("wandb", {})
        return SavedPlan(path, plan, body["axes"], cells, body["source"], launch, declared, wandb, written)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(_unknown(path)) from None
    except (IsADirectoryError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        why = "a folder" if isinstance(error, IsADirectoryError) else f"damaged, or of another version: {error}"
        raise UserError(f"{path}: not a plan ({why}); run the sweep command again to rewrite it") from None


def _unknown(path: Path) -> str:
    """Say that a plan is not there, and what is."""
    name, root = path.parent.name, path.parents[2]
    there = sweep_names(Store(root))
    plan = "plan" if path.name == NEWEST else f"plan {path.name}"
    has = f"there are {', '.join(there)}{nearest(name, there)}" if there else "there are none"
    return (
        f"{name!r} has no {plan} in the store {root}; {has}. The sweep command writes one; --store names another store"
    )


def _stages(rows: Iterable[list[Any]], blocks: list[Any], keys: list[str]) -> Iterable[Stage]:
    for key, kind, spec, parents, label, place, world in rows:
        yield Stage(
            key,
            kind,
            {name: blocks[number] for name, number in spec.items()},
            {role: keys[number] for role, number in parents.items()},
            label,
            place,
            world,
        )


def sweep_name(given: str) -> str:
    """Return a sweep's name, from a name or from its file. Raises UserError where the file has none."""
    if not given.endswith((".yaml", ".yml")):
        return given
    name = read_document(Path(given)).values.get("name")
    if not isinstance(name, str):
        raise UserError(f"{given}: has no `name:`; write one, or give the sweep's name")
    return name


def earlier_plans(store: Store, name: str) -> list[Path]:
    """Return a sweep's saved plans, the newest first; by their files' times, which decide no more than an order."""
    found = store.sweep(name).glob("plan-*.json")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def find_plan(store: Store, name: str) -> Path:
    """Return the file of a sweep's newest whole plan, or of its newest partial one where none was ever whole."""
    whole = store.sweep(name) / NEWEST
    return whole if whole.exists() else next(iter(earlier_plans(store, name)), whole)


def plans_in_force(store: Store, name: str) -> list[Path]:
    """Return the plans that a sweep still stands for: its newest whole one, and partial ones made after it."""
    whole = store.sweep(name) / NEWEST
    since = whole.stat().st_mtime_ns if whole.exists() else 0
    later = [path for path in earlier_plans(store, name) if path.stat().st_mtime_ns >= since]
    return [*([whole] if since else []), *later]


def sweep_names(store: Store) -> list[str]:
    """Return the names of all sweeps of a store."""
    folder = store.root / "sweeps"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
