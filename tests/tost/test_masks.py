"""Masks: laws that every method of the catalog obeys, and cases worked by hand."""

import copy
import inspect
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tost.catalog import MASKS, resolve
from tost.masks import density, find_masks, imp_count, keep_count, prunable, select
from tost.masks.apply import apply_masks, check_masks
from tost.masks.io import load_masks, save_masks
from tost.masks.scores import magnitude, snip, synflow
from tost.masks.select import allocate

METHODS = sorted(MASKS)


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    net(torch.randn(16, 3, 8, 8))  # batch norm with running statistics of its own
    return net


def offers(seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(20, 3, 8, 8, generator=generator)
    return {
        "batches": [(images, torch.arange(20) % 4)],
        "shape": (3, 8, 8),
        "generator": torch.Generator().manual_seed(seed),
    }


def call(method: str, net: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    score = resolve(MASKS[method].path)
    wanted = inspect.signature(score).parameters
    return dict(score(net, **{k: v for k, v in offers(seed).items() if k in wanted}))


def total(net: nn.Module) -> int:
    return sum(w.numel() for w in prunable(net).values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False])
def test_a_score_changes_nothing(method: str, training: bool) -> None:
    net = small_net().train(training)
    next(net.parameters()).grad = torch.ones_like(next(net.parameters()))
    list(net.parameters())[1].requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, flags = torch.get_rng_state(), [p.requires_grad for p in net.parameters()]
    call(method, net)
    assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [p.grad is not None for p in net.parameters()] == [True] + [False] * (len(flags) - 1)
    assert all(module.training is training for module in net.modules())


@pytest.mark.parametrize("method", METHODS)
def test_a_score_covers_the_prunable_weights_and_nothing_else(method: str) -> None:
    net = small_net()
    scores = call(method, net)
    assert {name: s.shape for name, s in scores.items()} == {name: w.shape for name, w in prunable(net).items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_stale_gradient_is_ignored(method: str) -> None:
    net = small_net()
    clean = call(method, net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)
    assert_close(call(method, net), clean, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", ["0", "1/2", "9/10", "49/50", "999/1000"])
def test_every_method_keeps_the_exact_count(method: str, share: str) -> None:
    net = small_net()
    keep = keep_count(total(net), 1 - Fraction(share))
    steps = 5 if "steps" in MASKS[method].knobs else 1
    masks = find_masks(resolve(MASKS[method].path), net, keep, steps=steps, offered=offers())
    assert sum(int(mask.sum()) for mask in masks.values()) == keep == max(1, round((1 - Fraction(share)) * total(net)))
    assert density(masks) == keep / total(net)
    check_masks(net, masks)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_mask_whatever_the_global_state(method: str) -> None:
    net = small_net()
    masks = []
    for state in (3, 4):
        torch.manual_seed(state)
        masks.append(find_masks(resolve(MASKS[method].path), net, 50, offered=offers()))
    assert_close(masks[0], masks[1], rtol=0, atol=0)


def test_another_seed_gives_another_random_mask() -> None:
    net = small_net()
    first, second = (find_masks(resolve(MASKS["random"].path), net, 50, offered=offers(seed)) for seed in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


# Selection -----------------------------------------------------------------------------------------------------------


def test_ties_fall_to_the_first_in_name_order_then_in_place() -> None:
    scores = {"b": torch.tensor([1.0, 1.0]), "a": torch.tensor([[0.0, 1.0], [1.0, 2.0]])}
    masks = select(scores, 3)
    assert masks["a"].tolist() == [[False, True], [True, True]]
    assert masks["b"].tolist() == [False, False]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_selection_agrees_with_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    mask = select({"w": torch.tensor(values, dtype=torch.float32)}, keep)["w"]
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    assert sorted(mask.nonzero()[:, 0].tolist()) == sorted(best)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.data())
def test_selection_within_a_mask_never_brings_back_a_pruned_weight(values: list[int], data: st.DataObject) -> None:
    scores = {"w": torch.tensor(values, dtype=torch.float32)}
    outer = select(scores, data.draw(st.integers(2, len(values))))
    inner = select({"w": -scores["w"]}, data.draw(st.integers(1, int(outer["w"].sum()))), within=outer)
    assert not bool((inner["w"] & ~outer["w"]).any())


def test_selection_refuses_what_has_no_rank() -> None:
    with pytest.raises(ValueError, match=r"'w'.*not all finite"):
        select({"w": torch.tensor([1.0, float("nan")])}, 1)
    with pytest.raises(ValueError, match="cannot keep 3 of 2"):
        select({"w": torch.ones(2)}, 3)


def test_layer_scope_gives_each_layer_its_share_and_the_exact_total() -> None:
    assert allocate({"a": 10, "b": 20, "c": 3}, 11) == {"a": 3, "b": 7, "c": 1}
    masks = select({"a": torch.rand(10), "b": torch.rand(20), "c": torch.rand(3)}, 11, scope="layer")
    assert [int(masks[name].sum()) for name in "abc"] == [3, 7, 1]


@given(st.integers(1, 10**9), st.integers(0, 99))
def test_the_kept_count_is_the_nearest_whole_number(count: int, percent: int) -> None:
    kept = keep_count(count, 1 - Fraction(percent, 100))
    assert kept == 1 or abs(kept - count * (100 - percent) / 100) <= 0.5 + 1e-6


def test_densities_outside_their_range_are_refused() -> None:
    for bad in (Fraction(0), Fraction(-1, 2), Fraction(3, 2)):
        with pytest.raises(ValueError, match="density"):
            keep_count(100, bad)


def test_the_ladder_keeps_four_fifths_of_the_count_before() -> None:
    counts = [imp_count(272_474 - 688, level) for level in range(17)]
    assert all(after == round(before * 4 / 5) for before, after in itertools.pairwise(counts))
    shares = [round(100 * (1 - count / counts[0]), 2) for count in counts[1:]]
    assert shares[:4] == [20.0, 36.0, 48.8, 59.04]
    assert shares[-1] == 97.19


# Scores worked by hand ------------------------------------------------------------------------------------------------


class TwoLinear(nn.Module):
    """y = B A x, with A [2, 2] and B [2, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.a.weight.data = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
        self.b.weight.data = torch.tensor([[2.0, 1.0], [-1.0, 3.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x.flatten(1)))
        return out


def test_synflow_by_hand() -> None:
    # |B||A|1 = [[2,1],[1,3]] [[1,2],[.5,1]] [1,1]: column sums of |B| are 3 and 4, row sums of |A| 3 and 1.5
    scores = synflow(TwoLinear(), (2, 1, 1))
    assert_close(scores["a.weight"], torch.tensor([[3.0, 6.0], [2.0, 4.0]], dtype=torch.float64))
    assert_close(scores["b.weight"], torch.tensor([[6.0, 1.5], [3.0, 4.5]], dtype=torch.float64))
    assert scores["a.weight"].sum() == scores["b.weight"].sum() == 15


def test_snip_by_hand() -> None:
    net, x, y = TwoLinear(), torch.tensor([[1.0, 1.0]]), torch.tensor([0])
    hidden = torch.tensor([-1.0, 1.5])
    logits = torch.tensor([-0.5, 5.5])
    error = torch.softmax(logits, 0) - torch.tensor([1.0, 0.0])  # dL/dlogits
    b_gradient = error[:, None] * hidden[None]
    a_gradient = (net.b.weight.detach().T @ error)[:, None] * x
    scores = snip(net, [(x, y)])
    assert_close(scores["b.weight"], (net.b.weight * b_gradient).abs().detach())
    assert_close(scores["a.weight"], (net.a.weight * a_gradient).abs().detach())


def test_magnitude_by_hand() -> None:
    assert magnitude(TwoLinear())["a.weight"].tolist() == [[1.0, 2.0], [0.5, 1.0]]


def test_snip_sums_signed_gradients_so_that_splitting_the_batch_changes_nothing() -> None:
    net = small_net().double()
    images, labels = torch.randn(20, 3, 8, 8).double(), torch.arange(20) % 4
    whole = snip(net, [(images, labels)])
    for cut in (10, 3):
        parts = [(images[:cut], labels[:cut]), (images[cut:], labels[cut:])]
        assert_close(snip(net, parts), whole, rtol=1e-10, atol=1e-15)


def test_snip_in_train_mode_uses_the_batch_statistics() -> None:
    net = small_net()
    with torch.no_grad():
        net[1].running_var.mul_(50)  # type: ignore[union-attr, operator]
    assert not torch.allclose(
        snip(net, offers()["batches"], bn="train")["0.weight"], snip(net, offers()["batches"])["0.weight"]
    )


def test_synflow_conserves_flow_and_ignores_signs_data_and_statistics() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, bias=False),
        nn.Flatten(), nn.Linear(4 * 36, 3, bias=False),
    )  # fmt: skip
    scores = synflow(net, (3, 8, 8))
    sums = [float(score.sum()) for score in scores.values()]
    assert max(sums) - min(sums) < 1e-9 * max(sums)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.where(torch.rand_like(parameter) < 0.5, -1, 1))
    net(torch.randn(8, 3, 8, 8) + 5)
    assert_close(synflow(net, (3, 8, 8)), scores, rtol=1e-12, atol=0)


def test_synflow_stays_finite_where_float32_would_overflow() -> None:
    layers: list[nn.Module] = []
    for _ in range(60):
        layers += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU()]
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.fill_(0.5)  # type: ignore[union-attr, operator]
    scores = synflow(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 2)), (16, 8, 8))
    assert max(float(score.max()) for score in scores.values()) > torch.finfo(torch.float32).max
    assert all(bool(torch.isfinite(score).all()) for score in scores.values())


def test_synflow_empties_no_layer_where_one_shot_does() -> None:
    torch.manual_seed(0)
    widths = [3, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    keep = keep_count(total(net), Fraction(1, 500))
    masks = find_masks(synflow, net, keep, steps=100, offered={"shape": (3, 8, 8)})
    assert all(bool(mask.any()) for mask in masks.values())


# Applying, checking, saving -------------------------------------------------------------------------------------------


def test_pruned_weights_become_zero_even_where_they_overflowed() -> None:
    net = small_net()
    masks = find_masks(magnitude, net, 40)
    with torch.no_grad():
        net[0].weight.fill_(float("inf"))  # type: ignore[union-attr, operator]
    apply_masks(net, masks)
    weights = prunable(net)
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())


def test_the_prunable_set_holds_every_convolution_and_linear_and_nothing_else() -> None:
    net = small_net()
    assert list(prunable(net)) == ["0.weight", "3.weight", "5.weight", "8.weight"]
    assert list(prunable(net, "conv")) == ["0.weight", "3.weight", "5.weight"]
    assert list(prunable(nn.Linear(2, 2))) == ["weight"]


def test_a_mask_that_does_not_fit_is_named() -> None:
    net = small_net()
    with pytest.raises(ValueError, match=r"'9\.weight' belongs to no parameter"):
        check_masks(net, {"9.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"'0\.weight'.*\(2,\)"):
        check_masks(net, {"0.weight": torch.ones(2, dtype=torch.bool)})


def test_masks_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    masks = find_masks(magnitude, small_net(), 40)
    save_masks(masks, tmp_path / "m.safetensors")
    assert_close(load_masks(tmp_path / "m.safetensors"), masks, rtol=0, atol=0)


def test_a_file_that_is_no_mask_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "junk").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_masks(tmp_path / "junk")
    save_file({"w": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="'w' is no mask"):
        load_masks(tmp_path / "weights")


def test_a_score_that_leaves_a_weight_out_is_refused() -> None:
    net = small_net()
    with pytest.raises(ValueError, match=r"nothing for '3\.weight'"):
        find_masks(lambda model: {"0.weight": model[0].weight.detach()}, net, 5)
    with pytest.raises(ValueError, match=r"'0\.weight' has shape \(1,\)"):
        find_masks(lambda model: dict.fromkeys(prunable(model), torch.ones(1)), net, 5)


def test_finding_masks_leaves_the_network_alone() -> None:
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    find_masks(synflow, net, 5, steps=7, offered={"shape": (3, 8, 8)})
    assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
