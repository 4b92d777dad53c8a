"""Selection: exact counts, ties, ladders, and the densities that Erdős–Rényi-kernel gives a layer."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tost.nets import thin
from tost.masks import imp_count, keep_count, prunable, select
from tost.masks.select import erk_shares, whole_shares


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
    sizes = {"a": 10, "b": 20, "c": 3}
    exact = {name: Fraction(11 * size, 33) for name, size in sizes.items()}
    assert whole_shares(exact, sizes, dict.fromkeys(sizes, 0)) == {"a": 3, "b": 7, "c": 1}
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


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.data(),
)
def test_reserving_one_a_tensor_changes_the_choice_only_where_a_tensor_would_be_empty(
    first: list[int], second: list[int], data: st.DataObject
) -> None:
    scores = {"a": torch.tensor(first, dtype=torch.float32), "b": torch.tensor(second, dtype=torch.float32)}
    keep = data.draw(st.integers(2, len(first) + len(second)))
    free, held = select(scores, keep), select(scores, keep, at_least=1)
    assert sum(int(m.sum()) for m in held.values()) == keep
    assert all(bool(m.any()) for m in held.values())
    if all(bool(m.any()) for m in free.values()):
        assert all(torch.equal(free[name], held[name]) for name in free)


def test_more_reserved_than_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 in each of 3 tensors"):
        select({name: torch.ones(4) for name in "abc"}, 2, at_least=1)


# Erdős-Rényi kernel ---------------------------------------------------------------------------------------------------


def test_erk_by_hand() -> None:
    # raw = sum of dims / product: a (2·3·3·3 = 54 weights) 11/54, b (10·20 = 200) 30/200; keep 41 of 254
    shares = erk_shares({"a": (2, 3, 3, 3), "b": (10, 20)}, 41)
    assert shares == {"a": Fraction(11), "b": Fraction(30)}


def test_erk_rescales_what_is_left_when_a_layer_is_full() -> None:
    # dims sum 4 and 40: at 60 of 404 the scale is 60/44, so a (4 weights) would keep 5.45: it is full, b gets 56
    assert erk_shares({"a": (2, 2), "b": (20, 20)}, 60) == {"a": Fraction(4), "b": Fraction(56)}


@pytest.mark.parametrize("name", ["resnet20", "vgg16", "mobilenet"])
@pytest.mark.parametrize("share", ["1/2", "1/10", "1/50"])
def test_erk_densities_follow_the_formula(name: str, share: str) -> None:
    weights = prunable(thin(name))
    shapes = {n: tuple(w.shape) for n, w in weights.items()}
    sizes = {n: w.numel() for n, w in weights.items()}
    keep = keep_count(sum(sizes.values()), Fraction(share))
    shares = erk_shares(shapes, keep)
    assert sum(shares.values()) == keep
    full = {n for n in shares if shares[n] == sizes[n]}
    ratios = {shares[n] / sum(shapes[n]) for n in shares if n not in full}
    assert len(ratios) == 1, "every layer that is not full has the same factor on (sum of dims)"
    (factor,) = ratios
    assert all(factor * sum(shapes[n]) >= sizes[n] for n in full)
    masks = select({n: torch.rand(s) for n, s in shapes.items()}, keep, scope="erk")
    assert sum(int(m.sum()) for m in masks.values()) == keep
    assert all(abs(int(masks[n].sum()) - shares[n]) < 1 for n in shapes)


def test_erk_leaves_depthwise_convolutions_of_mobilenet_dense() -> None:
    from tost.models.mobilenet import mobilenet

    shapes = {n: tuple(w.shape) for n, w in prunable(mobilenet(100)).items()}
    sizes = {n: torch.Size(s).numel() for n, s in shapes.items()}
    shares = erk_shares(shapes, keep_count(sum(sizes.values()), Fraction(1, 10)))
    full = [n for n in shapes if shares[n] == sizes[n]]
    assert (len(shapes), len(full)) == (28, 15)
    assert sum(shapes[n][1] == 1 for n in full) == 13


def test_a_full_network_is_full_under_erk() -> None:
    assert erk_shares({"a": (2, 2), "b": (3, 3)}, 13) == {"a": Fraction(4), "b": Fraction(9)}


def test_settings_and_shares_that_do_not_fit_are_refused() -> None:
    scores = {"a": torch.rand(4), "b": torch.rand(6)}
    with pytest.raises(ValueError, match="scope: 'Global' is not allowed; choose from global, layer, erk"):
        select(scores, 5, scope="Global")
    with pytest.raises(ValueError, match="cannot keep 0 of 10"):
        select(scores, 0)
    with pytest.raises(ValueError, match="add up to 6 weights, not to keep=5"):
        select(scores, 5, shares={"a": 3, "b": 3})
    with pytest.raises(ValueError, match="cannot keep 5 of 4 weights of 'a'"):
        select(scores, 5, shares={"a": 5, "b": 0})
    with pytest.raises(ValueError, match="not of the same tensors: b"):
        select(scores, 3, shares={"a": 3})


def test_how_many_scores_have_no_rank_is_told() -> None:
    with pytest.raises(ValueError, match="2 of 4 are NaN or infinite"):
        select({"w": torch.tensor([1.0, float("nan"), float("inf"), 0.0])}, 1)
