"""From a score to a mask: the arguments a score asks for, its steps, and the exact count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from tost.catalog import asked_for
from tost.masks.apply import MaskError, Masks, apply_masks, copied, left_out, prunable
from tost.masks.scores import held
from tost.masks.select import select, unranked

Score = Callable[..., Mapping[str, Tensor]]

SHOWN = 3
"""Names of weights that a message shows."""


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
    `offered` holds what a score may ask for by parameter name (batches, shape, generator, knobs); batches that can be
    read only once are held. The model is not changed, and what a score does to it is undone.
    Raises MaskError when there is no weight to prune, when the scores do not cover the prunable set, have other shapes,
    are not finite or are all 0, and for a `keep`, `steps` or `at_least` that cannot be.
    """
    weights = prunable(model, which)
    if not weights:
        others = ", ".join(list(left_out(model, which))[:SHOWN])
        raise MaskError(
            f"there is no weight to prune: no {'layer' if others else 'weight'} of the set {which} in "
            f"{type(model).__name__}" + (f", whose weights are {others}" if others else "")
        )
    total = sum(weight.numel() for weight in weights.values())
    if keep < 1 or steps < 1:
        raise MaskError(f"keep={keep}, steps={steps} is not allowed; both are whole numbers from 1 on")
    if at_least * len(weights) > keep:
        raise MaskError(f"{keep} weights cannot be {at_least} in each of {len(weights)} layers")
    arguments = asked_for(score, offered or {})
    if "batches" in arguments:
        arguments["batches"] = held(arguments["batches"])
    masks = within
    if within is not None:
        total, density = sum(int(mask.sum()) for mask in within.values()), None
    share = float(density) if density is not None else keep / total
    for step in range(1, steps + 1):
        work = copied(model)
        if masks is not None:
            apply_masks(work, masks)
        count = keep if step == steps else max(keep, round(total * share ** (step / steps)))
        scores = _covering(score(work, **arguments), weights)
        if count < total and not any(bool(one.any()) for one in scores.values()):
            raise MaskError("every score is 0, which ranks no weight above another; look at the network and its images")
        masks = select(scores, count, masks, scope, at_least)
    assert masks is not None  # steps is at least 1 # noqa: S101
    return masks


def _covering(scores: object, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(scores, Mapping):
        raise MaskError(f"the score returned {type(scores).__name__}; it must return {{parameter name: tensor}}")
    for name, weight in weights.items():
        if name not in scores:
            raise MaskError(f"the score returned nothing for {name!r}; it must cover every prunable weight")
        if not isinstance(scores[name], Tensor):
            kind = type(scores[name])
            of_numpy = "; write torch.from_numpy(array)" if kind.__module__ == "numpy" else ""
            raise MaskError(f"the score of {name!r} is {kind.__module__}.{kind.__name__}, not a tensor{of_numpy}")
        if scores[name].shape != weight.shape:
            got = tuple(scores[name].shape)
            raise MaskError(f"the score of {name!r} has shape {got}; the weight has {tuple(weight.shape)}")
        if said := unranked(name, scores[name]):
            raise MaskError(said)
    return {name: scores[name] for name in weights}
