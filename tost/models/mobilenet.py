"""MobileNets for small images: the published blocks with fewer halvings."""

from __future__ import annotations

from torch import nn

from tost.models.features import FeatureNet, scaled

V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Channels and stride of each depthwise-separable block."""

V2 = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage; the stem and the second stage keep the map's size."""


def mobilenet(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet V1 (Howard et al., 2017): a 3x3 stem of stride 1, then 3x3 depthwise and 1x1 pointwise convolutions.

    Torch's default initialisation.
    """
    inputs = scaled(32, width)
    layers = _convolution(channels, inputs, 3)
    for planes, stride in V1:
        outputs = scaled(planes, width)
        layers += _convolution(inputs, inputs, 3, stride, groups=inputs)
        layers += _convolution(inputs, outputs, 1)
        inputs = outputs
    return FeatureNet(layers, nn.Linear(inputs, classes))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def mobilenetv2(classes: int, channels: int = 3, width: float = 1.0) -> nn.Module:
    """MobileNet V2 (Sandler et al., 2018) of torchvision's blocks, with its names and initialisation, no dropout."""
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.ops import Conv2dNormActivation

    inputs, last = scaled(32, width), scaled(1280, width)
    layers: list[nn.Module] = [Conv2dNormActivation(channels, inputs, stride=1, activation_layer=nn.ReLU6)]
    for expansion, planes, blocks, stride in V2:
        for number in range(blocks):
            layers.append(InvertedResidual(inputs, scaled(planes, width), stride if number == 0 else 1, expansion))
            inputs = scaled(planes, width)
    layers.append(Conv2dNormActivation(inputs, last, kernel_size=1, activation_layer=nn.ReLU6))
    classifier = nn.Linear(last, classes)
    net = FeatureNet(layers, nn.Sequential(nn.Identity(), classifier))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.normal_(classifier.weight, 0, 0.01)
    nn.init.zeros_(classifier.bias)
    return net
