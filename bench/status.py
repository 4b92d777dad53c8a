"""How long `harness status` takes on 100,000 stages, with and without its index, and in how many file operations."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Given, Row, command
from harness.facts import Place
from harness.plan import Plan, Stage
from harness.planfile import NEWEST, SavedPlan, dump
from harness.store import Artifact, Result, Store, digest, write_whole

STAGES, FEW = 100_000, 1_000
DONE = 0.9
"""The share of stages that are finished."""


def build(folder: Path, stages: int) -> None:
    """Write a plan of so many stages and the results of most."""
    store, plan, cells = Store(folder / "runs"), Plan("many"), []
    protocol, arch = {"epochs": 8, "batch": 64}, {"name": "resnet20", "version": 1}

    def add(kind: str, spec: dict[str, object], parents: dict[str, str], label: str) -> str:
        key = digest({"kind": kind, "parents": parents, **spec})
        plan.stages[key] = Stage(key, kind, spec, parents, label)
        return key

    data = add("data", {"n": 0}, {}, "data")
    for number in range(stages // 2):
        mask = add("mask", {"arch": arch, "n": number}, {"data": data}, f"mask {number}")
        spec = {"arch": arch, "protocol": protocol, "recipe": [], "seed": number}
        train = add("train", spec, {"data": data, "mask": mask}, f"training {number}")
        cells.append(Place(("resnet20", str(number % 97), str(number)), train))
    plan.leaves = [cell.key for cell in cells]
    store.sweep("many").mkdir(parents=True)
    write_whole(store.sweep("many") / NEWEST, dump(SavedPlan(Path(), plan, ["arch", "mask", "seed"], cells)))
    for key, stage in list(plan.stages.items())[: int(DONE * stages)]:
        path = store.path(stage.kind, key)
        path.mkdir(parents=True)
        read = {parent: digest(parent) for parent in stage.parents.values()}
        told = {"seconds": 10.0, "finished": "2020-01-01T00:00:00Z"}
        result = Result(1, Artifact(digest(key), 1000), read, {}, {"device": "cpu"}, told)
        (path / "result-0001.json").write_bytes(result.dump())
        (path / "claim-0001").write_bytes(b"{}\n")
        (path / "attempt-0001").mkdir()


def measure(given: Given) -> Iterator[Row]:
    """Yield the seconds and the file operations of three calls."""
    stages = FEW if given.small else STAGES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, stages)
        for what in ("without an index", "with it", "with it, again"):
            began = time.perf_counter()
            done = command("harness.cli", "status", "many", "--json", cwd=folder)
            seconds, operations = time.perf_counter() - began, json.loads(done.stdout)["file_operations"]
            yield {"status": what, "stages": stages, "seconds": seconds, "file operations": operations}
