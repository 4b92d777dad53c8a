"""The pilot: stages that no record tells of are tried out for some steps in a process of their own, and remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.costs import Costs, Record, units
from harness.frontier import Frontier
from harness.plan import Stage
from harness.store import digest, read_sealed, sealed, write_whole

SECONDS = 1.5
"""How long the steps of one kind of training are timed."""
PILOTS_VERSION = 2


def _note(cache: Path, costs: Costs, stage: Stage) -> Path:
    name = [str(part) for part in costs.names(stage)[0]]
    place = [costs.place.device, costs.place.threads, costs.place.name]
    return cache / "pilots" / f"{digest([PILOTS_VERSION, name, place])}.json"


def remember(costs: Costs, todo: Sequence[str], cache: Path) -> list[Stage]:
    """Learn what earlier pilots found; return one stage of every sort of which nothing exact is known."""
    looked: dict[tuple[Any, ...], Stage] = {}
    for key in todo:
        stage = costs.plan.stages[key]
        name = costs.names(stage)[0]
        known = costs.estimate(stage)
        if name in looked or (known is not None and known.level == 0):
            continue
        looked[name] = stage
        if found := read_sealed(_note(cache, costs, stage)):
            costs.learn(stage, Record(costs.place, float(found["seconds"])))
    return [stage for stage in looked.values() if (e := costs.estimate(stage)) is None or e.level]


def pilot(frontier: Frontier, costs: Costs, unknown: Sequence[Stage], cache: Path, say: Callable[[str], None]) -> None:
    """Try the stages out, one after another, on this machine; their data sets must be there."""
    tried = {stage.key: stage for stage in unknown if stage.kind != "data"}
    orders = [order for stage in tried.values() if (order := order_of(frontier, costs, stage))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(costs.place.threads), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.train.pilot", str(SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdin is not None  # it was asked for # noqa: S101
    assert process.stdout is not None  # noqa: S101
    with process:
        with suppress(BrokenPipeError):
            process.stdin.writelines(json.dumps(order) + "\n" for order in orders)
            process.stdin.close()
        for line in process.stdout:
            said = json.loads(line)
            stage = tried[said["key"]]
            if "failed" in said:
                say(f"pilot: {stage.label}: {said['failed']}")
                continue
            note = _note(cache, costs, stage)
            note.parent.mkdir(parents=True, exist_ok=True)
            a_unit = float(said["seconds"]) / units(stage)
            write_whole(note, sealed({"seconds": a_unit, "label": stage.label}))
            costs.learn(stage, Record(costs.place, a_unit))
            say(f"pilot: {stage.label}: about {said['seconds']:.1f} s")


def order_of(frontier: Frontier, costs: Costs, stage: Stage) -> dict[str, Any] | None:
    """Return what a pilot is told of a stage: its spec, and its data set; nothing where that is not made yet."""
    if stage.spec.get("control") == "shuffled" or "data" not in stage.parents:
        return None
    data = frontier.result(stage.parents["data"], with_artifact=True)
    if data is None:
        return None
    folder = frontier.store.path("data", stage.parents["data"])
    spec = dict(stage.spec)
    if "trained" in stage.parents:
        spec["needs_trained"] = True
    return {
        "key": stage.key,
        "kind": stage.kind,
        "spec": spec,
        "store": str(frontier.store.root),
        "attempt": "",
        "earlier": [],
        "parents": {"data": [str(folder / data.artifact.file), data.artifact.sha256]},
        "device": costs.place.device,
        "threads": costs.place.threads,
    }
