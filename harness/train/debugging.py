"""A stage under somebody's eyes: in this process, step by step if wanted, its exceptions raised and not recorded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from harness.train.group import ALONE
from harness.train.loop import Enough, Watcher, train
from harness.train.order import Order
from harness.train.process import prepare_process, read_order, set_mode
from harness.train.run import Training, take_step
from harness.train.stages import run_stage
from harness.train.training import prepare

Say = Callable[[str], None]
LEARNT = 3
"""Steps in a row without a wrong answer, after which a batch counts as learnt. Label smoothing bounds the loss."""
TOLD = 10
"""How many lines a longer run of steps is told in."""


@contextlib.contextmanager
def at_work(message: Mapping[str, Any], anomaly: bool = False) -> Iterator[Order]:
    """Set torch as a trainer does, and give the order that a message is.

    `anomaly`: let autograd name the operation of the forward pass whose gradient is not a number (slow); in a training,
    from its first step on, since an operation that fails on the zeros it is tried out with beforehand is no mistake.
    """
    prepare_process()
    set_mode(fast=False)
    order = read_order(message)
    torch.set_num_threads(order.threads)
    with torch.autograd.set_detect_anomaly(anomaly and order.kind != "train"):
        yield order


def size(run: Training) -> str:
    """Say how large a network is, and how much of it a mask keeps."""
    whole = sum(p.numel() for p in run.model.parameters())
    kept = sum(int(mask.sum()) for mask in run.masks(run.done).values())
    return f"{whole:,} parameters" + (f", {kept:,} weights kept by the mask" if kept else "")


class Teller(Watcher):
    """A watcher that says every step, or every epoch, and may end the loop after some steps."""

    def __init__(self, say: Say, steps: int = 0, anomaly: bool = False) -> None:
        self.say, self.steps, self.anomaly = say, steps, anomaly
        self.taken, self.began = 0, time.monotonic()
        self.before = (0.0, 0, 0)
        """Of the epoch: the sum of losses, right answers and images until the step before."""

    def begin(self, training: Training) -> None:
        """See the loop begin."""
        torch.autograd.set_detect_anomaly(self.anomaly)
        self.say(f"{size(training)}; {training.steps} steps an epoch, batch {training.batch}")
        self.began = time.monotonic()

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done."""
        if not self.steps:
            return
        due()
        at = training.position
        loss_sum, correct, seen = self.before if at.step > 1 else (0.0, 0, 0)
        images = at.seen - seen
        loss, right = (at.loss_sum - loss_sum) / images, 100 * (at.correct - correct) / images
        rate = training.optimizer.param_groups[0]["lr"]
        where = f"epoch {at.epoch + 1}, step {at.step}"
        self.say(f"{where}: loss {loss:.4f}, {right:.1f} % right of {images}, learning rate {rate:.4g}")
        self.before = (at.loss_sum, at.correct, at.seen)
        self.taken += 1
        if self.taken == self.steps:
            took = time.monotonic() - self.began
            self.say(f"{self.taken} steps in {took:.2f} s, {self.taken * training.batch / took:,.0f} images/s")
            raise Enough

    def after_epoch(self, training: Training) -> None:
        """See an epoch done."""
        row = training.position.rows[-1]
        said = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if isinstance(value, float)]
        self.say(f"epoch {row['epoch']} of {training.epochs}: {', '.join(said)}")


def run_whole(order: Order, say: Say, anomaly: bool = False) -> dict[str, Any]:
    """Run a stage to its end; return its metrics. Raises whatever it raises."""
    return run_stage(order, Teller(say, anomaly=anomaly), ALONE).metrics


def run_steps(order: Order, steps: int, say: Say, anomaly: bool = False) -> None:
    """Take a training's first steps, each told."""
    with contextlib.suppress(Enough):
        train(prepare(order), Teller(say, steps, anomaly))


def overfit(order: Order, steps: int, say: Say, anomaly: bool = False) -> bool:
    """Train on the first batch alone, so many times, at the training's highest learning rate; return if it was learnt.

    A network, a loss and a learning rate that fit together learn a batch by heart in a few hundred steps; one that does
    not has a mistake in it, or too few weights left. Masks are those in force at that point.
    """
    run = prepare(order)
    torch.autograd.set_detect_anomaly(anomaly)
    run.model.train()
    _, images, labels = next(run.images.epoch(run.seed, run.position.epoch, run.batch, 0))
    criterion, rightly = run.whole_criterion(), 0
    highest = max(range(run.done, run.steps * run.until), key=lambda step: run.rate(step / run.steps))
    run.position.epoch, run.position.step = divmod(highest, run.steps)
    where = f"epoch {run.position.epoch + 1}, step {run.position.step + 1}"
    say(f"one batch, learning rate {run.rate(highest / run.steps):.4g} and recipe as in {where}")
    for step in range(steps):
        _, loss, correct, _ = take_step(run, criterion, images, labels, len(labels))
        share, mean = 100 * int(correct) / len(labels), float(loss)
        rightly = rightly + 1 if share == 100 else 0
        learnt = rightly == LEARNT
        if step % max(1, steps // TOLD) == 0 or learnt or step == steps - 1:
            say(f"step {step + 1}: loss {mean:.4f}, {share:.1f} % right of {len(labels)}")
        if learnt or mean != mean:
            break
    said = f"learnt by heart after {step + 1} steps" if learnt else f"not learnt in {step + 1} steps"
    say(f"{said}: loss {mean:.4f}, {share:.1f} % right")
    if not learnt:
        say(f"{size(run)}; with few left, a small network may fail for want of them: try its dense cell beside it")
    return learnt
