"""The training loop. Everything comes in as an argument; all that is scheduled is a function of progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.train.group import Group
from harness.train.images import EVAL_BATCH, Split
from harness.train.run import Training, take_step

CHECK_EVERY = 50
"""On an accelerator, losses and gradients are looked at this often, because every look waits for the device."""


Seen = tuple[int, int, Tensor, Tensor, Tensor]
"""A step, the images of its batch, this process's mean loss and hits in its part of them, `spoilt` of its gradients."""


class Diverged(Exception):
    """A loss, a gradient or a metric is no longer a finite number."""

    def __init__(self, epoch: int, step: int, what: str = "the loss") -> None:
        super().__init__(f"{what} is not finite at epoch {epoch + 1}, step {step + 1}")
        self.epoch, self.step = epoch, step


class Enough(Exception):
    """A watcher has seen what it wanted to see."""


class Watcher(Protocol):
    """What the loop tells of itself. A watcher reads and never writes, but may end the loop by raising.

    One that inherits from this sees what it has a method for, and passes over the rest.
    """

    def begin(self, training: Training) -> None:
        """See the loop begin, fresh or where a checkpoint stood."""
        return

    def at(self, done: int, of: int) -> None:
        """See how far a stage that is no training has come."""
        return

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done; `due` brings the position up to date before it is saved."""
        return

    def alive(self) -> None:
        """See that work goes on where no step is done, as while a network is evaluated."""
        return

    def after_epoch(self, training: Training) -> None:
        """See an epoch done, its row the last in the position."""
        return


def train(run: Training, watch: Watcher) -> None:
    """Train from where `run.position` stands to the end, a metrics row per epoch.

    Raises Diverged as soon as a loss or a gradient is not finite, and whatever the watcher raises.
    """
    watch.begin(run)
    at = run.position
    pending: list[Seen] = []

    def settle() -> None:
        _settle(run, pending)

    def due() -> None:
        settle()
        run.statistics = run.group.statistics(run.model)

    criterion, check_every = run.whole_criterion(), 1 if run.images.device.type == "cpu" else CHECK_EVERY
    while at.epoch < run.until:
        run.model.train()
        for step, images, labels in run.images.epoch(run.seed, at.epoch, run.batch, at.step, run.group.part):
            pending.append((step, *take_step(run, criterion, images, labels, run.images.size(step, run.batch))))
            if len(pending) >= check_every:
                settle()
            at.step = step + 1
            watch.after_step(run, due)
        settle()
        run.go_to(run.done)
        run.group.agree(run.model)
        run.group.check(run.model)
        at.rows.append(_row(run, watch.alive))
        at.epoch, at.step, at.loss_sum, at.correct, at.seen = at.epoch + 1, 0, 0.0, 0, 0
        watch.after_epoch(run)


def _settle(run: Training, pending: list[Seen]) -> None:
    """Add up losses one by one, so that the sum does not depend on how often it was looked at.

    All ranks settle after the same steps, and find the same sums.
    """
    if not pending:
        return
    at, group = run.position, run.group
    losses = torch.stack([loss.double() * (count * group.weight(count)) for _, count, loss, _, _ in pending])
    hits = torch.stack([correct * _once(group, count) for _, count, _, correct, _ in pending])
    flags = torch.stack([bad for *_, bad in pending])
    sums = group.total(torch.stack([losses, hits.to(losses), flags.to(losses)])).tolist()
    for (step, count, *_), loss, correct, bad in zip(pending, *sums, strict=True):
        if bad or not math.isfinite(loss):
            raise Diverged(at.epoch, step, "the gradient" if math.isfinite(loss) else "the loss")
        at.loss_sum += loss
        at.correct += round(correct)
        at.seen += count
    pending.clear()


def _once(group: Group, count: int) -> float:
    """Return what this rank's hits count for: of a batch that every rank has whole, they are counted once."""
    return 1.0 if group.shares(count) else group.weight(count)


def _row(run: Training, alive: Callable[[], None]) -> dict[str, Any]:
    """Evaluate after an epoch: dev always; test only where dev is at its best so far, or training ends.

    An epoch in which ghosts still live, or masks still tighten, can be no best one: that network is not the one that
    remains.
    """
    at = run.position
    row: dict[str, Any] = {
        "epoch": at.epoch + 1,
        "lr": run.optimizer.param_groups[0]["lr"],
        "train_loss": at.loss_sum / at.seen,
        "train_accuracy": 100 * at.correct / at.seen,
        "ghosts": any(part.ghosts for part in run.parts),
    }
    if run.flops is not None:
        row["flops"] = run.flops(run.masks(run.done))
    if len(run.images.dev):
        row["dev_loss"], row["dev_accuracy"] = evaluate(run, run.images.dev, alive)
        best = max((r["dev_accuracy"] for r in at.rows if r["best"]), default=-1.0)
        lasting = run.done >= run.settled and not any(part.ghosts and not part.stays for part in run.parts)
        row["best"] = row["dev_accuracy"] > best and lasting
    else:
        row["best"] = False
    if not run.blind and (row["best"] or at.epoch + 1 == run.until):
        row["test_loss"], row["test_accuracy"] = evaluate(run, run.images.test, alive)
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Diverged(at.epoch, run.steps - 1, name.replace("_", " "))
    return row


@torch.inference_mode()
def evaluate(run: Training, split: Split, alive: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Return the mean plain cross-entropy and the accuracy in percent on a split, batch norm in eval mode.

    `alive` is called after every batch.
    """
    run.model.eval()
    rank, world = run.group.rank, run.group.world
    sums = torch.zeros(2, -(-len(split) // EVAL_BATCH), dtype=torch.float64, device=run.images.device)
    for number, (images, labels) in enumerate(run.images.batches(split, rank, world)):
        with run.autocast():
            logits = run.logits(images)
        sums[0, number * world + rank] = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums[1, number * world + rank] = (logits.argmax(1) == labels).sum()
        alive()
    losses, hits = run.group.total(sums).tolist()
    return sum(losses) / len(split), 100 * round(sum(hits)) / len(split)
