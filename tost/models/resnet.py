"""Residual networks (He et al., 2016) for small images: 3x3 stem of stride 1, no max-pool, any input size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        h = self.act1(self.bn1(self.conv1(x)))
        out: Tensor = self.act2(self.bn2(self.conv2(h)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Stages of basic blocks; every stage after the first halves the map."""

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        inputs, stages = widths[0], []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(count):
                stages.append(BasicBlock(inputs, width, 2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        h = self.blocks(self.act1(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(h).flatten(1))
        return logits


def resnet18(classes: int, channels: int = 3) -> nn.Module:
    """ResNet-18, widths 64 to 512, torch's default initialisation."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), classes, channels)


def resnet20(classes: int, channels: int = 3) -> nn.Module:
    """ResNet-20 of the 6n+2 family, widths 16 to 64, He-normal (fan-out) convolutions, convolutional shortcuts."""
    return _thin(3, classes, channels)


def _thin(n: int, classes: int, channels: int) -> nn.Module:
    net = ResNet((n, n, n), (16, 32, 64), classes, channels)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
