"""The trainer's own loop, timed: noise of CIFAR-10's shape, augmentation and masks included, no evaluation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.check import load_sweep
from harness.planfile import keep_methods
from harness.planner import make_plan
from harness.store import Store, file_sha256
from harness.train.execution import EAGER, forward_pass
from harness.train.loop import Enough, Watcher, train
from harness.train.order import Order
from harness.train.run import Training
from harness.train.stages import run_stage
from harness.train.training import prepare

BATCH = 128
SIZE = 32
IMAGES = 50_000
GHOSTS = "gsw+gsk+ls"
"""The recipe `tost` as its steps are while the ghosts live; its scales are learnt before."""

SWEEP = """
name: speed
protocol: {{preset: tost, dev: none, epochs: 1000, batch: {batch}, milestones: [999]}}
use: {{noise: "./noise.py:load"}}
grid:
  dataset: noise
  arch: [{archs}]
  mask: random
  sparsity: 95%
  recipe: [{recipes}]
  precision: [{precisions}]
  seed: 0
"""
NOISE = """
import numpy as np


def load():
    draws = np.random.default_rng(0)
    shape = ({size}, {size}, 3)
    return tuple((draws.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10) for n in ({images}, 100))
"""


@dataclass
class Stopwatch(Watcher):
    """Times steps after the first few, in several windows, the device's queue empty before and after each."""

    seconds: float
    """Of one window."""
    windows: int = 3
    warm_up: int = 5
    """Steps that are not timed."""
    ready: Callable[[], object] = lambda: None
    """Called once, when the first window is about to begin."""
    a_step: list[float] = field(default_factory=list)
    """Seconds of a step, by window."""
    first: float = 0.0
    """Seconds until the first step was done, since this watch was made."""
    _made: float = field(default_factory=time.perf_counter)
    _steps: int = 0
    _since: int = 0
    _began: float = 0.0

    def begin(self, training: Training) -> None:
        """See the loop begin."""
        self.wait = torch.cuda.synchronize if training.images.device.type == "cuda" else lambda: None

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done."""
        self._steps += 1
        if self._steps == 1:
            self.wait()
            self.first = time.perf_counter() - self._made
        if self._steps == self.warm_up:
            self.wait()
            self.ready()
            self._begin()
        steps = self._steps - self._since
        if self._steps > self.warm_up and time.perf_counter() - self._began > self.seconds:
            self.wait()
            self.a_step.append((time.perf_counter() - self._began) / steps)
            if len(self.a_step) == self.windows:
                raise Enough
            self._begin()

    def _begin(self) -> None:
        self._since, self._began = self._steps, time.perf_counter()


def orders(
    folder: Path,
    device: str,
    archs: Sequence[str],
    precisions: Sequence[str] = ("fp32",),
    recipes: Sequence[str] = ("default",),
    batch: int = BATCH,
    images: int = IMAGES,
    size: int = SIZE,
) -> Iterator[Order]:
    """Yield the orders of trainings, all that they need made in `folder`."""
    lists = {"archs": ", ".join(archs), "precisions": ", ".join(precisions), "recipes": ", ".join(recipes)}
    (folder / "speed.yaml").write_text(SWEEP.format(batch=batch, **lists))
    (folder / "noise.py").write_text(NOISE.format(images=images, size=size))
    store = Store(folder / "runs")
    plan = make_plan(load_sweep(folder / "speed.yaml"), store, folder)
    keep_methods(plan, store)
    made: dict[str, tuple[str, str]] = {}
    for number, stage in enumerate(plan.stages.values()):
        attempt = folder / str(number)
        attempt.mkdir()
        parents = {role: made[key] for role, key in stage.parents.items()}
        order = Order(stage.key, stage.kind, stage.spec, str(store.root), str(attempt), (), parents, stage.place)
        if stage.kind == "train":
            yield replace(order, device=device)
        else:
            draft = run_stage(order, Stopwatch(0.0)).draft
            made[stage.key] = (str(draft), file_sha256(draft))


def timed_steps(order: Order, watch: Stopwatch, way: str = EAGER) -> dict[str, Any]:
    """Train under a stopwatch; return what was trained, and the GiB that the device's allocator held at most.

    `way`: how the network is run (harness/train/execution.py); with kernels that are the same every time.
    """
    on_gpu = order.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run = prepare(order)
    run.execution, run.forward = way, forward_pass(run.model, way)
    with contextlib.suppress(Enough):
        train(run, watch)
    recipe = "+".join(part["name"] for part in order.spec["recipe"]) or "default"
    said = {"network": order.spec["arch"]["name"], "precision": order.spec["protocol"].get("precision", "fp32")}
    memory = {"gib": torch.cuda.max_memory_allocated() / 2**30} if on_gpu else {}
    return {**said, "recipe": recipe, "way": way, **memory}
