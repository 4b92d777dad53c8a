"""How many images a second the training loop takes, by network, precision and recipe; run as a module of bench/gpu.py.

Noise of CIFAR-10's shape, the trainer's own settings (deterministic kernels, no TF32), no evaluation. Several processes
on one device begin their measurement together. Prints a JSON line for each case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.check import load_sweep
from harness.plan import Plan
from harness.planner import make_plan
from harness.plugins import freeze
from harness.store import Store, file_sha256
from harness.train.loop import Training, train
from harness.train.order import Order
from harness.train.process import prepare_process
from harness.train.stages import run_stage
from harness.train.training import prepare

WARM_UP = 20
"""Steps that are not timed."""

SWEEP = """
name: speed
protocol: {preset: tost, dev: none, epochs: 1000, batch: %d, milestones: [999]}
use: {noise: "./noise.py:load"}
grid:
  dataset: noise
  arch: [%s]
  mask: random
  sparsity: 95%%
  recipe: [%s]
  precision: [%s]
  seed: 0
"""
NOISE = """
import numpy as np


def load():
    draws = np.random.default_rng(0)
    return tuple((draws.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) %% 10) for n in (%d, 100))
"""


class Enough(Exception):
    """The watch has seen enough steps."""


class Stopwatch:
    """Times steps after the first few, the device's queue empty before and after."""

    def __init__(self, seconds: float, begin: Callable[[], object]) -> None:
        self.seconds, self.ready, self.steps, self.began, self.taken = seconds, begin, 0, 0.0, 0.0

    def begin(self, training: Training) -> None:
        """See the loop begin."""
        self.wait = torch.cuda.synchronize if training.images.device.type == "cuda" else lambda: None

    def at(self, done: int, of: int) -> None:
        """See an iteration of a stage that is no training."""

    def after_epoch(self, training: Training) -> None:
        """See an epoch done."""

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.wait()
            self.ready()
            self.began = time.perf_counter()
        if self.steps > WARM_UP and self.steps % 10 == 0 and time.perf_counter() - self.began > self.seconds:
            self.wait()
            self.taken = time.perf_counter() - self.began
            raise Enough


def orders(options: argparse.Namespace, folder: Path) -> Iterator[Order]:
    """Yield the trainings' orders, all that they need made."""
    lists = (", ".join(values) for values in (options.archs, options.recipes, options.precisions))
    (folder / "speed.yaml").write_text(SWEEP % (options.batch, *lists))
    (folder / "noise.py").write_text(NOISE % options.images)
    store = Store(folder / "runs")
    plan: Plan = make_plan(load_sweep(folder / "speed.yaml"), store, folder)
    for plugin in plan.plugins:
        freeze(plugin, store.root)
    made: dict[str, tuple[str, str]] = {}
    for number, stage in enumerate(plan.stages.values()):
        attempt = folder / str(number)
        attempt.mkdir()
        parents = {role: made[key] for role, key in stage.parents.items()}
        order = Order(stage.key, stage.kind, stage.spec, str(store.root), str(attempt), (), parents, stage.place)
        if stage.kind == "train":
            yield replace(order, device=options.device)
        else:
            draft = run_stage(order, Stopwatch(0.0, lambda: None)).draft
            made[stage.key] = (str(draft), file_sha256(draft))


def measure(order: Order, seconds: float, begin: Callable[[], object]) -> dict[str, Any]:
    """Train for some seconds; return images a second, and the GiB that the device's allocator held at most."""
    on_gpu = order.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run, watch = prepare(order), Stopwatch(seconds, begin)
    with contextlib.suppress(Enough):
        train(run, watch)
    return {
        "arch": order.spec["arch"]["name"],
        "precision": order.spec["protocol"].get("precision", "fp32"),
        "recipe": "+".join(part["name"] for part in order.spec["recipe"]) or "default",
        "images_per_second": (watch.steps - WARM_UP) * run.batch / watch.taken,
        "gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
    }


def main() -> None:
    """Measure every case given, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", nargs="+", default=["resnet18"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--recipes", nargs="+", default=["default"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", action="store_true", help="wait for a line on stdin before each measurement")
    options = parser.parse_args()
    prepare_process()
    torch.set_num_threads(options.threads)

    def begin() -> None:
        if options.together:
            print("ready", flush=True)
            sys.stdin.readline()

    with tempfile.TemporaryDirectory() as name:
        for order in orders(options, Path(name)):
            print(json.dumps(measure(order, options.seconds, begin)), flush=True)


if __name__ == "__main__":
    main()
