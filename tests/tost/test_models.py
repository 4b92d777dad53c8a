"""Networks: sizes the papers give, any input, any number of classes, those of other libraries, and thin ones."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from tost.catalog import LIBRARIES, MODELS, resolve
from tost.masks import prunable
from tost.models.foreign import small_stem
from tost.models.slim import slim_width


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def convolutions(net: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in net.modules())


def build(name: str, classes: int = 10, channels: int = 3, width: float = 1.0) -> nn.Module:
    net: nn.Module = resolve(MODELS[name].path)(classes, channels, width)
    return net


@pytest.mark.parametrize(
    ("name", "classes", "count", "layers"),
    [
        ("resnet18", 100, 11_220_132, 20),
        ("resnet20", 10, 272_474, 21),
        ("resnet32", 10, 466_906, 33),
        ("resnet104", 10, 1_611_418, 157),
        ("resnet104-9n2", 10, 1_055_002, 103),
    ],
)
def test_sizes_are_the_known_ones(name: str, classes: int, count: int, layers: int) -> None:
    net = build(name, classes)
    assert parameters(net) == count
    assert convolutions(net) == layers


def test_resnet18_has_the_known_number_of_convolution_weights() -> None:
    assert sum(w.numel() for w in prunable(build("resnet18", 100), "conv").values()) == 11_159_232


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_wide_resnets_are_torchvisions_but_for_the_stem(name: str) -> None:
    theirs = torchvision.models.get_model(name, num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    mine = build(name)
    assert {n: p.shape for n, p in mine.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg_has_torchvisions_features_and_one_linear_layer(name: str) -> None:
    theirs = torchvision.models.get_model(f"{name}_bn").features
    mine = build(name)
    assert [p.shape for p in mine.get_submodule("features").parameters()] == [p.shape for p in theirs.parameters()]
    assert parameters(mine) == parameters(theirs) + 512 * 10 + 10
    assert sum(isinstance(m, nn.MaxPool2d) for m in mine.modules()) == 4


def test_mobilenetv2_has_torchvisions_parameters() -> None:
    theirs = torchvision.models.mobilenet_v2(num_classes=10)
    assert {n: p.shape for n, p in build("mobilenetv2").named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }


def test_mobilenet_has_thirteen_separable_blocks() -> None:
    depthwise = [m for m in build("mobilenet").modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 13
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)
    assert parameters(build("mobilenet")) == 3_217_226


def test_the_double_width_resnet_is_twice_as_wide() -> None:
    assert [p.shape for p in build("resnet32x2").parameters()] == [
        p.shape for p in build("resnet32", width=2).parameters()
    ]


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_takes_small_images(name: str, size: int, channels: int) -> None:
    net = build(name, 7, channels, 0.25).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_halvings_are_what_the_catalog_says(name: str) -> None:
    net = build(name, 3, 3, 0.25)
    shapes: list[int] = []
    pooled = next(m for m in net.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    pooled.register_forward_hook(lambda m, inputs, out: shapes.append(inputs[0].shape[-1]))
    net.eval()(torch.zeros(1, 3, 64, 64))
    assert shapes == [64 // 2 ** MODELS[name].halvings]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_activation_is_a_module_used_once(name: str) -> None:
    net = build(name, 3, 3, 0.25)
    seen: list[str] = []
    kinds = (nn.ReLU, nn.ReLU6)
    for module in net.modules():
        if type(module) in kinds:
            module.register_forward_hook(lambda m, i, o: seen.append("used"))
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert len(seen) == sum(type(m) in kinds for m in net.modules()) > 0


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenetv2", "resnet104"])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_a_narrow_network_comes_near_any_size(name: str, share: float) -> None:
    target = round(parameters(build(name)) * share)
    width = slim_width(lambda w: build(name, width=w), target)
    assert parameters(build(name, width=width)) == pytest.approx(target, rel=0.06)


# Other libraries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "mobilenet_v3_small", "vgg11_bn"])
@pytest.mark.parametrize("stem", ["original", "small"])
def test_torchvisions_networks_take_small_images(name: str, stem: str, channels: int) -> None:
    net = resolve(LIBRARIES["torchvision"].path)(7, channels, name=name, stem=stem)
    assert net(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


def test_a_small_stem_is_the_cifar_form() -> None:
    theirs = resolve(LIBRARIES["torchvision"].path)(10, 3, name="resnet18", stem="small").eval()
    mine = build("resnet18").eval()
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(mine(x), theirs(x))


def test_timms_networks_take_small_images() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    make = resolve(LIBRARIES["timm"].path)
    for stem in ("original", "small"):
        assert make(7, 1, name="resnet10t", stem=stem)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="cuts 16-pixel patches"):
        make(7, 3, name="vit_tiny_patch16_224", stem="small")


def test_a_network_without_convolutions_has_no_stem() -> None:
    with pytest.raises(ValueError, match="Linear has no convolution to fit"):
        small_stem(nn.Linear(2, 2), 3)
