"""The training loop. Everything comes in as an argument; all that is scheduled is a function of progress."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.train.checkpoint import Position
from harness.train.draws import seed_for
from harness.train.group import ALONE, Group
from harness.train.images import EVAL_BATCH, Images, Split
from harness.train.small_maps import SmallMaps, pays
from tost.masks import Masks
from tost.masks.apply import Pruned
from tost.recipe import Criterion, Part

CHECK_EVERY = 50
"""On an accelerator, losses and gradients are looked at this often, because every look waits for the device."""


Seen = tuple[int, int, Tensor, Tensor, Tensor]
"""A step, the images of its batch, this process's mean loss and hits in its part of them, `spoilt` of its gradients."""


class Diverged(Exception):
    """A loss, a gradient or a metric is no longer a finite number."""

    def __init__(self, epoch: int, step: int, what: str = "the loss") -> None:
        super().__init__(f"{what} is not finite at epoch {epoch + 1}, step {step + 1}")
        self.epoch, self.step = epoch, step


class Watcher(Protocol):
    """What the loop tells of itself. A watcher reads and never writes, but may end the loop by raising."""

    def begin(self, training: Training) -> None:
        """See the loop begin, fresh or where a checkpoint stood."""

    def at(self, done: int, of: int) -> None:
        """See how far a stage that is no training has come."""

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done; `due` brings the position up to date before it is saved."""

    def after_epoch(self, training: Training) -> None:
        """See an epoch done, its row the last in the position."""


@dataclass
class Training:
    """All that a training is made of."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Images
    criterion: Criterion
    rate: Callable[[float], float]
    """Epoch, in fractions -> learning rate."""
    masks: Callable[[int], Masks]
    """Steps done -> the masks in force; the same object as long as they do not change."""
    parts: Sequence[Part]
    seed: int
    epochs: int
    batch: int
    precision: str
    layout: torch.memory_format
    """How weights of convolutions and batches of images lie in memory."""
    until: int
    """The epoch to stop after: the last one, but of a training that others are rewound to."""
    blind: bool = False
    """Whether the test images are left alone: what is tuned must not have seen them."""
    settled: int = 0
    """Steps after which the masks change no more."""
    flops: Callable[[Masks], int] | None = None
    """Operations of one image under some masks, told by epoch where masks change."""
    extra: Mapping[str, int] = field(default_factory=dict)
    """What the recipe adds to the operations of this training."""
    theta0: str = ""
    """Hash of the weights before masks, scales and recipe: what two trainings share that start alike."""
    batch_norm: str = "synced"
    """Whether batch norm sees the whole batch, or each process's its own part."""
    execution: str = "eager"
    """How the network's steps on whole batches are run (execution.py)."""
    forward: Callable[[Tensor], Tensor] | None = None
    """The same, where it is not by calling the network."""
    group: Group = ALONE
    """The processes that train this network together, of which this is one."""
    statistics: Tensor | None = None
    """What every process's batch norms remember, where that differs, as of when a checkpoint was last due."""
    position: Position = field(default_factory=Position)
    _worn: Masks | None = None
    _pruned: Pruned | None = None

    @property
    def steps(self) -> int:
        """Return the steps of an epoch."""
        return self.images.steps(self.batch)

    @property
    def done(self) -> int:
        """Return the steps done since the start of training."""
        return self.position.epoch * self.steps + self.position.step

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in the precision, by the convolutions that are fast in it."""
        device = self.images.device
        products = (
            SmallMaps() if pays(device, self.precision) and self.execution == "eager" else contextlib.nullcontext()
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"), products:
            yield

    def logits(self, images: Tensor) -> Tensor:
        """Return the network's output for a batch [N, C, H, W]."""
        whole = self.model.training and len(images) == self.batch
        forward: Callable[[Tensor], Tensor] = self.forward if self.forward and whole else self.model
        return forward(images.contiguous(memory_format=self.layout))

    def go_to(self, steps_done: int) -> None:
        """Set everything scheduled to a point of training."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(steps_done / self.steps)
        self.step_parts(steps_done)
        self.wear(self.masks(steps_done))

    def step_parts(self, steps_done: int) -> None:
        """Set the recipe's parts to a point of training."""
        for part in self.parts:
            part.step(steps_done / (self.steps * self.epochs))

    def wear(self, masks: Masks) -> None:
        """Put masks in force."""
        if masks is not self._worn:
            if self._pruned is None:
                self._pruned = Pruned(self.model, masks)
            else:
                self._pruned.wear(masks)
            self._worn = masks
            self.prune()

    def prune(self) -> None:
        """Set the weights that the masks in force prune to 0."""
        if self._pruned is not None:
            self._pruned.clear()

    def update(self, loss: Tensor, count: int) -> Tensor:
        """Take one step down the gradient of a mean loss over a batch of `count` images, of which this has a part.

        Return what `spoilt` says of the gradients, to be looked at when the loss is.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.group.backward(self.model, loss, count)
        found = spoilt([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.step()
        self.prune()
        return found


def spoilt(gradients: list[Tensor]) -> Tensor:
    """Return 1 where any number is not finite, else 0, without waiting for a device.

    By the kernel of torch's GradScaler, scaling by 1: for ResNet-20 on a CPU 0.08 ms, where norms take 0.2 to 0.4.
    """
    found = torch.zeros((), device=gradients[0].device)
    torch._amp_foreach_non_finite_check_and_unscale_([*map(_real, gradients)], found, torch.ones_like(found))
    return found


def _real(gradient: Tensor) -> Tensor:
    """Return the real numbers that a gradient is made of."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values) if values.is_complex() else values


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

    criterion, check_every = run.criterion, 1 if run.images.device.type == "cpu" else CHECK_EVERY
    for part in run.parts:
        criterion = part.criterion(criterion)
    while at.epoch < run.until:
        run.model.train()
        for step, images, labels in run.images.epoch(run.seed, at.epoch, run.batch, at.step, run.group.part):
            count = run.images.size(step, run.batch)
            run.go_to(run.done)
            torch.manual_seed(_seed(run))  # for dropout and the like in a user's network
            with run.autocast():
                logits = run.logits(images)
                loss = criterion(logits, labels)
            bad = run.update(loss, count)
            pending.append((step, count, loss.detach(), (logits.detach().argmax(1) == labels).sum(), bad))
            if len(pending) >= check_every:
                settle()
            at.step = step + 1
            watch.after_step(run, due)
        settle()
        run.go_to(run.done)
        run.group.agree(run.model)
        run.group.check(run.model)
        at.rows.append(_row(run))
        at.epoch, at.step, at.loss_sum, at.correct, at.seen = at.epoch + 1, 0, 0.0, 0, 0
        watch.after_epoch(run)


def _seed(run: Training) -> int:
    """Return the seed of a step's own draws; ranks that share a batch must not drop the same units of it."""
    rank = run.group.rank
    return seed_for(run.seed, f"step of rank {rank}" if rank else "step", run.done)


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


def _row(run: Training) -> dict[str, Any]:
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
        row["dev_loss"], row["dev_accuracy"] = evaluate(run, run.images.dev)
        best = max((r["dev_accuracy"] for r in at.rows if r["best"]), default=-1.0)
        lasting = run.done >= run.settled and not any(part.ghosts and not part.stays for part in run.parts)
        row["best"] = row["dev_accuracy"] > best and lasting
    else:
        row["best"] = False
    if not run.blind and (row["best"] or at.epoch + 1 == run.until):
        row["test_loss"], row["test_accuracy"] = evaluate(run, run.images.test)
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise Diverged(at.epoch, run.steps - 1, name.replace("_", " "))
    return row


@torch.inference_mode()
def evaluate(run: Training, split: Split) -> tuple[float, float]:
    """Return the mean plain cross-entropy and the accuracy in percent on a split, batch norm in eval mode."""
    run.model.eval()
    rank, world = run.group.rank, run.group.world
    sums = torch.zeros(2, -(-len(split) // EVAL_BATCH), dtype=torch.float64, device=run.images.device)
    for number, (images, labels) in enumerate(run.images.batches(split, rank, world)):
        with run.autocast():
            logits = run.logits(images)
        sums[0, number * world + rank] = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums[1, number * world + rank] = (logits.argmax(1) == labels).sum()
    losses, hits = run.group.total(sums).tolist()
    return sum(losses) / len(split), 100 * round(sum(hits)) / len(split)
