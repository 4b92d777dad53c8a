"""A training put together, and its one step: everything that the loop drives, set by how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.train.checkpoint import Position
from harness.train.draws import seed_for
from harness.train.group import ALONE, Group
from harness.train.images import Images
from tost.masks import Masks
from tost.masks.apply import Pruned
from tost.recipe import Criterion, Part


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
    """How the network is run on whole batches (execution.py)."""
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

    def autocast(self) -> torch.autocast:
        """Return a context that computes in the precision."""
        return torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def whole_criterion(self) -> Criterion:
        """Return the loss with what the recipe makes of it."""
        criterion = self.criterion
        for part in self.parts:
            criterion = part.criterion(criterion)
        return criterion

    def logits(self, images: Tensor) -> Tensor:
        """Return the network's output for a batch [N, C, H, W]."""
        images = images.contiguous(memory_format=self.layout)
        if not self.model.training:
            logits: Tensor = self.model(images)
            return logits
        return (
            self.forward(images)
            if self.forward and len(images) == self.batch
            else self.group.forward(self.model, images)
        )

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
        self.group.backward(loss, count)
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


def take_step(
    run: Training, criterion: Criterion, images: Tensor, labels: Tensor, count: int
) -> tuple[int, Tensor, Tensor, Tensor]:
    """Take one step on a batch of `count` images, of which this process has a part.

    Return that count, the mean loss, the right answers, and what `spoilt` says of the gradients.
    """
    run.go_to(run.done)
    torch.manual_seed(step_seed(run))  # for dropout and the like in a user's network
    with run.autocast():
        logits = run.logits(images)
        loss = criterion(logits, labels)
    bad = run.update(loss, count)
    return count, loss.detach(), (logits.detach().argmax(1) == labels).sum(), bad


def step_seed(run: Training) -> int:
    """Return the seed of a step's own draws; ranks that share a batch must not drop the same units of it."""
    rank = run.group.rank
    return seed_for(run.seed, f"step of rank {rank}" if rank else "step", run.done)
