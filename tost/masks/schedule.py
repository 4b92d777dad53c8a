"""Gradual magnitude pruning: masks that tighten while the network trains (GMP; Zhu & Gupta, 2017)."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from tost.catalog import SCOPES, check_choice
from tost.masks.apply import MaskError, Masks, empty_layers, prunable
from tost.masks.scores import magnitude
from tost.masks.select import select, whole_shares

SHORT_UPDATES = 10
"""Updates in a window that is shorter than their interval."""


def gmp_sparsity(step: int, final: float, begin: int, updates: int, every: int, initial: float = 0.0) -> float:
    """Return s_f + (s_i - s_f)·(1 - (t - t0)/(n·dt))³, t held inside t0 .. t0 + n·dt (Zhu & Gupta, 2017).

    `final`, `initial`: sparsities s_f and s_i, 0 .. 1; `begin`: the step t0; `updates`, `every`: n and dt.
    """
    share = min(max((step - begin) / (updates * every), 0.0), 1.0)
    return final + (initial - final) * (1 - share) ** 3


class GradualPruning:
    """The masks in force at a step of training, from |weight| at t0, t0 + dt, ..., t0 + n·dt (Zhu & Gupta, 2017).

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
        refuse_empty: bool = False,
        after: bool = False,
    ) -> None:
        """`keep`: weights left at the end; `steps`: of all training; `begin`, `end`: shares of it; `every`: dt.

        A window shorter than dt is cut in ten. The last update comes before the last step at the latest; with `after`,
        where masks are asked for once more when all `steps` are done, it may come there.
        Raises ValueError for a window that ends before it begins and for a scope that does not exist, and MaskError for
        a `keep` or `steps` that cannot be, and an `at_least` that `keep` cannot give every tensor.
        """
        check_choice("scope", scope, SCOPES)
        if not begin < end:
            raise ValueError(f"gradual pruning ends at {end:g} of training, not after it begins at {begin:g}")
        self.model, self.scope, self.at_least, self.refuse_empty = model, scope, at_least, refuse_empty
        self.keep, self.weights = keep, prunable(model, which)
        self.total = sum(weight.numel() for weight in self.weights.values())
        if not 1 <= keep <= self.total:
            raise MaskError(f"cannot keep {keep} of {self.total} weights")
        if steps < (least := 1 if after else 2):
            raise MaskError(f"steps={steps} is not allowed; gradual pruning takes {least} or more")
        if at_least * len(self.weights) > keep:
            raise MaskError(f"{keep} weights cannot be {at_least} in each of {len(self.weights)} layers")
        last = steps if after else steps - 1
        self.begin = min(round(begin * steps), last - 1)
        until = min(round(end * steps), last)
        window = max(1, until - self.begin)
        self.every = every if every <= window else max(1, window // SHORT_UPDATES)
        self.updates = window // self.every
        self.masks: Masks = {n: torch.ones(w.shape, dtype=torch.bool) for n, w in self.weights.items()}
        sizes = {name: weight.numel() for name, weight in self.weights.items()}
        exact = {name: Fraction(keep * size, self.total) for name, size in sizes.items()}
        self.final = whole_shares(exact, sizes, dict.fromkeys(sizes, min(1, keep // len(sizes))))

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
        if step >= self.last:
            return self.final
        kept = 1 - self.sparsity(step)
        # Never below the final share: rounding layer by layer could otherwise leave less than the exact total.
        return {n: max(self.final[n], 1, round(w.numel() * kept)) for n, w in self.weights.items()}

    def __call__(self, step: int) -> Masks:
        """Return the masks at a step, computed anew where it is one of the update steps.

        Raises MaskError where a layer is left with nothing, if `refuse_empty`.
        """
        if self.begin <= step <= self.last and (step - self.begin) % self.every == 0:
            scores = {name: score for name, score in magnitude(self.model).items() if name in self.weights}
            shares = self.shares(step)
            count = self.count(step) if shares is None else sum(shares.values())
            self.masks = select(scores, count, self.masks, self.scope, self.at_least, shares)
            if self.refuse_empty and (empty := empty_layers(self.masks)):
                raise MaskError(f"a layer collapse: nothing is kept of {', '.join(empty)} from step {step} on")
        return self.masks
