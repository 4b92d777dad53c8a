"""How many weights survive, and which: exact counts, ties broken by a fixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from tost.catalog import SCOPES, check_choice
from tost.masks.apply import MaskError, Masks

Scores = Mapping[str, Tensor]

IMP_RATE = Fraction(1, 5)


def keep_count(total: int, density: float | Fraction) -> int:
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


def select(
    scores: Scores,
    keep: int,
    within: Masks | None = None,
    scope: str = "global",
    at_least: int = 0,
    shares: Mapping[str, int] | None = None,
) -> Masks:
    """Keep exactly the `keep` highest scores; of equal ones, those first in name order and then in flat index.

    `within`: only weights kept there may be kept. `scope`: `global` ranks all tensors together; `layer` gives every
    tensor the same density, `erk` the Erdős–Rényi-kernel one, the rounding remainder going to the largest fractional
    parts. `at_least`: so many of every tensor's best are kept before the rest is ranked. `shares`: the count of every
    tensor, in place of a scope; their sum is `keep`.
    Raises ValueError for a scope that does not exist, MaskError (which is one) for a score that is not finite, for
    fewer than 1 weight or more than there are, and for shares that do not fit.
    """
    check_choice("scope", scope, SCOPES)
    names = sorted(scores)
    for name in names:
        if said := unranked(name, scores[name]):
            raise MaskError(said)
    flat = {name: scores[name].detach().to("cpu", torch.float64).flatten() for name in names}
    live = {
        name: torch.arange(flat[name].numel()) if within is None else within[name].flatten().nonzero()[:, 0]
        for name in names
    }
    sizes = {name: live[name].numel() for name in names}
    floors = {name: min(at_least, sizes[name]) for name in names}
    if not max(1, sum(floors.values())) <= keep <= sum(sizes.values()):
        raise MaskError(
            f"cannot keep {keep} of {sum(sizes.values())} weights"
            + (f" with at least {at_least} in each of {len(names)} tensors" if at_least else "")
        )
    if shares is not None:
        _check_shares(shares, sizes, keep)
    values = {name: flat[name][live[name]] for name in names}
    if shares is None and scope != "global":
        shapes = {name: tuple(scores[name].shape) for name in names}
        shares = whole_shares(_exact_shares(shapes, sizes, keep, scope), sizes, floors)
    if shares is None:
        parts = _highest_of_all(values, floors, keep)
    else:
        parts = {name: _highest(values[name], shares[name]) for name in names}
    masks = {}
    for name in names:
        mask = torch.zeros(flat[name].numel(), dtype=torch.bool)
        mask[live[name][parts[name]]] = True
        masks[name] = mask.view(scores[name].shape)
    return masks


def unranked(name: str, scores: Tensor) -> str:
    """Say how many scores of a tensor have no rank; nothing where all are finite."""
    bad = scores.numel() - int(torch.isfinite(scores).sum())
    return f"the scores of {name!r} are not all finite: {bad:,} of {scores.numel():,} are NaN or infinite" * bool(bad)


def _check_shares(shares: Mapping[str, int], sizes: Mapping[str, int], keep: int) -> None:
    """Raise MaskError unless shares are of these tensors, fit into them and add up to the count."""
    if odd := sorted(shares.keys() ^ sizes.keys()):
        raise MaskError(f"shares and scores are not of the same tensors: {', '.join(odd)} is in one of them only")
    if over := [name for name, share in shares.items() if not 0 <= share <= sizes[name]]:
        raise MaskError(f"cannot keep {shares[over[0]]} of {sizes[over[0]]} weights of {over[0]!r}")
    if sum(shares.values()) != keep:
        raise MaskError(f"the shares add up to {sum(shares.values())} weights, not to keep={keep}")


def _exact_shares(
    shapes: Mapping[str, Sequence[int]], sizes: Mapping[str, int], keep: int, scope: str
) -> dict[str, Fraction]:
    if scope == "erk":
        return erk_shares(shapes, keep, sizes)
    return {name: Fraction(keep * size, sum(sizes.values())) for name, size in sizes.items()}


def erk_shares(
    shapes: Mapping[str, Sequence[int]], keep: int, capacity: Mapping[str, int] | None = None
) -> dict[str, Fraction]:
    """Return how many weights of each tensor Erdős–Rényi-kernel densities keep (Evci et al., 2020), as exact fractions.

    A density is proportional to (sum of the shape) / (product of the shape); tensors that would exceed their capacity
    (all their weights, by default) are full, and the rest is scaled anew until none does.
    """
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    room = dict(sizes if capacity is None else capacity)
    full: set[str] = set()
    while True:
        free = [name for name in shapes if name not in full]
        budget = keep - sum(room[name] for name in full)
        scale = Fraction(budget, sum(sum(shapes[name]) for name in free)) if free else Fraction(0)
        over = {n: scale * sum(shapes[n]) / room[n] for n in free if room[n] and scale * sum(shapes[n]) > room[n]}
        over |= {n: Fraction(1) for n in free if not room[n]}
        if not over:
            return {n: Fraction(room[n]) if n in full else scale * sum(shapes[n]) for n in shapes}
        full |= {name for name in over if over[name] == max(over.values())}


def whole_shares(
    exact: Mapping[str, Fraction], capacity: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, int]:
    """Round shares to whole numbers of the same sum, the remainder to the largest fractional parts.

    Of equal ones those first in name order. No share exceeds its capacity or falls below its floor.
    Raises ValueError where that leaves no room for the sum.
    """
    total = int(sum(exact.values()))
    shares = {name: min(max(int(value), floors[name]), capacity[name]) for name, value in exact.items()}
    while (missing := total - sum(shares.values())) != 0:
        step = 1 if missing > 0 else -1
        able = [n for n in exact if (shares[n] < capacity[n] if step > 0 else shares[n] > floors[n])]
        if not able:
            raise ValueError(f"{total} weights cannot be split over tensors of {sum(capacity.values())}")
        for name in sorted(able, key=lambda n: (step * (shares[n] - exact[n]), n))[: abs(missing)]:
            shares[name] += step
    return shares


def _highest_of_all(values: Mapping[str, Tensor], floors: Mapping[str, int], keep: int) -> dict[str, Tensor]:
    """Mark the highest of all tensors together, each tensor's floor first."""
    names = list(values)
    sizes = [values[name].numel() for name in names]
    if not any(floors.values()):
        return dict(zip(names, torch.split(_highest(torch.cat([values[n] for n in names]), keep), sizes), strict=True))
    reserved = torch.cat([_highest(values[name], floors[name]) for name in names])
    rest = (~reserved).nonzero()[:, 0]
    ranked = _highest(torch.cat([values[name] for name in names])[rest], keep - int(reserved.sum()))
    reserved[rest[ranked]] = True
    return dict(zip(names, torch.split(reserved, sizes), strict=True))


def _highest(values: Tensor, keep: int) -> Tensor:
    """Mark the `keep` highest of a vector as a stable descending sort would, by a partition instead of a sort."""
    if keep in (0, values.numel()):
        return torch.full_like(values, bool(keep), dtype=torch.bool)
    threshold = values.kthvalue(values.numel() - keep + 1).values
    kept = values > threshold
    tied = (values == threshold).nonzero()[:, 0]
    kept[tied[: keep - int(kept.sum())]] = True
    return kept
