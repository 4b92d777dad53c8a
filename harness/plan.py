"""The plan: the stages that a sweep's cells are made of, shared wherever their content is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.errors import UserError
from harness.plugins import Plugin, freeze
from harness.spec import Sweep
from harness.store import Store, write_whole
from tost.catalog import nearest


@dataclass(frozen=True)
class Stage:
    """One unit of work with one artifact; its key is the hash of all that defines the artifact."""

    key: str
    kind: str
    spec: Mapping[str, Any]
    parents: Mapping[str, str]
    """Role -> key of the parent stage."""
    label: str
    place: str = ""
    """For a data stage, where its files lie: needed to run it, no part of its identity."""


@dataclass
class Plan:
    """All stages of a sweep, parents before children, and the stage that each cell ends in."""

    name: str
    stages: dict[str, Stage] = field(default_factory=dict)
    cells: list[tuple[Cell, str]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Data stage -> which of its files are missing, and where they go."""
    plugins: list[Plugin] = field(default_factory=list)
    imports: dict[str, Path] = field(default_factory=dict)
    """SHA-256 -> a file of masks that workers read from a copy in the store."""
    united: int = 0

    @cached_property
    def leaves(self) -> list[str]:
        """Return the keys that cells end in, each once."""
        return list(dict.fromkeys(key for _, key in self.cells))

    @cached_property
    def heights(self) -> dict[str, int]:
        """Return for each stage the number of trainings on the longest way down from it: long chains go first."""
        heights = dict.fromkeys(self.stages, 0)
        for stage in reversed(self.stages.values()):
            heights[stage.key] += stage.kind == "train"
            for parent in stage.parents.values():
                heights[parent] = max(heights[parent], heights[stage.key])
        return heights

    def missing(self) -> list[str]:
        """Return what must be there before these cells can run, one sentence each."""
        absent = dict.fromkeys(said for key, said in self.absent.items() if key in self.stages)
        return [*absent] + [
            f"world: {world}: training one cell with several processes is not part of this version; use world: 1"
            for world in sorted({cell.world for cell, _ in self.cells} - {1})
        ]

    def ancestors(self, key: str) -> set[str]:
        """Return a stage and everything it is made from."""
        found: set[str] = set()
        waiting = [key]
        while waiting:
            here = waiting.pop()
            if here not in found:
                found.add(here)
                waiting.extend(self.stages[here].parents.values())
        return found

    def unshared_trainings(self) -> int:
        """Count the trainings there would be if every cell made its own ticket."""
        trainings: dict[str, frozenset[str]] = {}
        for stage in self.stages.values():
            own = {stage.key} if stage.kind == "train" else set()
            trainings[stage.key] = frozenset(own.union(*(trainings[p] for p in stage.parents.values())))
        return sum(len(trainings[key]) for _, key in self.cells)

    def keep(self, cells: Iterable[tuple[Cell, str]]) -> Plan:
        """Return the plan of some of the cells."""
        chosen = list(cells)
        needed = set().union(*(self.ancestors(key) for key in {key for _, key in chosen})) if chosen else set()
        stages = {key: stage for key, stage in self.stages.items() if key in needed}
        return Plan(self.name, stages, chosen, self.absent, self.plugins, self.imports, self.united)

    def save(self, store: Store, sweep: Sweep, whole: bool) -> Path:
        """Write the plan for workers to read, the file as run and the plug-ins' frozen sources; return the plan's path.

        A plan's file is named by its content, so that calls with other cells, or an edited file, leave it alone;
        `plan.json` is the newest plan of the `whole` sweep, for workers started by hand.
        """
        folder = store.sweep(self.name)
        folder.mkdir(parents=True, exist_ok=True)
        for plugin in self.plugins:
            freeze(plugin, store.root)
        for sha256, path in self.imports.items():
            if not (copy := store.imported(sha256)).exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_whole(copy, path.read_bytes())
        write_whole(folder / "sweep.yaml", Path(sweep.document.file).read_bytes())
        rows = [[s.key, s.kind, dict(s.spec), dict(s.parents), s.label, s.place] for s in self.stages.values()]
        body = {"name": self.name, "leaves": self.leaves, "stages": rows}
        data = json.dumps(body, separators=(",", ":")).encode()
        path = folder / f"plan-{hashlib.sha256(data).hexdigest()[:12]}.json"
        write_whole(path, data)
        if whole:
            write_whole(folder / "plan.json", data)
        return path


def read_plan(path: Path) -> Plan:
    """Read the stages of a saved plan. Raises UserError where there is none."""
    try:
        body = json.loads(path.read_bytes())
        stages = {row[0]: Stage(*row) for row in body["stages"]}
        plan = Plan(body["name"], stages)
        plan.leaves = body["leaves"]
    except FileNotFoundError:
        folder = path.parent.parent
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        raise UserError(
            f"{path.parent.name!r} has no plan {path.name} in {folder}; there are {', '.join(there) or 'none'}"
            f"{nearest(path.parent.name, there)}. The sweep command writes one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a plan ({error}); run the sweep command again to rewrite it") from None
    return plan
