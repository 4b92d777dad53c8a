"""Label smoothing (Szegedy et al., 2016), in the ToST authors' convention or in torch's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tost.catalog import CONVENTIONS, check_choice
from tost.recipe.part import Criterion, Part


class LabelSmoothing(Part):
    """Train against softened targets (Szegedy et al., 2016) all training long; other losses stay plain cross-entropy.

    `authors`: 1 - alpha on the target, alpha / (C - 1) on each other class. `torch`: alpha spread over all C classes,
    the target among them. The first equals the second with alpha·C / (C - 1).
    """

    def __init__(self, alpha: float = 0.1, convention: str = "authors") -> None:
        check_choice("convention", convention, CONVENTIONS)
        self.alpha, self.convention = alpha, convention

    def criterion(self, loss: Criterion) -> Criterion:
        """Replace the cross-entropy; what is returned raises ValueError for an alpha too large for its classes."""

        def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
            classes = logits.shape[1]
            amount = self.alpha * classes / (classes - 1) if self.convention == "authors" else self.alpha
            if amount > 1:
                raise ValueError(f"label smoothing alpha {self.alpha} is too large for {classes} classes")
            return F.cross_entropy(logits, labels, label_smoothing=amount)

        return smoothed
