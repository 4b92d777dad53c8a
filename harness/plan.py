"""The plan: the stages that a sweep's cells are made of, shared wherever their content is the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.cell import Cell
from harness.plugins import Plugin


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
    world: int = 1
    """For a training, how many processes it asks for: no part of its identity either."""

    def dump(self) -> bytes:
        """Return what its key is the digest of, as the bytes of `spec.json`."""
        body = {"kind": self.kind, "parents": dict(self.parents), **self.spec}
        return json.dumps(body, indent=1, sort_keys=True).encode()


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
    """SHA-256 -> a file of masks, or of foreign numbers, that is read from a copy in the store."""
    united: int = 0
    beside: list[str] = field(default_factory=list)
    """Stages that are wanted though no cell ends in them."""

    @cached_property
    def leaves(self) -> list[str]:
        """Return the keys that cells end in, and those wanted beside them, each once."""
        return list(dict.fromkeys([*(key for _, key in self.cells), *self.beside]))

    @cached_property
    def inner(self) -> set[str]:
        """Return the keys of the stages that another stage is made from."""
        return {parent for stage in self.stages.values() for parent in stage.parents.values()}

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
        return list(dict.fromkeys(said for key, said in self.absent.items() if key in self.stages))

    def give_worlds(self, asked: Mapping[str, int]) -> None:
        """Give every training the most processes that any cell made from it asks for; masks are made by one process.

        `asked`: by the key of the stage that a cell ends in.
        """
        wanted = dict.fromkeys(self.stages, 1) | dict(asked)
        for stage in reversed(self.stages.values()):
            for parent in stage.parents.values():
                wanted[parent] = max(wanted[parent], wanted[stage.key])
        for key, world in wanted.items():
            if world > 1 and self.stages[key].kind == "train":
                self.stages[key] = replace(self.stages[key], world=world)

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

    def part(self, key: str) -> Plan:
        """Return the plan of one stage."""
        needed = self.ancestors(key)
        return Plan(self.name, {k: stage for k, stage in self.stages.items() if k in needed}, beside=[key])

    def keep(self, cells: Iterable[tuple[Cell, str]]) -> Plan:
        """Return the plan of some of the cells."""
        chosen = list(cells)
        needed = set().union(*(self.ancestors(key) for key in {key for _, key in chosen})) if chosen else set()
        stages = {key: stage for key, stage in self.stages.items() if key in needed}
        return Plan(self.name, stages, chosen, self.absent, self.plugins, self.imports, self.united)
