"""Batch norm under several processes: statistics of the whole batch, on CPUs too; what it remembers of its batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.errors import UserError

REMEMBERED = ("running_mean", "running_var")
"""What depends on the images that a batch norm saw; the number of batches does not."""


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        summed: Tensor = _Sum.apply(gradient)
        return summed


class SyncedBatchNormOnCuda(nn.SyncBatchNorm):
    """torch's own, and plain batch norm where a batch is not shared."""

    synchronised = True
    """Whether the batch at hand is shared between ranks; if not, each has the whole of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, ...] by mean and variance over all ranks' N and all positions, as plain batch norm would."""
        return super().forward(x) if self.synchronised else _BatchNorm.forward(self, x)  # reads only what both have


class SyncedBatchNorm(_BatchNorm):
    """The same for CPU tensors, which torch's SyncBatchNorm refuses."""

    synchronised = True

    def _check_input_dim(self, x: Tensor) -> None:
        """Take positions of any dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, ...] as on CUDA."""
        if not (self.training and self.synchronised):
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        mean, variance, count = _moments(wide)
        self._remember(mean.detach(), variance.detach(), count)
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        normal = (wide - mean.view(shape)) * scale.view(shape)
        if self.affine:
            normal = normal + self.bias.view(shape)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked or 1) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / max(count - 1, 1)).to(self.running_var.dtype), share)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean [C], biased variance [C] and the number of values of a channel, over all ranks.

    The ranks' own means and squared deviations are exchanged and combined (Chan et al., 1979): sums of squares would
    lose digits.
    """
    rest = [d for d in range(x.ndim) if d != 1]
    own = x.numel() / x.shape[1]
    mean = x.mean(rest)
    deviations = (x - mean.view([1, -1, *[1] * (x.ndim - 2)])).square().sum(rest)
    row = torch.cat([mean, deviations, x.new_tensor([own])])
    table = torch.nn.functional.pad(row[None], (0, 0, dist.get_rank(), dist.get_world_size() - dist.get_rank() - 1))
    table = _Sum.apply(table)
    means, squares = table[:, :-1].chunk(2, dim=1)
    counts = table[:, -1:].detach()
    count = float(counts.sum())
    centre = (means * counts).sum(0) / count
    variance = (squares + counts * (means - centre).square()).sum(0) / count
    return centre, variance, count


def synchronise(model: nn.Module, device: torch.device) -> list[SyncedBatchNorm | SyncedBatchNormOnCuda]:
    """Make a network's batch norms synchronised ones, in place, so that hooks and names stay; return them.

    `device`: where the network is. torch's convert_sync_batchnorm would put new layers in their place.

    Raises UserError for layers that inherit from batch norm: what they add cannot be known.
    """
    kind = SyncedBatchNormOnCuda if device.type == "cuda" else SyncedBatchNorm
    layers: list[SyncedBatchNorm | SyncedBatchNormOnCuda] = []
    for name, module in model.named_modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, kind):
            module.__class__ = kind
            assert isinstance(module, kind)  # now it is # noqa: S101
            module.process_group = None  # of all ranks
            module.synchronised = True
            layers.append(module)
        elif isinstance(module, _BatchNorm):
            raise UserError(
                f"the layer {name} is a {type(module).__name__}, whose batch statistics cannot be taken over several "
                "processes; use torch's own batch norm, or world: 1"
            )
    return layers


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of a network's batch norms, as in its state_dict."""
    norms = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, _BatchNorm)]
    found = {f"{name}.{kind}".lstrip("."): getattr(norm, kind) for name, norm in norms for kind in REMEMBERED}
    return {name: value for name, value in found.items() if value is not None}


def remember(model: nn.Module, flat: Tensor) -> None:
    """Set what `statistics` returns to values [all of them, one after another]."""
    values = list(statistics(model).values())
    for value, part in zip(values, torch.split(flat, [value.numel() for value in values]), strict=True):
        value.copy_(part)
