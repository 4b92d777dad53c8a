"""From a score to a mask: the arguments a score asks for, its steps, and the exact count."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from tost.catalog import asked_for
from tost.masks.apply import Masks, apply_masks, prunable
from tost.masks.select import select

Score = Callable[..., Mapping[str, Tensor]]


class MaskError(ValueError):
    """A score returned something that no mask can be made of."""


def find_masks(
    score: Score,
    model: nn.Module,
    keep: int,
    *,
    which: str = "conv+linear",
    within: Masks | None = None,
    steps: int = 1,
    density: float | Fraction | None = None,
    scope: str = "global",
    at_least: int = 0,
    offered: Mapping[str, Any] | None = None,
) -> Masks:
    """Return masks over the prunable set that keep exactly `keep` weights, those with the highest scores.

    `steps` > 1 scores again and again, the pruned weights being 0, down the exponential schedule round(N·d^(t/steps))
    (SynFlow), d the `density` asked for or else keep/N, N what `within` has left. `scope` and `at_least` are select's.
    `offered` holds what a score may ask for by parameter name (batches, shape, generator, knobs). The model is not
    changed.
    Raises MaskError when the scores do not cover the prunable set, have other shapes, or are not finite, and where
    `at_least` asks for more than `keep`.
    """
    weights = prunable(model, which)
    total = sum(weight.numel() for weight in weights.values())
    if at_least * len(weights) > keep:
        raise MaskError(f"{keep} weights cannot be {at_least} in each of {len(weights)} layers")
    arguments = asked_for(score, offered or {})
    work, masks = copy.deepcopy(model), within
    if within is not None:
        total, density = sum(int(mask.sum()) for mask in within.values()), None
    share = float(density) if density is not None else keep / total
    for step in range(1, steps + 1):
        if masks is not None:
            apply_masks(work, masks)
        count = keep if step == steps else max(keep, round(total * share ** (step / steps)))
        masks = select(_covering(score(work, **arguments), weights), count, masks, scope, at_least)
    assert masks is not None  # steps is at least 1 # noqa: S101
    return masks


def _covering(scores: object, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(scores, Mapping):
        raise MaskError(f"the score returned {type(scores).__name__}; it must return {{parameter name: tensor}}")
    for name, weight in weights.items():
        if name not in scores:
            raise MaskError(f"the score returned nothing for {name!r}; it must cover every prunable weight")
        if not isinstance(scores[name], Tensor) or scores[name].shape != weight.shape:
            got = tuple(getattr(scores[name], "shape", ())) or type(scores[name]).__name__
            raise MaskError(f"the score of {name!r} has shape {got}; the weight has {tuple(weight.shape)}")
        if not bool(torch.isfinite(scores[name]).all()):
            raise MaskError(f"the scores of {name!r} are not all finite")
    return {name: scores[name] for name in weights}
