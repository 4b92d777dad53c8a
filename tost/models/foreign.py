"""Networks of other libraries: any classification network of torchvision or timm, its stem fitted to small images."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

PROBE = 64
"""Height and width of the image that the stem is traced with."""

AUXILIARY = frozenset({"googlenet", "inception_v3"})
"""Networks of torchvision that return a tuple in train mode unless told otherwise."""


def torchvision_network(classes: int, channels: int, name: str, stem: str = "original") -> nn.Module:
    """Build `torchvision.models.NAME` untrained. Raises ValueError where it cannot be fitted."""
    make = importlib.import_module("torchvision.models").get_model
    more: dict[str, Any] = {"aux_logits": False} if name in AUXILIARY else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of their initialisation, which becomes torch's default
        net: nn.Module = make(name, weights=None, num_classes=classes, **more)
    if channels != 3:
        path, first = _convolutions(net)[0]
        _put(net, path, _like(first, inputs=channels))
    return small_stem(net, channels) if stem == "small" else net


def timm_network(classes: int, channels: int, name: str, stem: str = "original") -> nn.Module:
    """Build `timm.create_model(NAME)` untrained. Raises ValueError where timm is missing or it cannot be fitted."""
    try:
        make = importlib.import_module("timm").create_model
    except ImportError:
        raise ValueError(f"timm:{name} needs timm; run: pip install timm") from None
    net: nn.Module = make(name, pretrained=False, num_classes=classes, in_chans=channels)
    return small_stem(net, channels) if stem == "small" else net


def small_stem(net: nn.Module, channels: int) -> nn.Module:
    """Make the first convolution 3x3 of stride 1, and pass by the max-pools between it and the second one.

    Raises ValueError for a first convolution that cuts the image into patches.
    """
    path, first = _convolutions(net)[0]
    if first.stride == first.kernel_size and first.stride != (1, 1):
        raise ValueError(f"stem: small: {path} cuts {first.kernel_size[0]}-pixel patches; use stem: original")
    if first.stride != (1, 1) or max(first.kernel_size) > 3:
        _put(net, path, _like(first, small=True))
    for pool in _early_pools(net, channels):
        _put(net, pool, nn.Identity())
    return net


def _convolutions(net: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    found = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if not found:
        raise ValueError(f"{type(net).__name__} has no convolution to fit")
    return found


def _like(old: nn.Conv2d, inputs: int | None = None, small: bool = False) -> nn.Conv2d:
    """Return a convolution like another, He-normal (fan-out) as the libraries' own stems are."""
    new = copy.deepcopy(old)
    if inputs is not None:
        new.in_channels = inputs
    if small:
        new.kernel_size, new.stride, new.padding = (3, 3), (1, 1), (1, 1)
    new.weight = nn.Parameter(torch.empty(new.out_channels, new.in_channels // new.groups, *new.kernel_size))
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def _early_pools(net: nn.Module, channels: int) -> list[str]:
    """Return the max-pools that run after the first and before the second convolution."""
    order: list[tuple[str, nn.Module]] = []
    probe = copy.deepcopy(net).eval()
    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            module.register_forward_hook(lambda m, i, o, name=name: order.append((name, m)))
    try:
        with torch.no_grad():
            probe(Tensor(torch.zeros(1, channels, PROBE, PROBE)))
    except RuntimeError as error:
        raise ValueError(f"stem: small: the network cannot be traced with {PROBE}x{PROBE} pixels: {error}") from None
    kinds = [isinstance(module, nn.Conv2d) for _, module in order]
    second = kinds.index(True, kinds.index(True) + 1) if sum(kinds) > 1 else len(kinds)
    return list(dict.fromkeys(name for name, module in order[:second] if isinstance(module, nn.MaxPool2d)))
