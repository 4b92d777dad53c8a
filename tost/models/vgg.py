"""VGG with batch norm (Simonyan & Zisserman, 2015) for small images: four max-pools, a global one, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tost.models.resnet import scaled

POOL = 0
VGG16 = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512)
VGG19 = (64, 64, POOL, 128, 128, POOL, *(256,) * 4, POOL, *(512,) * 4, POOL, *(512,) * 4)


class VGG(nn.Module):
    """3x3 convolutions, each with batch norm and ReLU; modules named as in torchvision's features."""

    def __init__(self, plan: Sequence[int], classes: int, channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in plan:
            if step == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = scaled(step, width)
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def vgg16(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG-16 (configuration D), torch's default initialisation."""
    return VGG(VGG16, classes, channels, width)


def vgg19(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG-19 (configuration E), torch's default initialisation."""
    return VGG(VGG19, classes, channels, width)
