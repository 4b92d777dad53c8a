"""Gradual magnitude pruning: masks that tighten while the network trains (GMP; Zhu & Gupta, 2017)."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from tost.masks.apply import Masks, prunable
from tost.masks.scores import magnitude
from tost.masks.select import select, whole_shares


def gmp_sparsity(step: int, final: float, begin: int, updates: int, every: int, initial: float = 0.0) -> float:
    """Return s_f + (s_i - s_f)·(1 - (t - t0)/(n·dt))³, t held inside t0 .. t0 + n·dt."""
    share = min(max((step - begin) / (updates * every), 0.0), 1.0)
    return final + (initial - final) * (1 - share) ** 3


class GradualPruning:
    """The masks in force at a step of training, recomputed from |weight| at t0, t0 + dt, ..., t0 + n·dt.

    What is pruned stays out, so masks are nested. `masks` is the state: put back what stood there to go on.
    """

    def __init__(
        self,
        model: nn.Module,
        keep: int,
        steps: int,
        *,
        which: str = "conv+linear",
        begin: float = 0.0,
        end: float = 0.5,
        every: int = 100,
        scope: str = "layer",
        at_least: int = 0,
    ) -> None:
        """`keep`: weights left at the end; `steps`: of all training; `begin`, `end`: shares of it; `every`: dt.

        A window shorter than dt is one update. Raises ValueError for a window that ends before it begins.
        """
        if not begin < end:
            raise ValueError(f"gradual pruning ends at {end:g} of training, not after it begins at {begin:g}")
        self.model, self.which, self.scope, self.at_least = model, which, scope, at_least
        self.keep, self.weights = keep, prunable(model, which)
        self.total = sum(weight.numel() for weight in self.weights.values())
        self.begin = round(begin * steps)
        window = max(1, round(end * steps) - self.begin)
        self.every = min(every, window)
        self.updates = window // self.every
        self.masks: Masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in self.weights.items()}

    @property
    def last(self) -> int:
        """Return the step of the last update."""
        return self.begin + self.updates * self.every

    def count(self, step: int) -> int:
        """Return how many weights the schedule keeps at a step, all tensors together."""
        if step >= self.last:
            return self.keep
        return max(self.keep, round(self.total * (1 - self.sparsity(step))))

    def sparsity(self, step: int) -> float:
        """Return the schedule's sparsity at a step."""
        return gmp_sparsity(step, 1 - self.keep / self.total, self.begin, self.updates, self.every)

    def shares(self, step: int) -> dict[str, int] | None:
        """Return the counts by tensor of scope `layer`: max(1, round(n·(1 - s))), and at the end the exact total."""
        if self.scope != "layer":
            return None
        live = {name: int(mask.sum()) for name, mask in self.masks.items()}
        if step >= self.last:
            exact = {n: Fraction(self.keep * w.numel(), self.total) for n, w in self.weights.items()}
            return whole_shares(exact, live, dict.fromkeys(live, min(1, self.keep // len(live))))
        kept = 1 - self.sparsity(step)
        return {n: min(live[n], max(1, round(w.numel() * kept))) for n, w in self.weights.items()}

    def __call__(self, step: int) -> Masks:
        """Return the masks at a step, computed anew where it is one of the update steps."""
        if self.begin <= step <= self.last and (step - self.begin) % self.every == 0:
            scores = {name: score for name, score in magnitude(self.model).items() if name in self.weights}
            count, shares = self.count(step), self.shares(step)
            self.masks = select(scores, count, self.masks, self.scope, self.at_least, shares)
        return self.masks
