"""Label smoothing (Szegedy et al., 2016), in the ToST authors' convention or in torch's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tost.catalog import CONVENTIONS, check_choice
from tost.recipe.part import Criterion, Part


class LabelSmoothing(Part):
    """Train against softened targets (Szegedy et al., 2016) all training long; other losses stay plain cross-entropy.

    `authors`: 1 - alpha on the target, alpha / (C - 1) on each other class. `torch`: alpha spread over all C classes,
    the target among them. The first equals the second with alpha·C / (C - 1). Raises ValueError for settings that are
    not allowed.
    """

    def __init__(self, alpha: float = 0.1, convention: str = "authors") -> None:
        check_choice("convention", convention, CONVENTIONS)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: {alpha!r} lies outside 0 .. 1")
        self.alpha, self.convention = alpha, convention

    def criterion(self, loss: Criterion) -> Criterion:
        """Return a cross-entropy with softened targets, its class weights, ignored label and reduction kept.

        `loss`: torch's function, that function with settings (functools.partial), or nn.CrossEntropyLoss; with alpha 0
        any loss, which is returned as it is. Raises ValueError for other losses, and for one that is smoothed already;
        what is returned raises it for an alpha too large for its classes.
        """
        if not self.alpha:
            return loss
        if _settings(loss).get("label_smoothing"):
            raise ValueError("label smoothing: the loss given smooths its labels already; leave one of the two out")

        def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
            classes = logits.shape[1]
            amount = self.alpha
            if self.convention == "authors":
                amount = self.alpha * classes / (classes - 1) if classes > 1 else float("inf")
            if amount > 1:
                raise ValueError(f"label smoothing alpha {self.alpha} is too large for {classes} classes")
            return F.cross_entropy(logits, labels, **{**_settings(loss), "label_smoothing": amount})

        return smoothed


def _settings(loss: Criterion) -> Mapping[str, Any]:
    """Return what a cross-entropy is told beside logits and labels."""
    if loss is F.cross_entropy:
        return {}
    if isinstance(loss, partial) and loss.func is F.cross_entropy and not loss.args:
        return loss.keywords
    if type(loss) is nn.CrossEntropyLoss:  # a subclass may compute something else
        names = ("weight", "ignore_index", "reduction", "label_smoothing")
        return {name: getattr(loss, name) for name in names}
    raise ValueError(
        f"label smoothing cannot soften the targets of {getattr(loss, '__qualname__', type(loss).__name__)}; give it "
        "cross-entropy: torch.nn.functional.cross_entropy or torch.nn.CrossEntropyLoss, before other parts change it"
    )
