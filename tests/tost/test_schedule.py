"""Gradual magnitude pruning: the published schedule, its update steps, and masks that only tighten."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

import pytest
import torch

from tests.tost.nets import small_net, total
from tost.catalog import MODELS, resolve
from tost.masks import MaskError, keep_count, prunable
from tost.masks.apply import apply_masks
from tost.masks.schedule import GradualPruning, gmp_sparsity


def test_the_schedule_is_zhu_and_guptas() -> None:
    # s_f = 0.8, t0 = 10, n·dt = 4·5: s = 0.8 - 0.8 (1 - (t - 10)/20)^3
    steps = {0: 0.0, 10: 0.0, 15: 0.8 - 0.8 * 0.75**3, 20: 0.7, 30: 0.8, 99: 0.8}
    assert {t: gmp_sparsity(t, 0.8, 10, 4, 5) for t in steps} == pytest.approx(steps)
    assert gmp_sparsity(10, 0.8, 10, 4, 5, initial=0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
def test_the_density_of_every_step_and_nothing_that_was_pruned_comes_back(scope: str) -> None:
    net = small_net()
    sizes = {name: weight.numel() for name, weight in prunable(net).items()}
    keep = keep_count(total(net), 1 / 8)  # type: ignore[arg-type]
    pruning = GradualPruning(net, keep, 100, begin=0.1, end=0.6, every=7, scope=scope)
    assert (pruning.begin, pruning.every, pruning.updates, pruning.last) == (10, 7, 7, 59)
    before = pruning.masks
    for step in range(101):
        masks = pruning(step)
        due = 10 <= step <= 59 and (step - 10) % 7 == 0
        assert (masks is not before) == due, "masks change at t0, t0 + dt, ..., t0 + n·dt and at no other step"
        assert all(not bool((masks[name] & ~before[name]).any()) for name in masks)
        if due and step < 59:
            kept = 1 - gmp_sparsity(step, 1 - keep / total(net), 10, 7, 7)
            if scope == "layer":
                assert {n: int(m.sum()) for n, m in masks.items()} == {
                    n: max(1, round(size * kept)) for n, size in sizes.items()
                }
            else:
                assert sum(int(m.sum()) for m in masks.values()) == round(total(net) * kept)
        apply_masks(net, masks)
        with torch.no_grad():
            for name, weight in prunable(net).items():
                weight.add_(torch.randn_like(weight) * 0.3).masked_fill_(~masks[name], 0)
        before = masks
    assert sum(int(m.sum()) for m in before.values()) == keep


def test_a_window_shorter_than_its_interval_is_cut_in_ten() -> None:
    pruning = GradualPruning(small_net(), 40, 60, begin=0.0, end=0.5, every=100)
    assert (pruning.every, pruning.updates, pruning.last) == (3, 10, 30)
    assert GradualPruning(small_net(), 40, 8, begin=0.0, end=0.5, every=100).updates == 4


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("share", ["1/2", "1/10", "1/20", "1/50", "1/100", "1/1000"])
def test_layer_counts_only_fall_and_end_at_the_exact_total_on_every_network(name: str, share: str) -> None:
    with torch.device("meta"):
        net = resolve(MODELS[name].path)(10, 3)
    weights = prunable(net)
    keep = keep_count(sum(weight.numel() for weight in weights.values()), Fraction(share))
    pruning = GradualPruning(net, keep, 182 * 352, every=100)
    counts = {n: weight.numel() for n, weight in weights.items()}
    for step in range(pruning.begin, pruning.last + 1, pruning.every):
        shares = pruning.shares(step)
        assert shares is not None
        assert all(shares[n] <= counts[n] for n in counts)
        counts = shares
    assert sum(counts.values()) == keep


def test_a_collapse_can_be_refused_on_the_way() -> None:
    net = small_net()
    with torch.no_grad():
        net[0].weight.mul_(1e-6)  # type: ignore[union-attr, operator]
    pruning = GradualPruning(net, 20, 100, every=10, scope="global", refuse_empty=True)
    with pytest.raises(MaskError, match=r"nothing is kept of 0\.weight from step"):
        deque(map(pruning, range(60)))
    with pytest.raises(MaskError, match="2 weights cannot be 1 in each of 4 layers"):
        GradualPruning(net, 2, 100, at_least=1)


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at 0\.2 of training, not after it begins at 0\.5"):
        GradualPruning(small_net(), 40, 30, begin=0.5, end=0.2)


@pytest.mark.parametrize("steps", [2, 3, 60, 61])
@pytest.mark.parametrize("begin", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("every", [1, 30, 100])
def test_a_loop_over_all_steps_ends_at_the_exact_count_whatever_the_window(
    steps: int, begin: float, every: int
) -> None:
    net = small_net()
    pruning = GradualPruning(net, 60, steps, begin=begin, end=1.0, every=every)
    deque(map(pruning, range(steps)))
    assert sum(int(mask.sum()) for mask in pruning.masks.values()) == 60


def test_asked_once_more_when_training_is_done_the_last_update_may_come_there() -> None:
    pruning = GradualPruning(small_net(), 60, 60, end=1.0, every=30, after=True)
    assert pruning.last == 60
    deque(map(pruning, range(61)))
    assert sum(int(mask.sum()) for mask in pruning.masks.values()) == 60


@pytest.mark.parametrize(("steps", "begin", "end"), [(10, 0.98, 1.0), (4, 0.9, 0.95), (1, 0.5, 1.0), (60, 0.999, 1.0)])
def test_a_window_at_the_very_end_ends_at_the_exact_count_when_training_is_done(
    steps: int, begin: float, end: float
) -> None:
    pruning = GradualPruning(small_net(), 60, steps, begin=begin, end=end, after=True)
    deque(map(pruning, range(steps + 1)))
    assert sum(int(mask.sum()) for mask in pruning.masks.values()) == 60


def test_what_cannot_be_pruned_gradually_is_refused() -> None:
    for keep in (0, total(small_net()) + 1):
        with pytest.raises(MaskError, match=f"cannot keep {keep} of"):
            GradualPruning(small_net(), keep, 30)
    with pytest.raises(MaskError, match="steps=1 is not allowed; gradual pruning takes 2 or more"):
        GradualPruning(small_net(), 40, 1)
    with pytest.raises(ValueError, match="scope: 'layers' is not allowed"):
        GradualPruning(small_net(), 40, 30, scope="layers")
