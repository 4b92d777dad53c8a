"""Accounting: multiply-adds by hand, zeros left out, and operations counted as they run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.tost.nets import small_net, thin
from tost.accounting import layers, operations, step_operations
from tost.catalog import MODELS
from tost.masks import MaskError
from tost.recipe.ghost_skips import GhostSkips
from tost.recipe.soft_activation import SoftActivation


def test_layers_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Flatten(),
        nn.Linear(4 * 16, 10),
    )  # fmt: skip
    mask = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    mask[0] = True
    found = layers(net, (3, 8, 8), {"0.weight": mask})
    assert {n: (layer.size, layer.kept, layer.uses) for n, layer in found.items()} == {
        "0.weight": (108, 27, 16),
        "2.weight": (36, 36, 16),
        "4.weight": (640, 640, 1),
    }
    assert (found["0.weight"].dense_flops, found["0.weight"].sparse_flops) == (2 * 108 * 16, 2 * 27 * 16)


def test_a_layer_used_twice_counts_twice() -> None:
    shared = nn.Conv2d(3, 3, 1)
    assert layers(nn.Sequential(shared, shared, nn.Flatten()), (3, 4, 4))["0.weight"].uses == 32


def test_resnet18_takes_the_known_multiply_adds() -> None:
    found = layers(thin("resnet18", width=1.0, classes=10), (3, 32, 32))
    assert sum(layer.dense_flops for layer in found.values()) == 2 * 555_422_720


def test_products_and_elementwise_results_are_counted() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert operations(lambda: a @ b) == 2 * 3 * 4 * 5
    assert operations(lambda: F.relu(a)) == 12
    assert operations(lambda: (a * 2 + a).view(-1)) == 24


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_training_step_is_about_three_forward_passes(name: str) -> None:
    net = thin(name, 0.5)
    forward = sum(layer.dense_flops for layer in layers(net, (3, 32, 32)).values())
    counted = step_operations(net, F.cross_entropy, (3, 32, 32))
    assert 2.5 * forward < counted < 4 * forward


def test_ghosts_cost_operations_while_they_live() -> None:
    net = thin("resnet20")
    plain = step_operations(net, F.cross_entropy, (3, 16, 16))
    for part, least in (
        (SoftActivation((0.2, 0.6)), 1.0),
        (GhostSkips((0.2, 0.6)), 1.0),
        (GhostSkips((2, 3), "authors"), 1.1),
    ):
        part.attach(net)
        assert step_operations(net, F.cross_entropy, (3, 16, 16)) > least * plain
        part.detach()
        assert step_operations(net, F.cross_entropy, (3, 16, 16)) == plain


def test_counting_changes_nothing() -> None:
    net = thin("resnet20")
    before, state = {n: v.clone() for n, v in net.state_dict().items()}, torch.get_rng_state()
    step_operations(net, F.cross_entropy, (3, 16, 16))
    layers(net, (3, 16, 16))
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


class Functional(nn.Module):
    """Layers whose weights are used through functions, sliced, joined and cast."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 4), nn.Linear(12, 6), nn.Linear(10, 8)
        self.seen = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.seen.weight.clone()).mean((2, 3)).sum(1, keepdim=True)
        joined = F.linear(x.flatten(1)[:, :12], torch.cat([self.a.weight, self.b.weight]))
        out: torch.Tensor = F.linear(joined, self.c.weight[:4]) @ torch.ones(4, 2) + y
        return out + (joined @ self.c.weight.double().to(x.dtype).t())[:, :2]


def test_weights_used_through_functions_are_counted() -> None:
    found = layers(Functional(), (3, 8, 8))
    assert {name: layer.multiply_adds for name, layer in found.items()} == {
        "a.weight": 48,
        "b.weight": 72,
        "c.weight": 40 + 80,
        "seen.weight": 36 * 135,
    }


class Mixed(nn.Module):
    """Every kind of layer that multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 2, 2)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.rows = nn.LSTM(8, 6, batch_first=True)
        self.up, self.line = nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv1d(6, 3, 3, padding=1)
        self.solid = nn.Conv3d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.cut(x).flatten(2).mT
        tokens = self.rows(self.mix(tokens, tokens, tokens, need_weights=False)[0])[0]
        return (
            self.line(tokens.mT).mean((1, 2)) + self.up(x).mean((1, 2, 3)) + self.solid(x[:, None]).mean((1, 2, 3, 4))
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_kind_of_weight_is_counted_in_every_dtype(dtype: torch.dtype) -> None:
    found = layers(Mixed().to(dtype), (3, 8, 8))
    assert {name: layer.multiply_adds for name, layer in found.items()} == {
        "cut.weight": 96 * 16,
        "mix.in_proj_weight": 16 * 3 * 64,
        "mix.out_proj.weight": 16 * 64,
        "rows.weight_ih_l0": 16 * 4 * 6 * 8,
        "rows.weight_hh_l0": 16 * 4 * 6 * 6,
        "up.weight": 64 * 48,
        "line.weight": 16 * 54,
        "solid.weight": 36 * 54,
    }


def test_the_account_agrees_with_torchs_count_of_convolutions_and_linear_layers() -> None:
    torchvision = pytest.importorskip("torchvision")
    net = torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 4], [2, 2], num_classes=5).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    counted = counter.get_flop_counts()["Global"]
    wanted = sum(flops for operation, flops in counted.items() if "bmm" not in str(operation))
    assert sum(layer.dense_flops for layer in layers(net, (3, 32, 32)).values()) == wanted


def test_what_has_no_place_in_memory_is_passed_by() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sparse.mm(torch.eye(4).to_sparse(), self.lin(x.flatten(2)[0].t()))

    assert layers(Graph(), (3, 2, 2))["lin.weight"].multiply_adds == 24


def test_a_network_of_no_weights_has_an_empty_account() -> None:
    assert layers(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 4, 4)) == {}


def test_a_weight_that_is_standardised_by_its_network_is_refused() -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.conv.weight
            return F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True)).flatten(1)

    with pytest.raises(MaskError, match=r"the weight of 'conv' is not multiplied as it is: (mean|sub) comes first"):
        layers(Standardised(), (3, 8, 8))


def test_a_network_on_the_meta_device_is_refused_rather_than_miscounted() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(MaskError, match="the network is on the meta device"):
        layers(net, (4,))


def test_an_account_can_be_taken_in_inference_mode() -> None:
    net, criterion = small_net(), nn.CrossEntropyLoss()
    with torch.inference_mode():
        assert layers(net, (3, 8, 8)) == layers(small_net(), (3, 8, 8))
        counted = step_operations(net, criterion, (3, 8, 8))
    assert counted == step_operations(net, criterion, (3, 8, 8))


def test_a_forward_that_changes_many_tensors_at_once_is_counted() -> None:
    class Many(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scaled = [self.weight.clone()]
            torch._foreach_mul_(scaled, 2.0)
            return F.linear(x, scaled[0], self.bias)

    assert layers(nn.Sequential(Many(4, 3)), (4,))["0.weight"].multiply_adds == 12
