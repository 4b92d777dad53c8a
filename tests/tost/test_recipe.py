"""Recipe parts: each fits every network, leaves a plain one behind, and does what its formula says."""

from __future__ import annotations

import copy
import math
import random
import warnings
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tests.tost.nets import SIZE, small_net, thin
from tost.accounting import ghost_parameters
from tost.catalog import MODELS, PARTS, resolve
from tost.masks.apply import is_ghost
from tost.models.foreign import torchvision_network
from tost.models.resnet import resnet18, resnet20
from tost.recipe import Part
from tost.recipe.ghost_skips import ALPHA, GhostSkips, fitted, skip_sites
from tost.recipe.label_smoothing import LabelSmoothing
from tost.recipe.rescaled_init import RescaledInit
from tost.recipe.soft_activation import Soft, SoftActivation

WINDOW = (0.25, 0.5)
SHAPES = PARTS["gsw"].knobs["shape"].choices
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "gsw": [{"shape": shape} for shape in SHAPES],
    "gsk": [{"variant": "parameter-free"}, {"variant": "sum"}, {"variant": "authors"}],
    "lrsi": [{}],
    "ls": [{}, {"convention": "torch"}],
}
SKIPS = [str(knobs["variant"]) for knobs in VARIANTS["gsk"]]
CASES = [(name, knobs) for name in PARTS for knobs in VARIANTS[name]]


def make(name: str, net: nn.Module, knobs: dict[str, Any], window: tuple[float, float] = WINDOW) -> Part:
    extra: dict[str, Any] = {"window": window} if "window" in PARTS[name].knobs else {}
    if name == "lrsi":
        extra["scales"] = dict.fromkeys(dict(net.named_parameters()), 1.0)
    part: Part = resolve(PARTS[name].path)(**knobs, **extra)
    return part


def test_every_part_has_its_variants_tried_here() -> None:
    assert set(VARIANTS) == set(PARTS)
    assert {v["variant"] for v in VARIANTS["gsk"]} == set(PARTS["gsk"].knobs["variant"].choices)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize(("name", "knobs"), CASES, ids=str)
def test_a_part_stepped_through_its_window_and_detached_leaves_a_plain_network(
    name: str, knobs: dict[str, Any], model: str
) -> None:
    net = thin(model)
    plain, x = copy.deepcopy(net), torch.randn(4, 3, SIZE, SIZE)
    part = make(name, net, knobs)
    part.attach(net)
    assert part.reach is None if name in ("lrsi", "ls") else part.reach and not part.reach.partial
    criterion = part.criterion(F.cross_entropy)
    for progress in (0.0, 0.3, 0.49):
        part.step(progress)
        if progress == 0.0:
            torch.autograd.backward(criterion(net.train()(x), torch.arange(4)))
            assert all(p.grad is not None for n, p in net.named_parameters() if not n.endswith("bias"))
    assert set(net.state_dict()) >= set(plain.state_dict()), "plain keys all along"
    part.step(0.5)
    if not part.stays:
        assert not part.ghosts
    part.step(1.0)
    part.detach()
    assert not part.ghosts
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    fresh = thin(model, seed=5)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), fresh.eval()(x)), "bit-equal to a network freshly built with the same weights"


@pytest.mark.parametrize(("name", "knobs"), CASES, ids=str)
def test_a_parts_state_follows_from_progress_alone(name: str, knobs: dict[str, Any]) -> None:
    walked = thin("resnet20").eval()
    jumped = copy.deepcopy(walked)
    for net, path in ((walked, (0.0, 0.1, 0.3, 0.4)), (jumped, (0.4,))):
        part = make(name, net, knobs)
        part.attach(net)
        for progress in path:
            part.step(progress)
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(walked.eval()(x), jumped.eval()(x))


@pytest.mark.parametrize(("name", "knobs"), [c for c in CASES if c[0] in ("gsw", "gsk")], ids=str)
def test_a_permanent_part_stays_and_says_so(name: str, knobs: dict[str, Any]) -> None:
    net = thin("resnet20")
    part = make(name, net, knobs, (2.0, 3.0))
    part.attach(net)
    part.step(1.0)
    assert part.ghosts
    assert part.stays
    assert (ghost_parameters(net) > 0) == (knobs.get("variant") == "authors")


@pytest.mark.parametrize(("name", "knobs"), CASES, ids=str)
def test_the_catalog_knows_which_settings_keep_ghosts(name: str, knobs: dict[str, Any]) -> None:
    net, entry = thin("resnet20"), PARTS[name]
    assert entry.keeps_ghosts(knobs.items()) == make(name, net, knobs).stays
    if "window" in entry.knobs:
        assert entry.keeps_ghosts({**knobs, "window": "permanent"}.items())
        assert make(name, net, knobs, (2.0, 3.0)).stays


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_choice_that_a_part_does_not_know_is_refused_by_the_part_itself(name: str) -> None:
    net, stage = small_net(), resolve(PARTS[name].stage) if PARTS[name].stage else None

    def give(knob: str, value: object) -> object:
        return stage(net, {}, lambda: None, **{knob: value}) if stage else make(name, net, {knob: value})

    for knob, allowed in ((k, v.choices) for k, v in PARTS[name].knobs.items() if v.choices and k != "window"):
        for value in (str(allowed[-1]).title(), "relu", "", None):
            with pytest.raises(ValueError, match=f"{knob}: {value!r} is not allowed; choose from {allowed[0]}"):
                give(knob, value)


@pytest.mark.parametrize("part", [SoftActivation, GhostSkips])
def test_a_window_of_no_length_closes_at_once_and_one_that_is_none_is_refused(part: type[Any]) -> None:
    net, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    plain, ghosts = net(x), part((0.5, 0.5))
    ghosts.attach(net)
    ghosts.step(0.49)
    assert ghosts.ghosts
    assert not torch.allclose(net(x), plain)
    ghosts.step(0.5)
    assert torch.equal(net(x), plain)
    nothing: list[Any] = [(0.6, 0.5), (-0.1, 0.5), (math.nan, 0.5), (0.5,), (0.1, 0.2, 0.3), ("0", "1"), "early", 0.5]
    for window in nothing:
        with pytest.raises(ValueError, match=r"window: .* is not allowed; give \(T0, T1\) in progress"):
            part(window)
    assert part((0.0, math.inf)).stays


@pytest.mark.parametrize("attach", [SoftActivation(WINDOW), GhostSkips(WINDOW)], ids=lambda p: type(p).__name__)
def test_a_network_that_a_part_cannot_change_is_refused(attach: Part) -> None:
    with pytest.raises(ValueError, match="Sequential has none"):
        attach.attach(nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Tanh()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_parts_fit_torchvisions_networks(name: str) -> None:
    net = torchvision_network(5, 3, name, "small").eval()
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 32, 32)
    for part in (SoftActivation(WINDOW), GhostSkips(WINDOW)):
        functional = name == "densenet121" and isinstance(part, SoftActivation)  # its last ReLU is a call
        with pytest.warns(UserWarning, match="reach 120 of 121 ReLUs") if functional else nullcontext():
            part.attach(net)
        part.step(0.0)
        assert not torch.allclose(net(x), plain(x))
        part.step(0.5)
        assert torch.equal(net(x), plain(x))


# Soft neurons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "gap"), [("swish", 0.27846), ("mish", 0.30884)])
@pytest.mark.parametrize("b", [1.0, 10.0, 100.0])
def test_the_largest_gap_to_relu_is_the_known_one(shape: str, gap: float, b: float) -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    difference = (Soft(shape, torch.tensor(b, dtype=torch.float64))(x) - F.relu(x)).abs().max()
    assert float(difference) == pytest.approx(gap / b, rel=1e-3)


def test_soft_neurons_harden_log_linearly_inside_their_window() -> None:
    part = SoftActivation((0.2, 0.6), b0=1.0, b1=100.0)
    assert [part.strength(p) for p in (0.0, 0.2, 0.4, 0.6)] == pytest.approx([1.0, 1.0, 10.0, 100.0])
    assert math.log(part.strength(0.3)) == pytest.approx(0.25 * math.log(100))


def test_a_blend_goes_linearly_from_mish_to_relu() -> None:
    part, x = SoftActivation((0.2, 0.6), "blend"), torch.linspace(-3, 3, 7)
    assert [part.strength(p) for p in (0.0, 0.4, 0.6)] == pytest.approx([1.0, 0.5, 0.0])
    assert_close(Soft("blend", torch.tensor(0.5))(x), (F.mish(x) + F.relu(x)) / 2)


def test_hard_and_authors_keep_their_strength() -> None:
    for shape in ("hard", "authors"):
        part = SoftActivation((0.2, 0.6), shape, b0=2.0)
        assert [part.strength(p) for p in (0.0, 0.4, 0.59)] == [2.0] * 3
    x = torch.linspace(-3, 3, 7)
    assert_close(Soft("authors", torch.tensor(1.0))(x), F.silu(x))


def test_soft_neurons_replace_every_relu_and_hold_their_strength_as_a_buffer() -> None:
    net = resnet20(10, 1)
    part = SoftActivation((0.2, 0.6))
    part.attach(net)
    sites = [m for m in net.modules() if isinstance(m, Soft)]
    assert len(sites) == 19
    buffers = [site.b for site in sites]
    part.step(0.4)
    assert [float(site.b) for site in sites] == pytest.approx([10.0] * 19)
    assert all(site.b is b for site, b in zip(sites, buffers, strict=True)), "changed in place: nothing recompiles"
    assert all(isinstance(b, Tensor) and not b.requires_grad for b in buffers)


def test_resnet18_has_the_authors_seventeen_sites() -> None:
    net = resnet18(10)
    SoftActivation(WINDOW).attach(net)
    assert sum(isinstance(m, Soft) for m in net.modules()) == 17


def test_in_place_of_relu6_the_soft_curve_is_bounded_too() -> None:
    x = torch.linspace(-10, 20, 1001)
    for b in (10.0, 100.0):
        soft = Soft("swish", torch.tensor(b), clipped=True)(x)
        assert float((soft - F.relu6(x)).abs().max()) <= 0.2785 / b * 1.01


def test_one_activation_under_two_names_is_replaced_under_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ReLU()
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x) - 1)
            return out

    net, x = Shared(), torch.linspace(-2, 2, 9)
    part = SoftActivation(WINDOW)
    part.attach(net)
    assert_close(net(x), F.silu(F.silu(x) - 1))
    part.detach()
    assert net.first is net.second


class Calls(nn.Module):
    """A network with some activations as modules and some as calls."""

    def __init__(self, *activations: Any) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)
        self.others = nn.ModuleList(a for a in activations if isinstance(a, nn.Module))
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv(x))
        for activation in self.activations:
            out = activation(out - 0.1)
        return out


@pytest.mark.parametrize(
    ("calls", "reach"),
    [((F.relu, partial(F.relu, inplace=True)), "1 of 3"), ((torch.relu, Tensor.relu, Tensor.relu_, F.relu6), "1 of 5"),
     ((nn.Hardtanh(0, 6), nn.ReLU()), "1 of 3"), ((torch.tanh, F.gelu, F.hardtanh), "1 of 1")],
)  # fmt: skip
def test_relus_that_are_calls_are_counted_and_told(calls: tuple[Any, ...], reach: str) -> None:
    part, reached = SoftActivation(WINDOW), reach.split()
    told = f"soft neurons reach {reach} ReLUs of Calls: the others are calls of functions"
    with pytest.warns(UserWarning, match=told) if reached[0] != reached[2] else nullcontext():
        part.attach(Calls(*calls))
    assert str(part.reach) == f"{reach} ReLUs"


def test_one_relu_for_every_place_is_soft_at_all_of_them() -> None:
    class One(Calls):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.relu(self.relu(self.relu(self.conv(x)) - 0.1) - 0.1)
            return out

    net = One()
    part, x = SoftActivation(WINDOW), torch.randn(2, 3, 4, 4)
    part.attach(net)
    assert str(part.reach) == "3 of 3 ReLUs"
    assert_close(net(x), F.silu(F.silu(F.silu(net.conv(x)) - 0.1) - 0.1))
    part.step(0.5)
    assert_close(net(x), F.relu(F.relu(F.relu(net.conv(x)) - 0.1) - 0.1))


def test_a_network_whose_relu_modules_are_never_used_is_refused() -> None:
    net = Calls(F.relu)
    net.forward = lambda x: F.relu(net.conv(x))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="soft neurons reach 0 of 1 ReLUs of Calls"):
        SoftActivation(WINDOW).attach(net)
    assert type(net.relu) is nn.ReLU


# Ghost skips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["parameter-free", "sum"])
def test_a_ghost_skip_by_hand(variant: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()
    ).eval()
    x = torch.randn(3, 2, 8, 8)
    part = GhostSkips((0.2, 0.6), variant, shape=(2, 8, 8))
    part.attach(net)
    part.step(0.5)
    h = F.relu(net[0](x))
    skip = F.pad(F.avg_pool2d(h, 2), (0, 0, 0, 0, 0, 2))
    normed = F.batch_norm(F.conv2d(h, net[2].weight, None, 2, 1), torch.zeros(6), torch.ones(6))  # type: ignore[arg-type]
    if variant == "parameter-free":
        flat = skip.flatten(1)
        scaled = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        skip = scaled.view_as(skip)
    assert_close(net(x), F.relu(normed + 0.25 * skip))


@pytest.mark.parametrize(
    ("inputs", "stride", "outputs"),
    [((4, 8, 8), 1, (4, 8, 8)), ((4, 8, 8), 2, (6, 4, 4)), ((4, 7, 7), 2, (2, 4, 4)), ((4, 1, 1), 2, (4, 1, 1)),
     ((3, 9, 9), 1, (3, 7, 7)), ((3, 4, 4), 1, (3, 6, 6))],
)  # fmt: skip
def test_the_skip_fits_any_shape(inputs: tuple[int, ...], stride: int, outputs: tuple[int, ...]) -> None:
    out = fitted(torch.ones(2, *inputs), (stride, stride), outputs)
    assert out.shape == (2, *outputs)
    assert float(out.max()) == 1.0


def test_sites_are_all_convolutions_but_the_stem_and_shortcuts() -> None:
    names = [site.name for site in skip_sites(resnet18(10))]
    assert len(names) == 16
    assert "conv1" not in names
    assert not any("downsample" in name for name in names)
    assert len(skip_sites(thin("resnet104"))) == 3 * 51
    assert len(skip_sites(thin("mobilenet"))) == 26


def test_the_batch_norm_of_a_site_is_the_one_that_takes_its_output_not_the_one_registered_next() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            out: Tensor = self.norm(h + self.conv(h))
            return out

    (site,) = skip_sites(PreActivation())
    assert (site.name, site.norm) == ("conv", "")


BEHIND: dict[str, tuple[list[nn.Module], str]] = {
    "batch norm": ([nn.BatchNorm2d(4)], "4"),
    "relu, batch norm": ([nn.ReLU(), nn.BatchNorm2d(4)], ""),
    "relu in place, batch norm": ([nn.ReLU(inplace=True), nn.BatchNorm2d(4)], ""),
    "dropout in place, batch norm": ([nn.Dropout(0.0, inplace=True), nn.ReLU(), nn.BatchNorm2d(4)], ""),
    "nothing": ([], ""),
}


@pytest.mark.parametrize("variant", SKIPS)
@pytest.mark.parametrize("behind", BEHIND)
def test_a_skip_takes_the_batch_norm_that_follows_and_carries_nothing_from_batch_to_batch(
    behind: str, variant: str
) -> None:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4)]  # its input is freed: addresses come again
    modules, norm = BEHIND[behind]
    net = nn.Sequential(*first, nn.Conv2d(4, 4, 3, padding=1), *copy.deepcopy(modules), nn.Softplus())
    assert [(site.name, site.norm) for site in skip_sites(net, (3, 8, 8))] == [("3", norm)]
    part, x = GhostSkips(WINDOW, variant, (3, 8, 8)), torch.randn(4, 3, 8, 8)
    part.attach(net)
    part.step(0.0)
    for _ in range(2):
        net(x).sum().backward()
    net.eval()
    with torch.no_grad():
        alone = net(x)
        net(-x)
        assert torch.equal(net(x), alone)
        net[int(norm or 3)](torch.randn(4, 4, 8, 8))  # the module by itself
        assert torch.equal(net(x), alone)


class Twice(nn.Module):
    """A convolution used twice, and what was given to it and came out of it and its batch norms."""

    def __init__(self, norms: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv, self.norms = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), norms
        self.first = nn.Sequential() if norms == "none" else nn.BatchNorm2d(4)
        self.second = self.first if norms in ("shared", "late") else nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if self.norms == "late":  # both are made before the first is taken
            a, b = self.conv(h), self.conv(-h)
            self.seen = [(h, self.first(a)), (-h, self.first(b))]
        else:
            a = self.first(self.conv(h))
            self.seen = [(h, a), (a, self.second(self.conv(a)))]
        out: Tensor = self.seen[1][1].mean((2, 3))
        return out


@pytest.mark.parametrize(
    ("norms", "place"), [("none", ""), ("shared", "first"), ("each its own", ""), ("late", ""), ("one", "")]
)
def test_a_convolution_used_twice_gets_its_skip_once_at_each_use(norms: str, place: str) -> None:
    net = Twice(norms).eval()
    assert [(site.name, site.norm) for site in skip_sites(net)] == [("conv", place)]
    part, x = GhostSkips(WINDOW, "sum", (3, 8, 8)), torch.randn(2, 3, 8, 8)
    part.attach(net)
    part.step(0.0)
    assert str(part.reach) == "2 of 2 convolutions beyond the first"
    net(x)
    for given, out in net.seen:
        norm = net.second if given is net.seen[1][0] else net.first
        made = F.conv2d(given, net.conv.weight, net.conv.bias)
        assert_close(out, norm(made) + given if place else norm(made + given))


class Float(nn.Module):
    """A cast that does nothing without autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class StochasticDepth(nn.Module):
    """Passes on what it gets in eval mode, scaled in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


BETWEEN: dict[str, tuple[nn.Module, str]] = {
    "dropout": (nn.Dropout2d(0.1), ""),
    "stochastic depth": (StochasticDepth(), ""),
    "cast": (Float(), "3"),
    "nothing": (nn.Identity(), "3"),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("between", BETWEEN)
def test_a_skip_is_added_in_training_too_whatever_stands_before_the_batch_norm(between: str, autocast: bool) -> None:
    torch.manual_seed(0)
    module, place = BETWEEN[between]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), module, nn.BatchNorm2d(4), nn.Flatten())
    x = torch.randn(4, 3, 8, 8)
    assert [(site.name, site.norm) for site in skip_sites(net)] == [("1", place)]
    ghosted, part = copy.deepcopy(net), GhostSkips(WINDOW, "sum")
    part.attach(ghosted)
    part.step(0.0)
    ghosted = copy.deepcopy(ghosted)  # hooks and all
    for training in (True, False):
        net.train(training), ghosted.train(training)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            h = net[0](x)
            torch.manual_seed(1)
            made = net[2](net[1](h) if place else net[1](h) + h)
            expected = net[3](made) + (h.to(made.dtype) if place else 0)
            torch.manual_seed(1)
            found = ghosted(x)
        assert_close(found.float(), expected.flatten(1).float(), rtol=0.02, atol=0.02)


class Fickle(nn.Module):
    """A network that changes its mind after a part was attached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.now: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        out: Tensor = self.now(self, h) if self.now else self.norm(self.conv(h)) + self.norm(self.other(h))
        return out


def doubled(net: Fickle, h: Tensor) -> Any:
    return net.norm(2 * net.conv(h))


def alone(net: Fickle, h: Tensor) -> Any:
    return net.conv(h)


def two_casts(net: Fickle, h: Tensor) -> Any:
    made = net.conv(h), net.other(h)  # nothing tells which one a cast was made of
    return net.norm(made[0].bfloat16()) + net.norm(made[1].bfloat16())


@pytest.mark.parametrize("now", [doubled, alone, two_casts])
def test_a_skip_that_would_be_lost_is_told_and_what_broke_off_is_forgotten(now: Any) -> None:
    def broken(net: Fickle, h: Tensor) -> Any:
        raise MemoryError(net.conv(h).shape)

    net, part, x = Fickle().eval(), GhostSkips(WINDOW), torch.randn(2, 3, 4, 4)
    part.attach(net)
    right = net(x)
    for each, said in ((broken, "Size"), (now, "norm did not take the output of conv as it was")):
        net.now = each
        with pytest.raises((MemoryError, ValueError), match=said):
            net(x)
        net.now = None
        assert torch.equal(net(x), right)
    net.now = now
    part.detach()
    assert net(x).shape == right.shape


class Own(Calls):
    """A network whose forward takes something else than an image, after it has drawn a random number."""

    def forward(self, x: Any) -> Tensor:
        torch.rand(1), random.random()
        out: Tensor = super().forward(x.tensors)
        return out


@pytest.mark.parametrize("warn", ["error", "ignore"])
def test_attaching_draws_nothing_and_leaves_a_network_that_is_refused_as_it_was(warn: Any) -> None:
    net, own = Calls(F.relu), Own()
    streams = torch.get_rng_state(), random.getstate()
    with pytest.raises(ValueError, match="ghost skips: Own cannot take an image"):
        GhostSkips(WINDOW).attach(own)
    assert not any(module._forward_hooks for module in own.modules())
    part = SoftActivation(WINDOW)
    part.attach(own)
    assert part.reach is None
    part.detach()
    assert type(own.relu) is nn.ReLU
    with warnings.catch_warnings(action=warn), pytest.raises(UserWarning) if warn == "error" else nullcontext():
        part.attach(net)
    assert type(net.relu) is (nn.ReLU if warn == "error" else Soft)
    assert part.ghosts == (warn == "ignore")
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]


@pytest.mark.parametrize(("name", "knobs"), [c for c in CASES if c[0] in ("gsw", "gsk")], ids=str)
def test_parts_are_attached_in_inference_mode_as_outside_of_it(name: str, knobs: dict[str, Any]) -> None:
    net = small_net()
    outside, part = copy.deepcopy(net), make(name, net, knobs)
    with torch.inference_mode():
        part.attach(net)
    same = make(name, outside, knobs)
    same.attach(outside)
    assert part.reach == same.reach
    part.step(0.4), same.step(0.4)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net(x), outside(x))
    net(x).sum().backward()


def test_parts_change_a_compiled_network_that_has_already_run() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    plain, given = compiled(x), (compiled, net, compiled, net)
    for model, part in zip(
        given, (*(GhostSkips(WINDOW, variant) for variant in SKIPS), SoftActivation(WINDOW)), strict=True
    ):
        part.attach(model)
        part.step(0.0)
        assert_close(compiled(x), net(x))
        assert not torch.allclose(compiled(x), plain)
        part.step(0.5)
        part.detach()
        assert_close(compiled(x), plain)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "knobs"), [c for c in CASES if c[0] in ("gsw", "gsk")], ids=str)
def test_parts_work_in_the_networks_own_precision(name: str, knobs: dict[str, Any], dtype: torch.dtype) -> None:
    net, x = small_net().to(dtype), torch.randn(4, 3, 8, 8, dtype=dtype)
    part = make(name, net, knobs)
    part.attach(net)
    part.step(0.0)
    assert part.reach is not None
    out = net(x)
    out.sum().backward()
    assert out.dtype == dtype
    assert all(p.dtype == dtype and p.grad is not None for p in net.parameters())


def test_convolutions_that_are_calls_are_counted_and_told() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.weight = nn.Parameter(torch.ones(4, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = F.conv2d(self.conv(self.stem(x)), self.weight)
            return F.conv_transpose2d(out, self.weight)

    part = GhostSkips(WINDOW)
    with pytest.warns(UserWarning, match="ghost skips reach 1 of 2 convolutions beyond the first of Called"):
        part.attach(Called())


def test_the_authors_branches_are_the_measured_size_and_begin_as_theirs() -> None:
    net = resnet18(100)
    GhostSkips(WINDOW, "authors").attach(net)
    branches = {n: p for n, p in net.named_parameters() if is_ghost(n)}
    assert sum(p.numel() for n, p in branches.items() if p.ndim == 4) == 1_220_608
    assert all(bool((p == 1e-4).all()) for p in branches.values() if p.ndim == 4)


def test_the_authors_form_is_refused_where_its_branch_gives_another_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="another map than 1"):
        GhostSkips(WINDOW, "authors").attach(net)
    assert not dict(net.named_buffers())


def test_alpha_is_a_buffer_that_fades_in_place_and_a_copy_has_its_own() -> None:
    net = thin("resnet20")
    part = GhostSkips((0.2, 0.6))
    part.attach(net)
    alpha = net.get_buffer(ALPHA)
    part.step(0.3)
    assert net.get_buffer(ALPHA) is alpha
    assert float(alpha) == pytest.approx(0.75)
    twin, x = copy.deepcopy(net).eval(), torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(twin(x), net.eval()(x))
    part.step(0.5)
    assert float(twin.get_buffer(ALPHA)) == pytest.approx(0.75)
    assert ALPHA not in net.state_dict()


# Label smoothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "converted"), [(10, 0.111111), (100, 0.101010), (200, 0.100503)])
def test_label_smoothing_is_the_authors_and_equals_torchs_with_the_converted_constant(
    classes: int, converted: float
) -> None:
    logits, labels = torch.randn(32, classes).double(), torch.randint(classes, (32,))
    targets = torch.full((32, classes), 0.1 / (classes - 1)).double()
    targets[torch.arange(32), labels] = 0.9
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    smoothed = LabelSmoothing(0.1).criterion(F.cross_entropy)(logits, labels)
    assert_close(smoothed, by_hand)
    assert_close(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.1 * classes / (classes - 1)))
    assert 0.1 * classes / (classes - 1) == pytest.approx(converted, abs=1e-6)
    torchs = LabelSmoothing(0.1, "torch").criterion(F.cross_entropy)(logits, labels)
    assert_close(torchs, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_too_much_smoothing_for_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for 2 classes"):
        LabelSmoothing(0.8).criterion(F.cross_entropy)(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_smoothing_keeps_what_the_loss_was_told(reduction: str) -> None:
    weight, classes = torch.tensor([1.0, 9.0, 1.0, 2.0, 1.0], dtype=torch.float64), 5
    logits, labels = torch.randn(6, classes).double(), torch.tensor([0, 1, 4, 2, 1, 3])
    told: dict[str, Any] = {"weight": weight, "ignore_index": 4, "reduction": reduction}
    counted = labels != 4
    targets = torch.full((6, classes), 0.1 / 4).double()
    targets[torch.arange(6), labels] = 0.9
    each = -(targets * weight * logits.log_softmax(1)).sum(1) * counted
    by_hand = {"none": each, "sum": each.sum(), "mean": each.sum() / (weight[labels] * counted).sum()}[reduction]
    for loss in (nn.CrossEntropyLoss(**told), partial(F.cross_entropy, **told)):
        assert_close(LabelSmoothing(0.1).criterion(loss)(logits, labels), by_hand)
        assert LabelSmoothing(0.0).criterion(loss) is loss


def test_a_loss_that_cannot_be_smoothed_is_refused_and_not_dropped() -> None:
    class Own(nn.CrossEntropyLoss):
        pass

    for loss in (nn.MSELoss(), Own(), F.mse_loss, LabelSmoothing(0.1).criterion(F.cross_entropy)):
        with pytest.raises(ValueError, match=r"cannot soften the targets of .*; give it cross-entropy"):
            LabelSmoothing(0.1).criterion(loss)
        assert LabelSmoothing(0.0).criterion(loss) is loss
    with pytest.raises(ValueError, match="smooths its labels already"):
        LabelSmoothing(0.1).criterion(nn.CrossEntropyLoss(label_smoothing=0.1))
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha: .* lies outside 0 \.\. 1"):
            LabelSmoothing(alpha)


def test_scales_that_fit_no_parameter_are_refused() -> None:
    with pytest.raises(ValueError, match="scale 'x' belongs to no parameter"):
        RescaledInit({"x": 2.0}).attach(resnet20(10))


def test_parameter_free_skips_keep_the_size_of_activations_where_plain_sums_blow_up() -> None:
    spread = {}
    for variant in ("none", "parameter-free", "sum"):
        net = thin("resnet56").train()
        if variant != "none":
            part = GhostSkips(WINDOW, variant)
            part.attach(net)
            part.step(0.0)
        spread[variant] = net(torch.randn(8, 3, SIZE, SIZE)).std().item()
    assert spread["sum"] > 100 * spread["none"]
    assert spread["parameter-free"] < 3 * spread["none"]


def test_a_change_of_strength_recompiles_nothing() -> None:
    net = thin("resnet20")
    parts: list[Part] = [SoftActivation((0.2, 0.6)), GhostSkips((0.2, 0.6))]
    for part in parts:
        part.attach(net)
    compiled, x = torch.compile(net, backend="eager", fullgraph=True), torch.randn(4, 3, SIZE, SIZE)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for progress in (0.1, 0.3, 0.4, 0.5):
            for part in parts:
                part.step(progress)
            assert torch.equal(compiled(x), net(x))
    torch._dynamo.reset()
