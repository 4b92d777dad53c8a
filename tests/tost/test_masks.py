"""Masks: laws that every method of the catalog obeys on every network, and what is done with masks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

from tests.tost.nets import SIZE, call, offers, small_net, thin, total
from tost.accounting import layers
from tost.catalog import MASKS, MODELS, resolve
from tost.masks import MaskError, density, find_masks, keep_count, prunable
from tost.masks.apply import (
    Pruned,
    apply_masks,
    check_contract,
    check_masks,
    dead_filters,
    empty_layers,
    left_out,
)
from tost.masks.controls import overlap, shuffled
from tost.masks.io import load_masks, save_masks
from tost.masks.scores import magnitude, snip, synflow

METHODS = sorted(MASKS)


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


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_exact_count_on_every_network(method: str, name: str) -> None:
    net = thin(name)
    images = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    offered = {**offers(), "batches": [(images, torch.arange(5))], "shape": (3, SIZE, SIZE)}
    knobs = {n: MASKS[method].knobs[n].default for n in ("scope",) if n in MASKS[method].knobs}
    found = call(method, net, offered=offered)
    for share in ("0", "1/2", "9/10", "49/50", "999/1000"):
        keep = keep_count(total(net), 1 - Fraction(share))
        masks = find_masks(lambda model: found, net, keep, offered=offered, **knobs)  # type: ignore[arg-type]
        assert sum(int(mask.sum()) for mask in masks.values()) == keep
        check_masks(net, masks)


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_comes_back_from_disk_as_it_was(method: str, tmp_path: Path) -> None:
    masks = find_masks(resolve(MASKS[method].path), small_net(), 50, offered=offers())
    save_masks(masks, tmp_path / "m.safetensors")
    assert_close(load_masks(tmp_path / "m.safetensors"), masks, rtol=0, atol=0)


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


def test_a_weight_that_two_layers_share_is_counted_once() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    assert list(prunable(net)) == ["0.weight"]
    check_masks(net, find_masks(magnitude, net, 5))


def test_a_collapse_is_seen_and_can_be_kept_from_happening() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.no_grad():
        net[0].weight.mul_(1e-3)  # type: ignore[union-attr, operator]
    assert empty_layers(find_masks(magnitude, net, 20)) == ["0.weight"]
    held = find_masks(magnitude, net, 20, at_least=1)
    assert empty_layers(held) == []
    assert [int(mask.sum()) for mask in held.values()] == [1, 19]
    with pytest.raises(MaskError, match="1 weights cannot be 1 in each of 2 layers"):
        find_masks(magnitude, net, 1, at_least=1)


def test_dead_filters_are_output_channels_with_nothing_left() -> None:
    mask = torch.zeros(3, 2, 1, 1, dtype=torch.bool)
    mask[1, 0] = True
    assert dead_filters(mask) == 2


def test_a_shuffled_mask_keeps_every_layers_count_and_moves_the_weights() -> None:
    masks = find_masks(magnitude, small_net(), 60)
    moved = shuffled(masks, torch.Generator().manual_seed(0))
    assert {n: int(m.sum()) for n, m in moved.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert any(not torch.equal(moved[name], masks[name]) for name in masks)
    assert_close(shuffled(masks, torch.Generator().manual_seed(0)), moved, rtol=0, atol=0)


def test_overlap_by_hand() -> None:
    found = overlap(torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool())
    assert (found.iou, found.hamming) == (1 / 3, 1 / 2)
    assert (found + found).iou == 1 / 3
    with pytest.raises(ValueError, match="shape"):
        overlap(torch.ones(2).bool(), torch.ones(3).bool())


def test_steps_within_a_mask_go_down_from_what_it_has_left() -> None:
    net = small_net()
    half = find_masks(magnitude, net, total(net) // 2)
    masks = find_masks(magnitude, net, total(net) // 4, within=half, steps=5)
    assert sum(int(mask.sum()) for mask in masks.values()) == total(net) // 4
    assert not any(bool((masks[name] & ~half[name]).any()) for name in masks)


def test_an_unknown_prunable_set_and_a_reparametrised_weight_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'convs' is no prunable set; choose from conv\+linear, conv"):
        prunable(small_net(), "convs")
    net = small_net()
    prune.random_unstructured(net[0], "weight", 0.5)
    with pytest.raises(MaskError, match="weight of '0' is re-parametrised"):
        prunable(net)


def test_a_broken_contract_is_named() -> None:
    half = find_masks(magnitude, small_net(), 60)
    check_contract(half, 60)
    check_contract(find_masks(magnitude, small_net(), 30, within=half), 30, half)
    with pytest.raises(ValueError, match="keep 60 weights instead of 61"):
        check_contract(half, 61)
    with pytest.raises(ValueError, match="keeps weights that were pruned before"):
        check_contract(half, 60, {name: ~mask for name, mask in half.items()})


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm],
)
def test_a_network_with_a_reparametrised_weight_is_refused_by_every_use(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), wrap(nn.Linear(4 * 36, 2)))
    for use in (prunable, lambda net: layers(net, (3, 8, 8)), lambda net: find_masks(magnitude, net, 5)):
        with pytest.raises(MaskError, match=r"weight of '2' is re-parametrised.*use a network with plain layers"):
            use(net)


class Centred(nn.Conv2d):
    """A weight-standardised convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Padded(nn.Conv2d):
    """A convolution with a forward of its own that multiplies with its weight as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_layer_that_standardises_its_weight_is_refused_and_another_subclass_is_not(device: str) -> None:
    with torch.device(device):
        plain, centred = nn.Sequential(Padded(3, 4, 3)), nn.Sequential(Padded(3, 4, 3), Centred(4, 4, 3))
    assert list(prunable(plain)) == ["0.weight"]
    with pytest.raises(MaskError, match=r"weight of '1' is not multiplied as it is: (mean|sub) comes first"):
        prunable(centred)


SPARING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "scale": lambda w: w * torch.linspace(0.5, 1, len(w)).view(-1, 1),
    "mask": lambda w: w * (torch.arange(w.numel()).view(w.shape) % 3 > 0),
    "dropout": lambda w: nn.functional.dropout(w, 0.5),
    "normalize": nn.functional.normalize,
    "index": lambda w: w[:, [5, 4, 3, 2, 1, 0]],
    "pad": lambda w: nn.functional.pad(w, (0, 0, 0, 1)),
    "copy": lambda w: torch.zeros_like(w).copy_(w),
    "slice of another dtype": lambda w: w.double()[1:].float(),
    "slice of a copy": lambda w: w.clone()[1:],
    "quantisation": lambda w: torch.fake_quantize_per_tensor_affine(w, 0.01, 0, -128, 127),
}
SPREADING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "centring": lambda w: w - w.mean(1, keepdim=True),
    "centring, flat": lambda w: (w.flatten() - w.mean()).view_as(w),
    "softmax": lambda w: w.softmax(1),
    "noise": lambda w: w + 0.1 * torch.randn(w.shape),
}


class Through(nn.Linear):
    """A layer that multiplies with something made of its weight, and keeps what came out."""

    def __init__(self, made: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(6, 5, bias=False)
        self.made, self.last = made, torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = nn.functional.linear(x, self.made(self.weight))
        return self.last


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", SPARING)
def test_a_layer_is_plain_where_zeros_of_its_weight_stay_zeros(kind: str, mode: Callable[[], Any]) -> None:
    net, state = nn.Sequential(Through(SPARING[kind])), torch.get_rng_state()
    with mode():
        assert list(prunable(net)) == ["0.weight"]
        rows = 6 if kind == "pad" else 4 if kind.startswith("slice") else 5
        assert layers(net, (6,))["0.weight"].multiply_adds == 6 * rows
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", SPREADING)
def test_a_layer_is_refused_where_zeros_of_its_weight_do_not_stay_zeros(kind: str, mode: Callable[[], Any]) -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, SPREADING[kind](self.held.weight))

    with mode():
        with pytest.raises(MaskError, match="weight of '0' is not multiplied as it is"):
            prunable(nn.Sequential(Through(SPREADING[kind])))
        with pytest.raises(MaskError, match="weight of 'held' is not multiplied as it is"):
            layers(Outside(), (6,))


def test_a_low_rank_addition_that_begins_at_zero_is_refused() -> None:
    class Added(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 5)
            self.a, self.b = nn.Parameter(torch.zeros(5, 2)), nn.Parameter(torch.randn(2, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight + self.a @ self.b, self.bias)

    with pytest.raises(MaskError, match="add comes first"):
        prunable(nn.Sequential(Added()))


def test_a_layer_that_keeps_an_activation_is_scored_in_mid_training_and_tried_once() -> None:
    net = nn.Sequential(Through(lambda w: w), nn.Linear(5, 2))
    net(torch.randn(3, 6)).sum().backward()
    assert not net[0].last.is_leaf  # type: ignore[union-attr]
    assert list(magnitude(net)) == ["0.weight", "1.weight"]
    assert layers(net, (6,))["0.weight"].multiply_adds == 30
    batches = [(torch.randn(4, 6), torch.arange(4) % 2)]
    net[0].made = lambda w: pytest.fail("tried again")  # type: ignore[assignment]
    assert list(magnitude(net)) == ["0.weight", "1.weight"]
    net[0].made = lambda w: w  # type: ignore[assignment]
    for found in (synflow(net, (6,)), snip(net, batches)):
        assert list(found) == ["0.weight", "1.weight"]


def test_timms_standardised_convolutions_are_refused_and_its_padded_ones_are_not() -> None:
    conv2d = pytest.importorskip("timm.layers")
    assert list(prunable(conv2d.Conv2dSame(3, 4, 3, stride=2))) == ["weight"]
    for kind in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"):
        with pytest.raises(MaskError, match="not multiplied as it is"):
            prunable(getattr(conv2d, kind)(3, 4, 3))


def test_frozen_weights_are_pruned_only_where_they_are_asked_for() -> None:
    net = small_net()
    net[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    assert list(prunable(net)) == ["3.weight", "5.weight", "8.weight"]
    assert list(prunable(net, "conv+frozen")) == ["0.weight", "3.weight", "5.weight"]
    assert list(left_out(net)) == ["0.weight"]
    assert left_out(net, "conv+linear+frozen") == {}
    for method in METHODS:
        score = resolve(MASKS[method].path)
        assert list(find_masks(score, net, 50, offered=offers())) == list(prunable(net))
        assert "0.weight" in find_masks(score, net, 50, which="conv+linear+frozen", offered=offers())


def test_what_a_prunable_set_leaves_out_is_named() -> None:
    net = nn.ModuleDict({
        "line": nn.Conv1d(3, 4, 3), "up": nn.ConvTranspose2d(3, 3, 2), "mix": nn.MultiheadAttention(8, 2),
        "rows": nn.LSTM(8, 8), "words": nn.Embedding(5, 8), "norm": nn.BatchNorm2d(4), "head": nn.Linear(8, 2),
    })  # fmt: skip
    assert list(left_out(net)) == [
        "line.weight", "up.weight", "mix.in_proj_weight", "rows.weight_ih_l0", "rows.weight_hh_l0", "words.weight",
    ]  # fmt: skip
    with pytest.raises(MaskError, match=r"no weight to prune: no layer of the set conv\+linear.*weights are 0\.weight"):
        find_masks(magnitude, nn.Sequential(nn.Conv1d(3, 4, 3)), 1)


def test_scores_that_rank_nothing_are_refused() -> None:
    net = small_net()
    zeros = {name: torch.zeros_like(weight) for name, weight in prunable(net).items()}
    with pytest.raises(MaskError, match="every score is 0"):
        find_masks(lambda model: zeros, net, 50)
    assert density(find_masks(lambda model: zeros, net, total(net))) == 1
    zeros["0.weight"] = zeros["0.weight"].numpy()  # type: ignore[assignment]
    with pytest.raises(
        MaskError, match=r"'0\.weight' is numpy\.ndarray, not a tensor; write torch\.from_numpy\(array\)"
    ):
        find_masks(lambda model: zeros, net, 50)


@pytest.mark.parametrize(("keep", "steps"), [(0, 1), (-3, 1), (50, 0)])
def test_counts_and_steps_below_one_are_refused(keep: int, steps: int) -> None:
    with pytest.raises(MaskError, match=f"keep={keep}, steps={steps} is not allowed"):
        find_masks(magnitude, small_net(), keep, steps=steps)


def test_what_a_score_does_to_the_model_is_undone() -> None:
    net = small_net()

    def spoils(model: nn.Module) -> dict[str, torch.Tensor]:
        scores = {name: score.clone() for name, score in magnitude(model).items()}
        with torch.no_grad():
            for weight in prunable(model).values():
                weight.copy_(torch.arange(weight.numel()).view(weight.shape))
        return scores

    assert_close(find_masks(spoils, net, 50, steps=5), find_masks(magnitude, net, 50, steps=5), rtol=0, atol=0)


def test_weights_put_in_others_place_are_pruned_too() -> None:
    net = small_net()
    masks = find_masks(magnitude, net, 50)
    pruned = Pruned(net, masks)
    for dtype in (torch.float32, torch.float64):
        net.load_state_dict(small_net(1).to(dtype).state_dict(), assign=True)
        pruned.clear()
        weights = prunable(net)
        assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())
        assert all(weight.dtype is dtype for weight in weights.values())
    with pytest.raises(KeyError, match=r"no\.weight"):
        Pruned(net, {"no.weight": torch.ones(1, dtype=torch.bool)})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_prunable_set_has_every_weight_of_the_catalogs_networks(name: str) -> None:
    with torch.device("meta"):
        net = resolve(MODELS[name].path)(10, 3)
    assert left_out(net) == {}
    assert [weight.dim() for weight in left_out(net, "conv").values()] == [2], "the classifier"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.spectral_norm])
def test_a_layer_that_is_reparametrised_after_it_was_pruned_is_named(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    pruned = Pruned(net, {"0.weight": torch.eye(3, 4).bool()})
    pruned.clear()
    wrap(net[0])
    with pytest.raises(MaskError, match=r"'0\.weight' is pruned and was re-parametrised afterwards"):
        pruned.clear()
