"""Choices of the machine: they may change a number's last bits and its speed, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.catalog import OPTIMIZERS
from harness.errors import UserError
from harness.protocol import Protocol
from harness.train.convolution_check import AVOIDED, RELIED, Convolution, wrong
from harness.train.execution import set_execution
from harness.train.layout import FEWEST, LAYOUTS, Convolutions, fitting, like, unsafe_last, usual
from harness.train.network import build, open_images
from harness.train.optimizers import fusible
from harness.train.order import Order
from harness.train.remembered import remembered
from harness.train.run import Training, take_step
from harness.train.training import prepare
from tests.harness.test_training import orders  # noqa: F401 - a fixture
from tost.catalog import MODELS, PARTS, asked_for, resolve, settings
from tost.masks import prunable
from tost.masks.apply import Pruned

LAST = torch.channels_last
PLAIN = torch.contiguous_format
Orders = Callable[..., dict[str, Order]]
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


class Call(nn.Module):
    """A network around one convolution of images of `channels`, called as a function."""

    def __init__(self, channels: int, called: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.called = nn.Conv2d(SHAPE[0], channels, 3), called

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of what the convolution makes."""
        return self.called(self.stem(images)).flatten(1)


def by(channels: int, out: int = 4, groups: int = 1, **how: Any) -> nn.Module:
    """Return a network with a convolution as a module."""
    kernel = how.pop("kernel", 1)
    made = nn.Conv2d(channels, out, kernel, groups=groups, **how)
    net = Call(channels, made)
    net.add_module("made", made)
    return net


class Rare(nn.Module):
    """A network with a convolution that a forward pass may leave out, as stochastic depth does."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.rarely = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Leave it out."""
        return self.often(images).flatten(1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.memory_format]] = {
    "resnet20": (lambda: resolve(MODELS["resnet20"].path)(10, 3), LAST),
    "resnet20 of half the width": (lambda: resolve(MODELS["resnet20"].path)(10, 3, 0.5), PLAIN),
    "resnet20 of a quarter": (lambda: resolve(MODELS["resnet20"].path)(10, 3, 0.25), PLAIN),
    "resnet18 of a quarter": (lambda: resolve(MODELS["resnet18"].path)(10, 3, 0.25), LAST),
    "vgg16 of an eighth": (lambda: resolve(MODELS["vgg16"].path)(10, 3, 0.125), LAST),
    "1x1, stride 2, one channel less": (lambda: by(FEWEST - 1, stride=2), PLAIN),
    "1x1, stride 2, as many as are wanted": (lambda: by(FEWEST, stride=2), LAST),
    "1x1, stride 3": (lambda: by(4, stride=3), PLAIN),
    "1x1, strided one way": (lambda: by(4, stride=(1, 2)), PLAIN),
    "1x1, padded": (lambda: by(4, stride=2, padding=1), PLAIN),
    "1x1, stride 1": (lambda: by(4), LAST),
    "3x3, stride 2": (lambda: by(4, stride=2, kernel=3), LAST),
    "3x1, stride 2": (lambda: by(4, stride=2, kernel=(3, 1)), LAST),
    "1x1, stride 2, few in each group": (lambda: by(64, 64, groups=8, stride=2), PLAIN),
    "1x1, stride 2, enough in each group": (lambda: by(64, 64, groups=4, stride=2), LAST),
    "1x1, stride 2, depthwise": (lambda: by(32, 32, groups=32, stride=2), PLAIN),
    "3x3, stride 2, depthwise": (lambda: by(32, 32, groups=32, stride=2, kernel=3), LAST),
    "a function": (lambda: Call(4, lambda x: F.conv2d(x, torch.ones(8, 4, 1, 1), stride=2)), PLAIN),
    "a function of stride 1": (lambda: Call(4, lambda x: F.conv2d(x, torch.ones(8, 4, 1, 1))), LAST),
    "transposed": (lambda: Call(32, lambda x: F.conv_transpose2d(x, torch.ones(32, 4, 1, 1), stride=2)), PLAIN),
    "transposed, enough": (lambda: Call(4, lambda x: F.conv_transpose2d(x, torch.ones(4, 32, 1, 1), stride=2)), LAST),
    "of one dimension": (lambda: Call(4, lambda x: F.conv1d(x.flatten(2), torch.ones(8, 4, 1), stride=2)), PLAIN),
    "left out of a pass": (Rare, PLAIN),
}
"""Networks, and how their images may lie on a CPU."""


@pytest.mark.parametrize("name", list(NETWORKS))
def test_no_network_lies_channels_last_that_oneDNN_would_compute_wrongly(name: str) -> None:
    make, expected = NETWORKS[name]
    assert fitting(make(), LAST, SHAPE) == expected
    assert fitting(make(), PLAIN, SHAPE) == PLAIN


@pytest.mark.parametrize(
    ("arch", "variant", "expected"),
    [
        ("resnet20", "authors", LAST),
        ("resnet20", "parameter-free", LAST),
        ("vgg16", "authors", LAST),
        ("thin", "authors", PLAIN),
        ("thin", "parameter-free", LAST),
    ],
)
def test_convolutions_of_a_recipe_count_as_the_network_s_own(
    arch: str, variant: str, expected: torch.memory_format
) -> None:
    if arch == "thin":  # 3x3 convolutions alone; the skip around the second is a 1x1 one with its stride
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1))
    else:
        model = resolve(MODELS[arch].path)(10, 3)
    resolve(PARTS["gsk"].path)((0.0, 0.5), variant, SHAPE).attach(model)
    assert fitting(model, LAST, SHAPE) == expected


class Watched(TorchDispatchMode):  # type: ignore[misc]
    """Refuses the calls that must not be made, forwards and backwards, before they are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at an operation, then run it."""
        aten = torch.ops.aten
        if func in (aten.convolution.default, aten.convolution_backward.default):
            at = args if func is aten.convolution.default else (*args[1:3], None, args[4])
            if unsafe_last(at[1], at[3]):
                self.seen += func is aten.convolution_backward.default
                lying = [tensor.stride() for tensor in args[:3] if isinstance(tensor, Tensor)]
                for tensor in args[:3]:
                    assert tensor is None or tensor.to(memory_format=LAST) is not tensor, lying
        return func(*args, **(kwargs or {}))


def steps(run: Training, count: int = 3) -> dict[str, Tensor]:
    """Take steps with no unsafe call in any; return the weights."""
    run.model.train()
    batches = run.images.epoch(run.seed, 0, run.batch, 0)
    with Watched() as watched:
        for _, images, labels in [next(batches) for _ in range(count)]:
            take_step(run, run.whole_criterion(), images, labels, len(labels))
            run.position.step += 1
        run.model.eval()
        run.logits(images)
    assert watched.seen
    return run.model.state_dict()


@pytest.mark.parametrize(
    ("arch", "recipe", "extra"),
    [
        ("{resnet20: {width: 0.25}}", "default", ""),
        ("{resnet20: {width: 0.25}}", "{gsk: {variant: authors}}", ", precision: bf16"),
    ],
)
def test_a_thin_network_trains_to_the_same_bits_twice(
    arch: str,
    recipe: str,
    extra: str,
    orders: Orders,  # noqa: F811
) -> None:
    order = orders(extra, recipe, "random", arch=arch)["train"]
    runs = [prepare(order) for _ in range(2)]
    assert [LAYOUTS[run.layout] for run in runs] == ["nchw", "nchw"]
    one, two = map(steps, runs)
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name


def test_a_network_that_must_not_lie_channels_last_is_not_compiled_on_a_cpu(orders: Orders) -> None:  # noqa: F811
    """torch's compiler would lay its convolutions channels last."""
    order = replace(orders()["train"], execution="compiled")
    run = prepare(order)
    for layout, expected in ((PLAIN, "eager"), (LAST, "compiled")):
        run.layout = layout
        set_execution(order, run)
        assert run.execution == expected


OWN = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.stem, self.short = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, classes, 1, 2)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.short(self.stem(x)FORCED).mean((2, 3))


def build(classes, channels):
    return Own(classes, channels)
"""


def test_a_network_that_lays_its_own_tensors_channels_last_is_told_so(
    orders: Orders,  # noqa: F811
    project: Path,
) -> None:
    """Weights laid so are laid anew; what its forward pass lays so cannot be, in a score as in a training."""
    (project / "thin.py").write_text(OWN.replace("FORCED", ""))
    order = orders()["train"]
    model = build(order, open_images(order))
    assert all(weight.to(memory_format=LAST) is not weight for weight in model.parameters() if weight.dim() == 4)
    assert prepare(order).layout == PLAIN
    (project / "thin.py").write_text(OWN.replace("FORCED", ".contiguous(memory_format=torch.channels_last)"))
    with pytest.raises(UserError, match=r"8 to 10 channels, stride \[2, 2\].*call .contiguous\(\) on its input"):
        orders()


@pytest.mark.parametrize(
    ("images", "laid_last"),
    [
        (torch.zeros(2, 4, 8, 8), False),
        (torch.zeros(2, 8, 8, 4).permute(0, 3, 1, 2), True),
        (torch.zeros(2, 1, 8, 8), False),
        (torch.zeros(2, 8, 4).permute(0, 2, 1), True),
        (torch.zeros(2, 4, 8), False),
    ],
)
def test_how_images_lie_is_seen_at_every_call(images: Tensor, laid_last: bool) -> None:
    kernel = torch.zeros(4, images.shape[1], *[1] * (images.dim() - 2))
    with Convolutions() as seen:
        (F.conv2d if images.dim() == 4 else F.conv1d)(images, kernel, stride=2)
    assert (seen.unsafe, bool(seen.laid_last)) == (True, laid_last)


def test_this_machine_computes_what_trainings_rely_on() -> None:
    assert not list(wrong(RELIED, 1))
    torch.set_num_threads(1)


@pytest.mark.parametrize("damage", [1.01, math.nan])
@pytest.mark.parametrize("at", ["output", "gradient of the input", "gradient of the weights"])
def test_a_wrong_convolution_is_named(at: str, damage: float) -> None:
    """Each kind, by its output or a gradient that is off by one per cent, or not a number."""

    def damaged(images: Tensor, weight: Tensor, **how: int) -> Tensor:
        if images.dtype == torch.bfloat16:
            return F.conv2d(images, weight, **how)
        images, weight = images * 1, weight * 1
        if at != "output":
            (images if at == "gradient of the input" else weight).register_hook(lambda gradient: gradient * damage)
        return F.conv2d(images, weight, **how) * (damage if at == "output" else 1)

    found = list(wrong(RELIED, 1, damaged))
    assert len(found) == sum(convolution.dtype == torch.float32 for convolution in RELIED)
    assert all(f"{at} wrong by {'nan' if damage != damage else 1} %" in said for said in found)
    assert found[0].startswith("3x3 with stride 1, 3 to 16 channels, maps of 32x32, channels last, fp32, 1 thread: ")


def test_what_is_relied_on_and_what_is_avoided_go_by_the_rule() -> None:
    def unsafe(convolution: Convolution) -> bool:
        shape = (convolution.outputs, convolution.inputs // convolution.groups, *[convolution.kernel] * 2)
        return convolution.layout == LAST and unsafe_last(torch.zeros(shape), [convolution.stride] * 2)

    assert all(map(unsafe, AVOIDED))
    assert not any(map(unsafe, RELIED))


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
