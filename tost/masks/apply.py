"""Masks as data: booleans by parameter name, and the few functions over them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

GHOSTS = "ghost_"
"""What a recipe part adds to a model bears a name that starts so; it is never pruned, never counted as the network."""


def is_ghost(name: str) -> bool:
    """Tell whether a parameter is one that a recipe part has added."""
    return any(part.startswith(GHOSTS) for part in name.split("."))


Masks = dict[str, Tensor]
"""Boolean tensors of the parameters' shapes, by parameter name; True is kept."""

PRUNABLE: Mapping[str, tuple[type[nn.Module], ...]] = {"conv+linear": (nn.Conv2d, nn.Linear), "conv": (nn.Conv2d,)}


def prunable(model: nn.Module, which: str = "conv+linear") -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned, by name in name order: never a bias, never batch norm.

    `which` is `conv+linear` (every Conv2d and Linear, first and last layer included) or `conv`. A weight that several
    modules share stands under its first name, as in `named_parameters`; recipe parts' own layers are no part of it.
    Raises ValueError for another set, and for a weight that is no parameter of its layer.
    """
    if which not in PRUNABLE:
        raise ValueError(f"{which!r} is no prunable set; choose from {', '.join(PRUNABLE)}")
    weights = set()
    for name, module in model.named_modules():
        if isinstance(module, PRUNABLE[which]):
            if "weight" not in module._parameters:
                raise ValueError(f"the weight of {name!r} is re-parametrised (prune, weight_norm); make it plain first")
            weights.add(id(module.weight))
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in weights and not is_ghost(name)
    }
    return {name: found[name] for name in sorted(found)}


def empty_layers(masks: Masks) -> list[str]:
    """Return the tensors of which nothing is kept: a layer collapse."""
    return [name for name, mask in masks.items() if not bool(mask.any())]


def dead_filters(mask: Tensor) -> int:
    """Return how many output channels [O, ...] of a weight have nothing left."""
    return int((~mask.flatten(1).any(1)).sum())


def density(masks: Masks) -> float:
    """Return the share of weights kept, over all masked tensors together."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def check_masks(model: nn.Module, masks: Masks) -> None:
    """Raise ValueError, naming the tensor, unless each mask fits a parameter of the model."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"mask {name!r} belongs to no parameter of {type(model).__name__}")
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise ValueError(
                f"mask {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"the parameter needs torch.bool of shape {tuple(parameters[name].shape)}"
            )


def check_contract(masks: Masks, keep: int, within: Masks | None = None) -> None:
    """Raise ValueError unless exactly `keep` weights are kept, all of them among those that `within` keeps."""
    if (kept := sum(int(mask.sum()) for mask in masks.values())) != keep:
        raise ValueError(f"the masks keep {kept} weights instead of {keep}")
    for name, mask in masks.items():
        if within is not None and bool((mask & ~within[name]).any()):
            raise ValueError(f"the mask {name!r} keeps weights that were pruned before")


Pruned = list[tuple[nn.Parameter, Tensor]]
"""Parameters with their pruned positions, on the parameter's device and laid out as it is."""


def pruned(model: nn.Module, masks: Masks) -> Pruned:
    """Return what `clear` sets to 0, looked up once for many steps."""
    parameters = dict(model.named_parameters())
    return [
        (parameters[name], torch.empty_like(parameters[name], dtype=torch.bool).copy_(~mask))
        for name, mask in masks.items()
    ]


@torch.no_grad()
def clear(positions: Pruned) -> None:
    """Set pruned weights to exactly 0, in place, whatever they were (multiplying would keep an overflow as NaN)."""
    for parameter, gone in positions:
        parameter.masked_fill_(gone, 0)


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the weights that the masks prune to exactly 0, in place."""
    clear(pruned(model, masks))
