"""Controls: what is left of a mask's worth when only its layer densities are kept, and how alike two masks are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tost.masks.apply import Masks


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """Return masks of the same counts, their positions permuted within each tensor (Frankle et al., 2021).

    `generator`: of the CPU, as masks are.
    """
    return {
        name: masks[name].flatten()[torch.randperm(masks[name].numel(), generator=generator)].view(masks[name].shape)
        for name in sorted(masks)
    }


@dataclass(frozen=True)
class Overlap:
    """How alike two masks of one tensor, or of many together, are: weights kept by both, by either, and all of them."""

    both: int
    either: int
    size: int

    @property
    def iou(self) -> float:
        """Return the weights kept by both over those kept by either (Jaccard); 1 where neither keeps any."""
        return self.both / self.either if self.either else 1.0

    @property
    def hamming(self) -> float:
        """Return the share of positions at which the masks differ."""
        return (self.either - self.both) / self.size

    def __add__(self, other: Overlap) -> Overlap:
        """Return the overlap of both together."""
        return Overlap(self.both + other.both, self.either + other.either, self.size + other.size)


def overlap(first: Tensor, second: Tensor) -> Overlap:
    """Compare two boolean masks of one shape. Raises ValueError where the shapes differ."""
    if first.shape != second.shape:
        raise ValueError(f"a mask of shape {list(first.shape)} cannot be compared with one of {list(second.shape)}")
    return Overlap(int((first & second).sum()), int((first | second).sum()), first.numel())
