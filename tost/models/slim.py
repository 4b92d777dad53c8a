"""A narrower network of a given size: the dense control with as many parameters as a sparse one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

HALVINGS = 20


def slim_width(build: Callable[[float], nn.Module], target: int, widest: float = 1.0) -> float:
    """Return the width in (0, widest] at which `build(width)` comes nearest to `target` parameters.

    Networks are built on the meta device, so that none is ever allocated. Channels are whole, so sizes come in steps;
    of two widths equally near, the narrower.
    """

    def size(width: float) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in build(width).parameters())

    low, high = 0.0, widest
    sizes = {high: size(high)}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        sizes[middle] = size(middle)
        low, high = (middle, high) if sizes[middle] < target else (low, middle)
        if sizes[middle] == target:
            break
    return min(sizes, key=lambda width: (abs(sizes[width] - target), width))
