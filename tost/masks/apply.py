"""Masks as data: booleans by parameter name, and the few functions over them."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tost.flat import room_for
from tost.products import Products, spreading

GHOSTS = "ghost_"
"""What a recipe part adds to a model bears a name that starts so; it is never pruned, never counted as the network."""


def is_ghost(name: str) -> bool:
    """Tell whether a parameter is one that a recipe part has added."""
    return any(part.startswith(GHOSTS) for part in name.split("."))


Masks = dict[str, Tensor]
"""Boolean tensors of the parameters' shapes, by parameter name; True is kept."""

LAYERS: Mapping[str, tuple[type[nn.Module], ...]] = {"conv+linear": (nn.Conv2d, nn.Linear), "conv": (nn.Conv2d,)}
FROZEN = "+frozen"
"""What a set's name ends with that holds frozen weights too."""
PRUNABLE = (*LAYERS, *(name + FROZEN for name in LAYERS))
EVERY = f"conv+linear{FROZEN}"
"""The largest set; a score covers it."""


class MaskError(ValueError):
    """No mask can be made of this: of a network, of what a score returned, or of the count that is asked for."""


def prunable(model: nn.Module, which: str = "conv+linear") -> dict[str, nn.Parameter]:
    """Return the weights that may be pruned, by name in name order: never a bias, never batch norm.

    `which` is `conv+linear` (every Conv2d and Linear, first and last layer included) or `conv`; a weight that is frozen
    (requires_grad is False) belongs to it only where `+frozen` is added. A weight that several modules share stands
    under its first name, as in `named_parameters`; recipe parts' own layers are no part of it. What is left out is told
    by `left_out`.
    Raises ValueError for another set, and MaskError for a layer that does not multiply with its own parameter: one that
    is re-parametrised or standardises its weight, where pruning would have no effect.
    """
    if which not in PRUNABLE:
        raise ValueError(f"{which!r} is no prunable set; choose from {', '.join(PRUNABLE)}")
    weights = set()
    for name, module in model.named_modules():
        if isinstance(module, LAYERS[which.removesuffix(FROZEN)]):
            _check_plain(name, module)
            weights.add(id(module.weight))
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in weights and not is_ghost(name) and (parameter.requires_grad or which.endswith(FROZEN))
    }
    return {name: found[name] for name in sorted(found)}


def left_out(model: nn.Module, which: str = "conv+linear") -> dict[str, nn.Parameter]:
    """Return the other weights, which no mask of a prunable set speaks of: parameters of two or more dimensions."""
    pruned = prunable(model, which)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and name not in pruned and not is_ghost(name)
    }


def not_as_it_is(layer: str, operation: str) -> str:
    """Say that a layer's weight is not what activations are multiplied with."""
    return (
        f"the weight of {layer!r} is not multiplied as it is: {operation} comes first (weight standardisation or the "
        "like), so that pruned weights would be dense all the same; use a network with plain layers"
    )


def _check_plain(name: str, module: nn.Module) -> None:
    """Raise MaskError unless a Conv2d or Linear multiplies with the parameter `weight`.

    A class with a forward of its own is tried, a copy of it, on an input of zeros.
    """
    if "weight" not in module._parameters:
        raise MaskError(
            f"the weight of {name!r} is re-parametrised (weight_norm, spectral_norm, prune), so that pruned weights "
            "would not stay 0; make it plain first (remove_weight_norm, remove_parametrizations, prune.remove), or use "
            "a network with plain layers"
        )
    if any(getattr(type(module), call, None) is not getattr(_plain(module), call, None) for call in FORWARDS):
        if module not in _TRIED:
            _TRIED[module] = _computed(module)
        if operation := _TRIED[module]:
            raise MaskError(not_as_it_is(name, operation))


_TRIED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""What `_computed` has found of layers; scores ask for it at every step."""


def _computed(module: nn.Module) -> str:
    """Return the operation that makes a layer multiply with something dense in its weight's place; "" if none does."""
    weight = module._parameters["weight"]
    assert weight is not None  # it is a parameter of its layer # noqa: S101
    products = Products({})
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        forked_rng(weight),
        contextlib.suppress(Exception),  # what takes another input than the plain layer is left to accounting.layers
    ):
        tried = copied(module)
        if weight.is_meta:
            tried = tried.to_empty(device="cpu")
            for one in (*tried.parameters(), *tried.buffers()):
                one.fill_(1) if one.is_floating_point() else one.zero_()
        weights = dict(tried.named_parameters())
        products = Products(weights)
        with products:
            tried.forward(_input(tried, weights["weight"]))  # without hooks
        if "weight" in products.computed and not products.multiply_adds["weight"]:
            if spreading(lambda: tried.forward(_input(tried, weights["weight"])), weights, ["weight"]):
                return products.computed["weight"]
            return ""
    return "" if products.multiply_adds["weight"] else products.computed.get("weight", "")


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy; an activation that a module keeps in an attribute is taken out of its graph first."""
    kept = (one for module in model.modules() for one in vars(module).values() if isinstance(one, Tensor))
    return copy.deepcopy(model, {id(one): one.detach() for one in kept if not one.is_leaf})


def forked_rng(like: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context after which the random streams are as before: the CPU's and that of a tensor's CUDA device."""
    fork: contextlib.AbstractContextManager[None] = torch.random.fork_rng(devices=[like.device] if like.is_cuda else [])
    return fork


FORWARDS = ("forward", "_conv_forward")
"""What a layer multiplies in."""


def _plain(module: nn.Module) -> type[nn.Module]:
    return nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear


def _input(module: nn.Module, like: Tensor) -> Tensor:
    """Return zeros that a Conv2d or Linear takes, of a tensor's dtype and device."""
    if isinstance(module, nn.Conv2d):
        sides = [4 * d * k for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return like.new_zeros(1, module.in_channels, *sides)
    return like.new_zeros(1, like.shape[1])


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

    Each dtype and device has a piece of memory of its own. Weights that something else moves or puts in another's place
    (`load_state_dict(..., assign=True)`) are gathered again.
    Raises KeyError for a mask of no parameter, and MaskError, at every use, for a weight that is re-parametrised.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        if lacking := [name for name in masks if name not in dict(model.named_parameters())]:
            raise KeyError(lacking[0])
        places = {name: name.rpartition(".") for name in masks}
        self.owners = {name: (model.get_submodule(path), last) for name, (path, _, last) in places.items()}
        self.pieces: dict[tuple[str, ...], _Piece] = {}
        self.wear(masks)

    def wear(self, masks: Masks) -> None:
        """Take other masks of the same weights."""
        self.masks = masks
        if not self.pieces or self._replaced():
            weights = self._weights()
            kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
            for name in masks:
                kinds.setdefault((weights[name].dtype, weights[name].device), []).append(name)
            self.pieces = {tuple(names): _Piece([weights[name] for name in names]) for names in kinds.values()}
        for names, piece in self.pieces.items():
            piece.wear([masks[name] for name in names])

    def clear(self) -> None:
        """Set pruned weights to exactly 0, whatever they were (multiplying would keep an overflow as NaN)."""
        if self._replaced():
            self.wear(self.masks)
        for piece in self.pieces.values():
            piece.clear()

    def _weights(self) -> dict[str, nn.Parameter]:
        weights: dict[str, nn.Parameter] = {}
        for name, (module, last) in self.owners.items():
            if (weight := module._parameters.get(last)) is None:
                raise MaskError(
                    f"{name!r} is pruned and was re-parametrised afterwards (weight_norm, spectral_norm, prune), so "
                    "that it would not stay 0; re-parametrise no layer that a mask prunes"
                )
            weights[name] = weight
        return weights

    def _replaced(self) -> bool:
        """Return whether a weight is another object than the one that was gathered."""
        weights = self._weights()
        held = (
            (name, one) for names, piece in self.pieces.items() for name, one in zip(names, piece.weights, strict=True)
        )
        return any(weights[name] is not one for name, one in held)


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
