"""Recipe parts: each leaves a plain network behind, and does what its formula says."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tost.catalog import PARTS, resolve
from tost.models.resnet import resnet20
from tost.recipe import Part
from tost.recipe.label_smoothing import LabelSmoothing
from tost.recipe.soft_activation import Soft, SoftActivation


def make(name: str) -> Part:
    extra: dict[str, Any] = {"window": (0.25, 0.5)} if "window" in PARTS[name].knobs else {}
    part: Part = resolve(PARTS[name].path)(**extra)
    return part


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_attached_stepped_and_past_its_window_leaves_a_plain_network(name: str) -> None:
    plain = resnet20(10, 1).eval()
    net = copy.deepcopy(plain)
    part = make(name)
    part.attach(net)
    assert set(net.state_dict()) >= set(plain.state_dict())
    for progress in (0.0, 0.3, 0.49, 0.5, 1.0):
        part.step(progress)
    part.detach()
    x = torch.randn(4, 1, 8, 8)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(net(x), plain(x))
    assert not part.ghosts


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_parts_state_follows_from_progress_alone(name: str) -> None:
    walked, jumped = resnet20(10, 1).eval(), resnet20(10, 1).eval()
    jumped.load_state_dict(walked.state_dict())
    for net, path in ((walked, (0.0, 0.1, 0.3, 0.4)), (jumped, (0.4,))):
        part = make(name)
        part.attach(net)
        for progress in path:
            part.step(progress)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(walked(x), jumped(x))


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


def test_soft_neurons_replace_every_relu_and_share_their_strength_as_a_buffer() -> None:
    net = resnet20(10, 1)
    part = SoftActivation((0.2, 0.6))
    part.attach(net)
    sites = [m for m in net.modules() if isinstance(m, Soft)]
    assert len(sites) == 19
    part.step(0.4)
    assert [float(site.b) for site in sites] == pytest.approx([10.0] * 19)
    assert all(isinstance(site.b, torch.Tensor) and not site.b.requires_grad for site in sites)


def test_permanent_soft_neurons_stay() -> None:
    net = resnet20(10, 1)
    part = SoftActivation((2.0, 3.0))
    part.attach(net)
    part.step(1.0)
    assert part.ghosts
    assert part.stays
    assert sum(isinstance(m, Soft) for m in net.modules()) == 19


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
