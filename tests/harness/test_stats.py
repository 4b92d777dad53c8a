"""Statistics: worked examples from the books, and what simulated data of known effect say of intervals and verdicts."""

from __future__ import annotations

import math
import random
import statistics
from itertools import product

import pytest

from harness.report.stats import (
    Effect,
    Interval,
    effect,
    effect_p,
    holm,
    paired_p,
    sign_flip_p,
    t_interval,
    verdict,
)

SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
"""Hours of sleep gained, of ten patients under two drugs (Student, 1908)."""
MAIZE = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)
"""Heights of crossed less self-fertilised plants in eighths of an inch (Darwin, 1876; Fisher, 1935)."""


def test_students_sleep_data() -> None:
    found = t_interval(SLEEP)
    assert (found.mean, found.n) == (pytest.approx(1.58), 10)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-7), pytest.approx(2.4598858, abs=1e-7))
    assert paired_p(SLEEP) == pytest.approx(0.002833, abs=1e-6)


def test_fishers_randomisation_of_darwins_maize() -> None:
    assert sign_flip_p(MAIZE) == pytest.approx(1726 / 32768)


def test_few_differences_cannot_have_a_small_p() -> None:
    for values in ((), (1.0, 2.0, 3.0, 4.0, 5.0), (1.0,) * 21):
        assert sign_flip_p(values) is None, "it could say nothing at 5 %, or takes too long"
    assert sign_flip_p((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) == 2 / 64
    assert sign_flip_p((0.0,) * 6) == 1.0


def test_flips_whose_sums_are_equal_but_for_rounding_are_as_far_from_0() -> None:
    hundredths = (7, -4, 3, 3, -2, 6, -1)
    sums = [abs(sum(s * v for s, v in zip(signs, hundredths, strict=True))) for signs in product((1, -1), repeat=7)]
    p = sum(found >= abs(sum(hundredths)) for found in sums) / len(sums)
    assert sign_flip_p([v / 100 for v in hundredths]) == pytest.approx(p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_one_value_or_equal_ones_have_no_interval() -> None:
    for values in ((1.0,), (0.5, 0.5, 0.5), (0.0, 0.0)):
        found = t_interval(values)
        assert math.isnan(found.low)
        assert paired_p(values) == 1.0
        assert verdict(found, 1.0) == "undecided"
    with pytest.raises(ValueError, match="no values"):
        t_interval(())


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.4, 0.4, "equivalent"),
        (0.1, 0.4, "equivalent"),
        (0.1, 0.6, "better"),
        (0.6, 0.9, "better"),
        (-0.9, -0.1, "worse"),
        (-0.1, 0.6, "undecided"),
        (-0.6, 0.6, "undecided"),
    ],
)
def test_a_verdict_is_by_the_interval_and_the_margin(low: float, high: float, said: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 5), 0.5) == said


def draw(
    rng: random.Random, cells: int, seeds: int, of_seed: float, noise: float, mean: float = 0.0
) -> dict[tuple[str, str], float]:
    """Draw differences: cells of different effects around a mean, seeds that shift all cells, and noise."""
    shifts = [rng.gauss(0, of_seed) for _ in range(seeds)]
    own = [mean + (n - (cells - 1) / 2) * 0.3 for n in range(cells)]
    return {(f"c{c}", f"s{s}"): own[c] + shifts[s] + rng.gauss(0, noise) for c in range(cells) for s in range(seeds)}


def test_a_whole_grid_has_students_interval_over_its_seeds_means() -> None:
    values = draw(random.Random(1), 6, 4, 0.5, 0.3)
    means = [statistics.fmean(values[f"c{c}", f"s{s}"] for c in range(6)) for s in range(4)]
    found, plain = effect(values), t_interval(means)
    assert (found.mean, found.low, found.high) == pytest.approx((plain.mean, plain.low, plain.high))
    assert (found.n, found.cells, found.spread) == (4, 6, pytest.approx(statistics.stdev(means)))
    assert effect_p(found) == pytest.approx(paired_p(means))


@pytest.mark.parametrize(("seeds", "of_seed"), [(3, 0.5), (5, 0.5), (5, 0.0)])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds: int, of_seed: float) -> None:
    rng, times = random.Random(seeds), 400
    covered = sum(
        found.low <= 1.0 <= found.high
        for found in (effect(draw(rng, 6, seeds, of_seed, 0.4, mean=1.0)) for _ in range(times))
    )
    assert 0.917 <= covered / times <= 0.983, "three standard errors are 0.033"


def test_intervals_with_holes_cover_the_truth_too() -> None:
    rng, covered, times = random.Random(7), 0, 60
    for _ in range(times):
        values = draw(rng, 6, 4, 0.5, 0.4, mean=1.0)
        for c, s in ((0, 0), (2, 1), (5, 3)):
            del values[f"c{c}", f"s{s}"]
        found = effect(values)
        covered += found.low <= 1.0 <= found.high
    assert covered / times >= 0.9


def test_a_noisy_cell_with_holes_is_not_believed_to_be_as_calm_as_the_rest() -> None:
    rng, covered, times = random.Random(3), 0, 60
    for _ in range(times):
        values = {(f"c{c}", f"s{s}"): rng.gauss(0, 2.0 if c == 5 else 0.2) for c in range(6) for s in range(5)}
        del values["c5", "s4"], values["c5", "s3"]
        found = effect(values)
        covered += found.low <= 0.0 <= found.high
    assert covered / times >= 0.85


def test_a_cell_of_one_seed_leaves_no_interval() -> None:
    values = draw(random.Random(1), 3, 3, 0.5, 0.4)
    del values["c0", "s0"], values["c0", "s1"]
    assert math.isnan(effect(values).low)


def test_equal_cells_weigh_the_same_whatever_their_holes() -> None:
    values = {(c, s): 10.0 * (c == "a") + 0.01 * int(s) for c in "ab" for s in "0123"}
    del values["a", "3"]
    assert effect(values).mean == pytest.approx(5.0, abs=0.1), "not 4.3, the mean of the seven"


def test_an_effect_without_a_spread_has_no_p() -> None:
    assert effect_p(Effect(1.0, math.nan, math.nan, 1)) == 1.0
