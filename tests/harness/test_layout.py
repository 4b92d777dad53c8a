"""Choices of the machine: they may change a number's last bits and its speed, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.catalog import OPTIMIZERS
from harness.protocol import Protocol
from harness.train.layout import fitting, like, usual
from harness.train.optimizers import fusible
from harness.train.remembered import remembered
from tost.catalog import MODELS, PARTS, asked_for, resolve, settings
from tost.masks import prunable
from tost.masks.apply import Pruned

LAST = torch.channels_last
SHAPE = (3, 16, 16)
RECIPE = ("gsw", "gsk")


def trained(model: nn.Module, layout: torch.memory_format, steps: int = 2) -> dict[str, Tensor]:
    """Return the weights after some steps on noise, in float64."""
    model = copy.deepcopy(model).double().to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images = torch.randn(4, *SHAPE, generator=draws, dtype=torch.float64).contiguous(memory_format=layout)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()
    return {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("ghosts", [False, True], ids=["plain", "ghosts"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet104"])
def test_every_network_computes_the_same_in_both_layouts(name: str, ghosts: bool) -> None:
    torch.manual_seed(0)
    knobs = {"width": 0.25} if "width" in settings(MODELS[name], {}) else {}
    model = resolve(MODELS[name].path)(10, **knobs)
    for part in RECIPE if ghosts else ():
        make, knobs = resolve(PARTS[part].path), {**settings(PARTS[part], {}), "window": (0.0, 0.5)}
        made = make(**{**asked_for(make, {"shape": SHAPE}), **knobs})
        made.attach(model)
        made.step(0.0)
    plain, laid = (trained(model, layout) for layout in (torch.contiguous_format, LAST))
    assert plain.keys() == laid.keys()
    for key, weight in plain.items():
        torch.testing.assert_close(weight, laid[key], rtol=1e-5, atol=1e-8, msg=lambda said, key=key: f"{key}: {said}")


class Flat(nn.Module):
    """A network as many are written: `view` wants its input contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.linear = nn.Linear(8 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(self.conv(images).view(len(images), -1))
        return logits


def test_a_network_that_cannot_take_the_layout_keeps_the_plain_one() -> None:
    assert fitting(Flat(), LAST, SHAPE) == torch.contiguous_format
    with pytest.raises(RuntimeError, match="view"):
        trained(Flat(), LAST)
    deep = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Unflatten(1, (1, 4)), nn.Conv3d(1, 1, 3), nn.Flatten(), nn.LazyLinear(10)
    )
    deep(torch.zeros(2, *SHAPE))
    random = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 3), nn.Flatten())
    drawn = torch.get_rng_state()
    assert fitting(deep, LAST, SHAPE) == torch.contiguous_format, "weights of five dimensions have no such layout"
    assert fitting(random, LAST, SHAPE) == LAST
    assert torch.equal(drawn, torch.get_rng_state()), "a look at a network draws nothing from the training's stream"


def test_a_device_that_fails_says_nothing_of_a_network() -> None:
    class Starved(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.conv, self.error = nn.Conv2d(3, 4, 3), error

        def forward(self, images: Tensor) -> Tensor:
            """Fail."""
            raise self.error

    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")):
        with pytest.raises(RuntimeError, match="memory"):
            fitting(Starved(error), LAST, SHAPE)
    assert fitting(Starved(RuntimeError("view size")), LAST, SHAPE) == torch.contiguous_format


def test_layouts_go_by_rule() -> None:
    """On tensor cores and on CPUs the channels lie last; a rule, so that a resumed training finds the same one."""
    assert usual(torch.device("cpu"), "fp32") == usual(torch.device("cpu"), "bf16") == LAST
    assert usual(torch.device("cuda"), "bf16") == LAST
    assert usual(torch.device("cuda"), "fp32") == usual(torch.device("mps"), "fp32") == torch.contiguous_format


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_one_kernel_for_all_weights_computes_what_one_for_each_does(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 10)).double()
    outcomes = []
    for fused in (True, False):
        net = copy.deepcopy(model)
        optimizer = resolve(OPTIMIZERS[name].path)(net.parameters(), Protocol(optimizer=name))
        assert optimizer.defaults["fused"]
        for group in optimizer.param_groups:
            group["fused"] = fused
        draws = torch.Generator().manual_seed(0)
        for _ in range(5):
            optimizer.zero_grad()
            images = torch.randn(4, *SHAPE, generator=draws, dtype=torch.float64)
            F.cross_entropy(net(images), torch.arange(4)).backward()
            optimizer.step()
        outcomes.append(net.state_dict())
    for key, weight in outcomes[0].items():
        torch.testing.assert_close(weight, outcomes[1][key], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_weight_may_have_its_first_gradient_late(name: str) -> None:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = resolve(OPTIMIZERS[name].path)(weights, Protocol(optimizer=name))
    for used in (weights[:1], weights, weights[:1]):
        optimizer.zero_grad()
        sum(weight.sum() for weight in used).backward()  # type: ignore[union-attr] # none of the sums is empty
        optimizer.step()
    assert not torch.equal(weights[1], torch.ones(3))


def test_weights_of_whole_numbers_are_updated_one_by_one() -> None:
    assert fusible([torch.zeros(2)])
    assert not fusible([torch.zeros(2), torch.zeros(2, dtype=torch.int64)])
    assert not fusible([torch.zeros(2, device="meta")])


def test_the_state_of_an_optimizer_lies_as_its_weights_do() -> None:
    """A fused kernel walks both by address: laid out otherwise, values would be paired wrongly."""
    weight = torch.randn(4, 3, 3, 3).to(memory_format=LAST)
    state = torch.arange(108.0).view(4, 3, 3, 3)
    laid = like(state, weight)
    assert laid.stride() == weight.stride() != state.stride()
    assert torch.equal(laid, state)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["nchw", "channels_last"])
def test_pruned_weights_are_cleared_all_at_once_wherever_they_lie(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5, 3).double())
    model.to(memory_format=layout)
    weights = prunable(model)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    strides = {name: weight.stride() for name, weight in weights.items()}
    masks = {name: torch.rand_like(weight) < 0.5 for name, weight in weights.items()}

    def held() -> bool:
        return all(torch.equal(weights[name], before[name].where(mask, 0)) for name, mask in masks.items())

    positions = Pruned(model, masks)
    assert {name: weight.stride() for name, weight in weights.items()} == strides
    assert all(torch.equal(weights[name], before[name]) for name in weights), "moved, and else as they were"
    positions.clear()
    assert held()
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) == 2, "one for each dtype"
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(before[name]).masked_fill_(~masks[name], math.inf)
    positions.clear()
    assert held(), "an overflow is no longer there"
    for weight in weights.values():  # what a module of a user's, or load_state_dict(assign=True), may do
        weight.data = weight.data.clone().contiguous() + 1
    for name, weight in weights.items():
        before[name] = weight.detach().clone()
    positions.clear()
    assert held(), "weights that were moved are found again"
    masks = {name: ~mask for name, mask in masks.items()}
    for name, weight in weights.items():
        before[name] = weight.detach().clone()
    positions.wear(masks)
    positions.clear()
    assert held()


def test_what_was_found_out_is_not_found_out_again() -> None:
    asked: list[int] = []

    def find(number: int) -> Callable[[], int]:
        return lambda: asked.append(number) or number

    assert [remembered("test", [1, "a"], find(1)), remembered("test", [1, "a"], find(2))] == [1, 1]
    assert remembered("test", [2, "a"], find(3)) == remembered("other", [1, "a"], find(3)) == 3
    assert asked == [1, 3, 3]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            remembered("test", ["raises"], lambda: 1 // 0)
