"""Convolutions of small maps as matrix products: what they compute, and where they stand in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from harness.train.small_maps import PIXELS, STRIDED, Product, SmallMaps, fits, pays
from tost.catalog import MODELS, resolve

SHAPES = [
    (4, 3, 1, 1),
    (8, 3, 2, 1),
    (2, 3, 1, 1),
    (5, 5, 1, 2),
    (6, 3, 1, 0),
    (7, 3, 2, 0),
    (4, 2, 2, 0),
    (5, 4, 3, 3),
]
"""Side of the map, side of the kernel, stride, padding."""


@pytest.mark.parametrize(("size", "side", "stride", "padding"), SHAPES)
def test_a_product_is_the_convolution_and_so_are_its_gradients(size: int, side: int, stride: int, padding: int) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(3, 4, size, size, generator=draws, dtype=torch.float64)
    weight = torch.randn(5, 4, side, side, generator=draws, dtype=torch.float64)
    found = []
    for convolve in (Product.apply, lambda x, w, s, p: F.conv2d(x, w, None, s, p)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = images.clone(memory_format=layout).requires_grad_()
            w = weight.clone(memory_format=layout).requires_grad_()
            y: Tensor = convolve(x, w, stride, padding)
            torch.autograd.backward(y, torch.randn(y.shape, generator=draws.manual_seed(1), dtype=torch.float64))
            found.append((y.detach(), x.grad, w.grad))
    for other in found[:-1]:
        assert_close(other, found[-1])


def test_gradients_that_nobody_asks_for_are_not_made() -> None:
    images, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3, requires_grad=True)
    Product.apply(images, weight, 1, 1).sum().backward()
    assert images.grad is None
    assert weight.grad is not None
    images, weight = images.requires_grad_(), weight.detach()
    Product.apply(images, weight, 1, 1).sum().backward()
    assert images.grad is not None
    assert weight.grad is None


def test_only_small_maps_of_many_channels_fit() -> None:
    def asked(channels: int, size: int, side: int = 3, *, groups: int = 1, **told: object) -> bool:
        weight = torch.empty(channels, channels // groups, side, side)
        given = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), **told}
        return fits(torch.empty(2, channels, size, size), weight, None, groups=groups, **given)

    assert (PIXELS, STRIDED) == (16, 64)
    assert asked(64, 4)
    assert asked(512, 2)
    assert asked(64, 16, stride=(2, 2)), "the output's size counts"
    assert not asked(64, 18, stride=(2, 2))
    assert not asked(64, 8)
    assert not asked(32, 4)
    assert not asked(128, 4, groups=2)
    assert not asked(64, 4, 1, padding=(0, 0)), "a 1 x 1 convolution is a product as it is"
    assert not asked(64, 4, dilation=(2, 2))
    assert not asked(64, 4, padding="same")
    assert not asked(64, 4, stride=(1, 2))
    assert not asked(64, 2, padding=(3, 3)), "the kernel would see nothing but padding"
    assert not asked(64, 1, padding=(0, 0)), "no output"
    assert not fits(torch.empty(64, 4, 4), torch.empty(64, 64, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)


def test_a_cpu_with_amx_uses_it_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert pays(torch.device("cpu"), "bf16") == amx
        assert not pays(torch.device("cpu"), "fp32")
        assert not pays(torch.device("cuda"), "bf16")


def products(value: Tensor) -> int:
    """Return how many products a value was computed with."""
    seen, queue, count = set(), [value.grad_fn], 0
    while queue:
        if (node := queue.pop()) is not None and node not in seen:
            seen.add(node)
            count += node.name() == "ProductBackward"
            queue += [below for below, _ in node.next_functions]
    return count


@pytest.mark.parametrize("arch", ["resnet18", "vgg16"])
def test_a_network_is_as_near_to_the_truth_as_it_was(arch: str) -> None:
    """Gradients in bf16 differ from those in fp32 by rounding, with products not more than without."""
    torch.manual_seed(0)
    model: nn.Module = resolve(MODELS[arch].path)(10, width=0.25).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.randn(module.out_channels) / 10)
    images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def gradients(precision: str, mode: AbstractContextManager[object], expected: int) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), mode:
            loss = F.cross_entropy(model(images), torch.arange(32) % 10)
        assert products(loss) == expected
        torch.autograd.backward(loss)
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    truth = gradients("fp32", nullcontext(), 0)
    plain = gradients("bf16", nullcontext(), 0)
    found = gradients("bf16", SmallMaps(), 4 if arch == "resnet18" else 6)
    assert 0 < (found - truth).norm() < 1.2 * (plain - truth).norm()


def test_what_a_network_computes_in_full_precision_stays_so() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            """Leave the precision aside."""
            with torch.autocast("cpu", enabled=False):
                maps: Tensor = self.conv(images)
            return maps

    with torch.autocast("cpu", torch.bfloat16), SmallMaps():
        maps = Careful()(torch.randn(2, 64, 4, 4))
    assert maps.dtype == torch.float32
