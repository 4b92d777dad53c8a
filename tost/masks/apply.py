"""Masks as data: booleans by parameter name, and the few functions over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tost.flat import room_for

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
    """Return how many output channels [O, ...] of a weight have nothing left; of a vector, how many of its entries."""
    return int((~mask.reshape(*mask.shape, 1).flatten(1).any(1)).sum())


def density(masks: Masks) -> float:
    """Return the share of weights kept, 0 .. 1, over all masked tensors together."""
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


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the weights that the masks prune to exactly 0, in place.

    Raises KeyError for a mask of no parameter; check_masks says more, and looks at shapes too.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            weight = parameters[name]
            weight.masked_fill_(~mask.to(weight.device), 0)


class Pruned:
    """The weights that masks prune, to be set to 0 after every step: all at once, for which they are moved together.

    Each dtype and device has a piece of memory of its own. Weights that something else moves are gathered again.
    Raises KeyError for a mask of no parameter.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        parameters = dict(model.named_parameters())
        kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name in masks:
            kinds.setdefault((parameters[name].dtype, parameters[name].device), []).append(name)
        self.pieces = {tuple(names): _Piece([parameters[name] for name in names]) for names in kinds.values()}
        self.wear(masks)

    def wear(self, masks: Masks) -> None:
        """Take other masks of the same weights."""
        for names, piece in self.pieces.items():
            piece.wear([masks[name] for name in names])

    def clear(self) -> None:
        """Set pruned weights to exactly 0, whatever they were (multiplying would keep an overflow as NaN)."""
        for piece in self.pieces.values():
            piece.clear()


class _Piece:
    """Weights of one dtype on one device, and which of them are gone."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self.places: list[int] = []

    @torch.no_grad()
    def wear(self, masks: Sequence[Tensor]) -> None:
        """Take masks of these weights."""
        self.masks = masks
        if not self._together():
            self.flat, views = room_for(self.weights)
            for weight, view in zip(self.weights, views, strict=True):
                weight.data = view.copy_(weight)
            self.places = [weight.data_ptr() for weight in self.weights]
        self.gone, parts = room_for([torch.empty_like(weight, dtype=torch.bool) for weight in self.weights])
        for part, mask in zip(parts, masks, strict=True):
            part.copy_(~mask)

    @torch.no_grad()
    def clear(self) -> None:
        """Set the weights that are gone to 0."""
        if not self._together():
            self.wear(self.masks)
        self.flat.masked_fill_(self.gone, 0)

    def _together(self) -> bool:
        """Return whether the weights still lie where they were gathered."""
        return self.places == [weight.data_ptr() for weight in self.weights]
