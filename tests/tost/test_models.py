"""Networks: sizes the papers give, any input, any number of classes, each build from its seed alone."""

import pytest
import torch
from torch import nn

from tost.catalog import MODELS, resolve


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "count", "convolutions"),
    [("resnet18", 100, 11_220_132, 20), ("resnet20", 10, 272_474, 21)],
)
def test_sizes_are_the_known_ones(name: str, classes: int, count: int, convolutions: int) -> None:
    net = resolve(MODELS[name].path)(classes, 3)
    assert parameters(net) == count
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == convolutions


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_takes_small_images(name: str, size: int, channels: int) -> None:
    if size < 2 ** MODELS[name].halvings:
        pytest.skip("the network halves the image more often than it can be halved")
    net = resolve(MODELS[name].path)(7, channels).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_halvings_are_what_the_catalog_says(name: str) -> None:
    net = resolve(MODELS[name].path)(3, 3)
    strides = [m.stride[0] for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in n]
    assert sum(stride == 2 for stride in strides) == MODELS[name].halvings


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_activation_is_a_module_of_its_own(name: str) -> None:
    net = resolve(MODELS[name].path)(3, 3)
    seen: list[str] = []
    for module in net.modules():
        if type(module) is nn.ReLU:
            module.register_forward_hook(lambda m, i, o: seen.append("used"))
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert len(seen) == sum(type(m) is nn.ReLU for m in net.modules())
