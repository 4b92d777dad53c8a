"""VGG with batch norm (Simonyan & Zisserman, 2015) for small images: four max-pools, a global one, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tost.models.features import FeatureNet, scaled

POOL = 0
VGG16 = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512)
VGG19 = (64, 64, POOL, 128, 128, POOL, *(256,) * 4, POOL, *(512,) * 4, POOL, *(512,) * 4)


def vgg16(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG-16 (configuration D), torch's default initialisation."""
    return _vgg(VGG16, classes, channels, width)


def vgg19(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG-19 (configuration E), torch's default initialisation."""
    return _vgg(VGG19, classes, channels, width)


def _vgg(plan: Sequence[int], classes: int, channels: int, width: float) -> nn.Module:
    layers: list[nn.Module] = []
    for step in plan:
        if step == POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        outputs = scaled(step, width)
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        channels = outputs
    return FeatureNet(layers, nn.Linear(channels, classes))
