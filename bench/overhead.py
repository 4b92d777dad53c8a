"""What the harness adds to a cell: 100 one-step trainings in a warm worker, beside Ray Tune and submitit.

Overhead is the wall time a cell takes in the end, less the seconds that the training function itself takes. All three
run the same function on the same specs, one at a time.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.figures import Given, Row, environment

CELLS = 100
SUBMITTED = 6
"""Jobs of submitit, each a process of its own that loads torch."""

SWEEP = """
name: overhead
protocol: {preset: quick, epochs: 1, batch: 2000, warmup: 0, milestones: [], dev: none}
use: {thin: "./thin.py:build"}
grid: {dataset: digits, arch: thin, mask: dense, seed: 0..%d}
"""
THIN = """
from torch import nn


def build(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))
"""


def prepare(folder: Path) -> None:
    """Write the sweep."""
    (folder / "thin.py").write_text(THIN.replace("nn.LazyLinear(classes)", "nn.Linear(72, classes)"))
    (folder / "sweep.yaml").write_text(SWEEP % (CELLS - 1))


def harness(folder: Path) -> tuple[list[float], list[float]]:
    """Run the sweep with one worker; return by cell its wall time, and the function's."""
    command = [sys.executable, "-m", "harness.sweep", "sweep.yaml", "--limit", "1", "--workers", "1", "--threads", "1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # makes the data set
    command = [sys.executable, "-m", "harness.sweep", "sweep.yaml", "--workers", "1", "--threads", "1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    ends = []
    for path in folder.glob("runs/stages/train/*/*/result-0001.json"):
        said = json.loads(path.read_text())["result"]["provenance"]
        ends.append((path.stat().st_mtime_ns / 1e9, said["seconds"]))
    return between(ends)


def between(ends: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return from (end, seconds of the function) of cells run one after another their wall times and those seconds."""
    warm = sorted(ends)[2:]  # the first ones load what all use
    return [later - earlier for (earlier, _), (later, _) in itertools.pairwise(warm)], [own for _, own in warm[1:]]


def orders(folder: Path) -> list[dict[str, Any]]:
    """Return what the training function is told for each cell."""
    (data,) = folder.glob("runs/stages/data/*/*/*.safetensors")
    found = []
    for path in sorted(folder.glob("runs/stages/train/*/*/spec.json")):
        spec = json.loads(path.read_text())
        spec.pop("kind"), spec.pop("parents")
        parents = {"data": [str(data), data.stem]}
        found.append(
            {"key": path.parent.name, "kind": "train", "spec": spec, "store": str(folder / "runs"), "parents": parents}
        )
    return found


def train(order: dict[str, Any]) -> float:
    """Be the function that all three run; return its seconds."""
    import torch

    from harness.train.loop import Watcher
    from harness.train.order import Order
    from harness.train.stages import run_stage

    class Quiet(Watcher):
        """Sees nothing."""

    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as attempt:
        parents = {role: tuple(value) for role, value in order["parents"].items()}
        run_stage(Order(**{**order, "parents": parents, "attempt": attempt, "earlier": ()}), Quiet())
    return time.perf_counter() - began


def ray_tune(told: list[dict[str, Any]], folder: Path) -> tuple[list[float], list[float]]:
    """Run the function as trials of Ray Tune, actors reused, one at a time."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray import tune

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")

    def trial(config: dict[str, Any]) -> None:
        seconds = train(config["order"])
        tune.report({"seconds": seconds, "ended": time.time()})

    tuner = tune.Tuner(
        trial,
        param_space={"order": tune.grid_search(told)},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    )
    results = [result.metrics for result in tuner.fit()]
    ray.shutdown()
    return between([(result["ended"], result["seconds"]) for result in results])


def submitit_local(told: list[dict[str, Any]], folder: Path) -> tuple[list[float], list[float]]:
    """Run the function as jobs of submitit's local executor, one at a time."""
    import submitit

    executor = submitit.LocalExecutor(folder / "submitit")
    walls, own = [], []
    for order in told[:SUBMITTED]:
        began = time.perf_counter()
        own.append(executor.submit(train, order).result())
        walls.append(time.perf_counter() - began)
    return walls, own


def measure(given: Given) -> Iterator[Row]:
    """Yield a line for each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        yield _row("harness, warm worker", *harness(folder))
        told = orders(folder)
        os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]  # processes of the others import this module
        yield _row("Ray Tune, actors reused", *ray_tune(told, folder))
        yield _row("submitit LocalExecutor (a process a job)", *submitit_local(told, folder))


def _row(who: str, walls: list[float], own: list[float]) -> Row:
    wall, seconds = 1e3 * statistics.median(walls), 1e3 * statistics.median(own)
    return {
        "who": who,
        "cells": len(walls),
        "wall ms": wall,
        "of it the function": seconds,
        "overhead ms": wall - seconds,
    }
