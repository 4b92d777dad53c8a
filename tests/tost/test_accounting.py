"""Accounting: multiply-adds by hand, zeros left out, and operations counted as they run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.tost.nets import thin
from tost.accounting import layers, operations, step_operations
from tost.catalog import MODELS
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
