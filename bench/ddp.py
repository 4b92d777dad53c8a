"""Several processes for one training: images a second against one process.

Every process has one thread, or one GPU; the batch of 128 is shared. Runs what trainers run: the training loop with its
group, a word with the other ranks after every step included, no evaluation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.figures import ROOT, Given, Row, environment, spread
from bench.training import BATCH, IMAGES, orders
from harness.train.group import LOOPBACK, Group, joined
from harness.train.loop import Enough, Watcher, train
from harness.train.order import Order
from harness.train.process import prepare_process, read_order
from harness.train.ranks import open_store, own_device
from harness.train.run import Training
from harness.train.training import prepare

NETWORKS = ("resnet20", "resnet18")


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for one process, and one for several with each sort of batch norm."""
    cuda = given.device.startswith("cuda")
    world = torch.cuda.device_count() if cuda else 2
    batch, images = (8, 100) if given.small else (BATCH, IMAGES)
    seconds, warm_up = (0.0, 1) if given.small else (given.seconds, 20 if cuda else 2)
    for network in NETWORKS[:1] if given.small else NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            (order,) = orders(Path(folder), given.device, [network], batch=batch, images=images)
            alone = 0.0
            for processes, batch_norm in [(1, "synced"), *([(world, "synced"), (world, "local")] if world > 1 else [])]:
                spec = {**order.spec, "protocol": {**order.spec["protocol"], "batch_norm": batch_norm}}
                shared = replace(order, spec=spec, threads=1, world=processes)
                said = together(shared, seconds, given.repeats, warm_up)
                speed = spread([batch / step for step in said])
                alone = alone or float(speed["median"])
                yield {
                    "network": network,
                    "processes": processes,
                    "batch norm": batch_norm,
                    "images/s": speed,
                    "times one process": float(speed["median"]) / alone,
                }


def together(order: Order, seconds: float, windows: int, warm_up: int) -> list[float]:
    """Train with all ranks of an order; return the seconds of a step that the first one measured, by window."""
    store = open_store(LOOPBACK)
    meeting = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    running = [_start(replace(order, rank=rank), meeting, seconds, windows, warm_up) for rank in range(order.world)]
    try:
        assert running[0].stdout is not None  # it is a pipe # noqa: S101
        found: list[float] = json.loads(running[0].stdout.readline())
        for process in running:
            process.communicate()
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return found


def _start(order: Order, meeting: Mapping[str, str], *told: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.ddp", *map(str, told)],
        cwd=ROOT,
        env={**environment(order.threads), **meeting, "RANK": str(order.rank), "WORLD_SIZE": str(order.world)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    device = own_device(order.device, order.rank)
    print(json.dumps(asdict(replace(order, device=device))), file=process.stdin, flush=True)
    return process


@dataclass
class Clock(Watcher):
    """Times steps in windows, which all ranks end together, the device's queue empty before and after each."""

    seconds: float
    windows: int
    warm_up: int
    """Steps that are not timed."""
    steps: list[float] = field(default_factory=list)
    """Seconds of a step, by window."""
    _steps: int = 0
    _began: float = 0.0

    def begin(self, training: Training) -> None:
        """See the loop begin."""
        self.cuda = training.images.device.type == "cuda"

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done; the word with the other ranks is one that a trainer has too."""
        self._steps += 1
        passed = time.perf_counter() - self._began
        if not training.group.most(int(passed >= self.seconds if self._began else self._steps >= self.warm_up)):
            return
        if self.cuda:
            torch.cuda.synchronize()
        if self._began:
            self.steps.append((time.perf_counter() - self._began) / self._steps)
            if len(self.steps) == self.windows:
                raise Enough
        self._steps, self._began = 0, time.perf_counter()


def rank(message: Mapping[str, Any], clock: Clock) -> None:
    """Train as one rank until the clock has measured enough."""
    order = read_order(message)
    prepare_process()
    torch.set_num_threads(order.threads)
    run = prepare(order)
    try:
        with joined(order, (Enough,)) as group:
            _train(run, group, clock)
    except Enough:
        if order.rank == 0:
            print(json.dumps(clock.steps), flush=True)


def _train(run: Training, group: Group, clock: Clock) -> None:
    run.group = group
    group.prepare(run.model, run.batch_norm)
    train(run, clock)


if __name__ == "__main__":
    rank(json.loads(sys.stdin.readline()), Clock(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
