"""Networks without branches to join at their end: features, a global average pool, a classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class FeatureNet(nn.Module):
    """Layers one after another, modules named as torchvision names them."""

    def __init__(self, features: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def scaled(channels: int, width: float) -> int:
    """Return a number of channels times a width, at least 1."""
    return max(1, round(channels * width))
