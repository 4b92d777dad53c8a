"""How many weights survive, and which: exact counts, ties broken by a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from tost.masks.apply import Masks

Scores = Mapping[str, Tensor]

IMP_RATE = Fraction(1, 5)


def keep_count(total: int, density: Fraction) -> int:
    """Return how many of `total` weights a density keeps: the nearest whole number, at least 1.

    Raises ValueError for a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"density {density} is not allowed; it lies in (0, 1]")
    return max(1, round(density * total))


def imp_count(total: int, level: int) -> int:
    """Return the weights left after `level` rounds of iterative magnitude pruning (Frankle & Carbin, 2019).

    Each round keeps 80 % of the *previous count*, to the nearest weight, so the chain's rounding adds up along it.
    """
    count = total
    for _ in range(level):
        count = max(1, round((1 - IMP_RATE) * count))
    return count


def select(scores: Scores, keep: int, within: Masks | None = None, scope: str = "global") -> Masks:
    """Keep exactly the `keep` highest scores; of equal ones, those first in name order and then in flat index.

    `within`: only weights kept there may be kept. `scope`: `global` ranks all tensors together; `layer` gives every
    tensor the same density, with the rounding remainder going to the largest fractional parts.
    Raises ValueError for a score that is not finite, and for more weights asked for than there are.
    """
    names = sorted(scores)
    for name in names:
        if not bool(torch.isfinite(scores[name]).all()):
            raise ValueError(f"the scores of {name!r} are not all finite")
    flat = {name: scores[name].detach().to("cpu", torch.float64).flatten() for name in names}
    live = {
        name: torch.arange(flat[name].numel()) if within is None else within[name].flatten().nonzero()[:, 0]
        for name in names
    }
    if scope == "global":
        kept = _highest(torch.cat([flat[n][live[n]] for n in names]), keep)
        parts = dict(zip(names, torch.split(kept, [live[n].numel() for n in names]), strict=True))
    else:
        shares = allocate({n: live[n].numel() for n in names}, keep)
        parts = {n: _highest(flat[n][live[n]], shares[n]) for n in names}
    masks = {}
    for name in names:
        mask = torch.zeros(flat[name].numel(), dtype=torch.bool)
        mask[live[name][parts[name]]] = True
        masks[name] = mask.view(scores[name].shape)
    return masks


def allocate(sizes: Mapping[str, int], keep: int) -> dict[str, int]:
    """Split a number of kept weights over layers in proportion to their sizes, the sum being exact."""
    total = sum(sizes.values())
    if not 0 <= keep <= total:
        raise ValueError(f"cannot keep {keep} of {total} weights")
    exact = {name: Fraction(keep * size, total) for name, size in sizes.items()}
    shares = {name: int(value) for name, value in exact.items()}
    for name in sorted(sizes, key=lambda n: (shares[n] - exact[n], n))[: keep - sum(shares.values())]:
        shares[name] += 1
    return shares


def _highest(values: Tensor, keep: int) -> Tensor:
    """Mark the `keep` highest of a vector as a stable descending sort would, by a partition instead of a sort."""
    if not 0 <= keep <= values.numel():
        raise ValueError(f"cannot keep {keep} of {values.numel()} weights")
    if keep == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(values.numel() - keep + 1).values
    kept = values > threshold
    tied = (values == threshold).nonzero()[:, 0]
    kept[tied[: keep - int(kept.sum())]] = True
    return kept
