"""Optimizers by name, and their state by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from harness.protocol import Protocol
from harness.train.layout import like


def sgd(parameters: Iterable[Tensor], protocol: Protocol) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; weight decay on everything, as the ToST authors have it."""
    weights = list(parameters)
    optimizer = torch.optim.SGD(
        weights,
        fused=fusible(weights),
        lr=protocol.lr,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    # The fused kernel wants all momenta or none: a branch first taken in a later step would have none. 0 is the same.
    for weight in weights if protocol.momentum else ():
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer


def adamw(parameters: Iterable[Tensor], protocol: Protocol) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019)."""
    weights, betas = list(parameters), (protocol.beta1, protocol.beta2)
    return torch.optim.AdamW(
        weights, fused=fusible(weights), lr=protocol.lr, betas=betas, weight_decay=protocol.weight_decay
    )


def fusible(weights: Sequence[Tensor]) -> bool:
    """Return whether one kernel can update all weights."""
    return all(weight.device.type in ("cpu", "cuda") and weight.is_floating_point() for weight in weights)


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as `parameter name/key` -> tensor.

    By name, because torch's own state is by position: loaded after a module was swapped it fits wrongly, silently.
    """
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_named_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what named_state returned."""
    parameters = dict(model.named_parameters())
    for path, value in state.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        where = parameter.device if optimizer.defaults.get("fused") else value.device  # as torch itself begins
        optimizer.state[parameter][key] = value.to(where, copy=True) if key == "step" else like(value, parameter)
