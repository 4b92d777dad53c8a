"""Residual networks (He et al., 2016) for small images: 3x3 stem of stride 1, no max-pool, any input size.

Modules are named as in torchvision, so that weights and masks made elsewhere fit.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tost.models.features import scaled

WIDE = (64, 128, 256, 512)
THIN = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution with batch norm where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, planes, H/stride, W/stride]."""
        h = self.act1(self.bn1(self.conv1(x)))
        out: Tensor = self.act2(self.bn2(self.conv2(h)) + self.downsample(x))
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3 (which holds the stride) and 1x1 convolutions, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, 4·planes, H/stride, W/stride]."""
        h = self.act1(self.bn1(self.conv1(x)))
        h = self.act2(self.bn2(self.conv2(h)))
        out: Tensor = self.act3(self.bn3(self.conv3(h)) + self.downsample(x))
        return out


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stages of blocks; every stage after the first halves the map."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int],
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        self.stages = len(blocks)
        inputs = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            made = []
            for number in range(count):
                made.append(block(inputs, width, 2 if stage > 0 and number == 0 else 1))
                inputs = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        h = self.act1(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            h = self.get_submodule(f"layer{stage + 1}")(h)
        logits: Tensor = self.fc(self.pool(h).flatten(1))
        return logits


def resnet18(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-18, widths 64 to 512, torch's default initialisation."""
    return _wide(BasicBlock, (2, 2, 2, 2), classes, channels, width)


def resnet34(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-34, widths 64 to 512, torch's default initialisation."""
    return _wide(BasicBlock, (3, 4, 6, 3), classes, channels, width)


def resnet50(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-50 of bottleneck blocks, widths 256 to 2048, torch's default initialisation."""
    return _wide(Bottleneck, (3, 4, 6, 3), classes, channels, width)


def resnet20(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-20 of the 6n+2 family, widths 16 to 64, He-normal (fan-out) convolutions, convolutional shortcuts."""
    return _thin(BasicBlock, 3, classes, channels, width)


def resnet32(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-32 of the 6n+2 family, as resnet20."""
    return _thin(BasicBlock, 5, classes, channels, width)


def resnet56(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-56 of the 6n+2 family, as resnet20."""
    return _thin(BasicBlock, 9, classes, channels, width)


def resnet32x2(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """ResNet-32 of double width, 32 to 128, as GraSP (Wang et al., 2020) uses it."""
    return _thin(BasicBlock, 5, classes, channels, 2 * width)


def resnet104(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """The ToST authors' ResNet-104, most likely: 6·17+2 with bottleneck blocks, 157 convolutions."""
    return _thin(Bottleneck, 17, classes, channels, width)


def resnet104_9n2(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """The other reading of ResNet-104: bottleneck blocks, 11 in each of three stages, 103 convolutions."""
    return _thin(Bottleneck, 11, classes, channels, width)


def _wide(
    block: type[BasicBlock | Bottleneck], blocks: Sequence[int], classes: int, channels: int, width: float
) -> nn.Module:
    return ResNet(block, blocks, [scaled(w, width) for w in WIDE], classes, channels)


def _thin(block: type[BasicBlock | Bottleneck], count: int, classes: int, channels: int, width: float) -> nn.Module:
    net = ResNet(block, (count,) * 3, [scaled(w, width) for w in THIN], classes, channels)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
