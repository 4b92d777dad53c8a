"""Cleaning up: what no sweep's plan refers to any more, and what finished work left behind."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.claims import Observer
from harness.errors import UserError
from harness.plan import Plan
from harness.planfile import earlier_plans, plans_in_force, read_plan, sweep_names
from harness.publication import KEPT
from harness.states import state_of
from harness.store import KINDS, Folder, Store, forget_index, remove_dead_drafts

TRASH = "trash"
MOST_PLANS = 20
"""Earlier plans of a sweep that are searched for cells that it had."""


@dataclass
class Waste:
    """What may be removed."""

    stages: list[Folder] = field(default_factory=list)
    """Stages that no sweep's newest plan refers to, and that nobody works on."""
    files: list[Path] = field(default_factory=list)
    """Checkpoints and drafts of finished stages, damaged artifacts, copies that no plan needs, old plans."""
    running: int = 0
    """Stages that nothing refers to but that somebody works on: left alone."""
    bytes: int = 0


def _referred(store: Store, plans: Iterable[Plan]) -> tuple[set[str], set[str]]:
    """Return the stages' keys, and the hashes of sources and imports, that plans refer to."""
    keys: set[str] = set()
    copies: set[str] = set()
    for plan in plans:
        keys.update(plan.stages)
        for stage in plan.stages.values():
            copies.update(_copies(stage.spec))
    return keys, copies


def _copies(spec: object) -> Iterator[str]:
    if isinstance(spec, dict):
        for name, value in spec.items():
            if name in ("source", "sha256") and isinstance(value, str):
                yield value
            else:
                yield from _copies(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _copies(value)


def find_waste(store: Store, plan: Plan, observer: Observer) -> Waste:
    """Look for what neither this plan nor any sweep's newest one refers to. Raises UserError for an unreadable plan."""
    others = [path for name in sweep_names(store) if name != plan.name for path in plans_in_force(store, name)]
    saved = [read_plan(path) for path in others]
    keys, copies = _referred(store, [plan, *(one.plan for one in saved)])
    copies |= {*plan.imports, *(sha256 for one in saved for sha256 in one.declared.baselines.values())}
    waste = Waste()
    for folder in _folders(store):
        if folder.path.name in keys:
            waste.files += _left_over(folder, observer)
        elif (folder.result() or folder.generation) and state_of(folder, observer).name == "running":
            waste.running += 1
        else:
            waste.stages.append(folder)
    for kind in ("plugins", "imports"):
        place = store.root / kind
        waste.files += [p for p in (sorted(place.iterdir()) if place.is_dir() else []) if p.name not in copies]
    for name in sweep_names(store):
        in_force = {path.read_bytes() for path in plans_in_force(store, name)}
        waste.files += [path for path in earlier_plans(store, name) if path.read_bytes() not in in_force]
    trash = store.root / TRASH
    waste.files += sorted(trash.iterdir()) if trash.is_dir() else []
    waste.bytes = sum(_size(folder.path) for folder in waste.stages) + sum(map(_size, waste.files))
    return waste


def _folders(store: Store) -> Iterator[Folder]:
    for kind in KINDS:
        for path in sorted((store.root / "stages" / kind).glob("*/*")):
            yield store.folder(kind, path.name)


def _left_over(folder: Folder, observer: Observer) -> Iterator[Path]:
    """Yield what a finished stage needs no more; one that somebody works on, or is to go on with, is left alone."""
    result = folder.result()
    end = folder.end(folder.generation) if folder.generation else None
    over = end is None or end.get("outcome") in ("published", "restored", "gave up")
    if result is None or not over or (folder.generation and state_of(folder, observer).name in ("running", "lost")):
        return
    for path in sorted(folder.path.iterdir()):
        if path.name.startswith((".draft-", ".copy-", "damaged-")) or (
            path.suffix == ".safetensors" and path.name != result.artifact.file
        ):
            yield path
        elif path.is_dir():
            yield from (file for file in sorted(path.iterdir()) if file.name not in KEPT)


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def remove(store: Store, waste: Waste) -> None:
    """Remove what was found; a stage's folder leaves its place in one step, so that nobody sees half of it."""
    trash = store.root / TRASH
    trash.mkdir(exist_ok=True)
    for folder in waste.stages:
        if store.folder(folder.path.parent.parent.name, folder.path.name).names != folder.names:
            continue  # somebody has come since
        gone = trash / uuid.uuid4().hex
        folder.path.rename(gone)
        if frozenset(os.listdir(gone)) != folder.names and not folder.path.exists():
            gone.rename(folder.path)
        else:
            shutil.rmtree(gone, ignore_errors=True)
    forget_index(store)
    for path in waste.files:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for draft in store.root.rglob(".draft-*"):
        remove_dead_drafts(draft.parent)
    shutil.rmtree(trash, ignore_errors=True)


def orphans(store: Store, plan: Plan) -> list[str]:
    """Return the labels of finished cells that earlier plans of this sweep had and this one has not."""
    now = set(plan.leaves)
    found: dict[str, str] = {}
    for path in earlier_plans(store, plan.name)[:MOST_PLANS]:
        try:
            earlier = read_plan(path).plan
        except UserError:  # written by an older version
            continue
        for key in earlier.leaves:
            if key not in now and key not in found and store.folder("train", key).result():
                found[key] = earlier.stages[key].label
    return list(found.values())
