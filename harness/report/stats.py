"""Statistics for few seeds: intervals of paired differences, one effect over many cells, exact tests, corrections."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EDGE = 1e-6
"""A variance between seeds, as a share of the residual one, below which it counts as none."""
MOST_FLIPPED = 20
"""Differences whose signs are flipped in every way; beyond, there are over a million ways."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; one value alone has none, and its ends are not numbers."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Return whether there is an interval: the values tell their spread."""
        return not math.isnan(self.low)


@dataclass(frozen=True)
class Effect(Interval):
    """A mean difference over many cells, seeds being what was drawn at random."""

    cells: int = 0
    spread: float = math.nan
    """Standard deviation between seeds, cells averaged."""


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of independent values with Student's t interval. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = _quantile(level, n - 1) * statistics.stdev(values) / math.sqrt(n)
    if half <= abs(mean) * 1e-12:  # few values that happen to be equal do not say that there is no spread
        return Interval(mean, math.nan, math.nan, n)
    return Interval(mean, mean - half, mean + half, n)


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t test for a mean of 0; 1 where no spread can be told."""
    if len(differences) < 2 or not t_interval(differences).known:
        return 1.0
    found = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))
    return _two_sided(found, len(differences) - 1)


def _quantile(level: float, degrees: float) -> float:
    from scipy.special import stdtrit  # scipy.stats, which has the same by another name, takes 0.6 s to load

    return float(stdtrit(degrees, (1 + level) / 2))


def _two_sided(t: float, degrees: float) -> float:
    """Return the two-sided p of a value of Student's t."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(t)))


def effect(values: Mapping[tuple[str, str], float], level: float = 0.95) -> Effect:
    """Return the mean over cells of differences by (cell, seed), with an interval in which seeds are the random unit.

    A seed draws the order of the images for every cell, so that its cells are not independent: where every cell has
    every seed, the interval is Student's over the seeds' means, which is exact under a random effect of the seed and a
    fixed one of the cell. With holes, a mixed-effects model of the same form is fitted by REML, cells of equal weight,
    with the degrees of freedom of the cell that has the fewest seeds; its error is taken no smaller than that of
    leaving out one seed at a time (the jackknife; Tukey, 1958), which does not believe that all cells are as noisy. A
    cell with fewer than two seeds leaves the effect without an interval. Raises ValueError for no values.
    """
    cells = list(dict.fromkeys(cell for cell, _ in values))
    seeds = list(dict.fromkeys(seed for _, seed in values))
    if len(values) == len(cells) * len(seeds):
        means = [statistics.fmean(values[cell, seed] for cell in cells) for seed in seeds]
        found = t_interval(means, level)
        spread = statistics.stdev(means) if len(means) > 1 else math.nan
        return Effect(found.mean, found.low, found.high, found.n, len(cells), spread)
    mean = _plain(values, cells)
    if any(sum(place[0] == cell for place in values) < 2 for cell in cells):
        return Effect(mean, math.nan, math.nan, len(seeds), len(cells))
    mean, modelled = _mixed(values, cells, seeds, mean)
    error = max(modelled, _jackknife(values, cells, seeds))
    least = min(sum(place[0] == cell for place in values) for cell in cells)
    half = _quantile(level, least - 1) * error
    if half <= abs(mean) * 1e-12:
        return Effect(mean, math.nan, math.nan, len(seeds), len(cells))
    return Effect(mean, mean - half, mean + half, len(seeds), len(cells), error * math.sqrt(len(seeds)))


def _plain(values: Mapping[tuple[str, str], float], cells: Sequence[str], without: str | None = None) -> float:
    """Return the mean over cells of the mean over their seeds."""
    own: dict[str, list[float]] = {cell: [] for cell in cells}
    for (cell, seed), value in values.items():
        if seed != without:
            own[cell].append(value)
    return statistics.fmean(statistics.fmean(found) for found in own.values())


def _jackknife(values: Mapping[tuple[str, str], float], cells: Sequence[str], seeds: Sequence[str]) -> float:
    """Return the standard error of the mean from leaving out one seed at a time."""
    left = [_plain(values, cells, without=seed) for seed in seeds]
    return math.sqrt((len(seeds) - 1) ** 2 / len(seeds)) * statistics.stdev(left)


def _mixed(
    values: Mapping[tuple[str, str], float], cells: Sequence[str], seeds: Sequence[str], plain: float
) -> tuple[float, float]:
    """Fit differences as a fixed effect of the cell and a random one of the seed; return mean and standard error.

    Where REML finds no spread between seeds, the model is one without it: means of cells, and no error of its own.
    """
    import warnings

    import numpy as np
    from statsmodels.regression.mixed_linear_model import MixedLM

    told = list(values.items())
    design = np.zeros((len(told), len(cells)))
    for row, ((cell, _), _) in enumerate(told):
        design[row, cells.index(cell)] = 1.0
    groups = np.array([seeds.index(seed) for (_, seed), _ in told])
    observed = np.array([value for _, value in told])
    weights = np.full(len(cells), 1 / len(cells))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a spread of 0 between seeds lies at the edge of what it may be
        try:
            fit = MixedLM(observed, design, groups).fit(reml=True)
        except np.linalg.LinAlgError:
            return plain, 0.0
        if not float(fit.cov_re[0, 0]) > EDGE * float(fit.scale):
            return plain, 0.0
        variance = float(weights @ fit.cov_params()[: len(cells), : len(cells)] @ weights)
    if not variance > 0:
        return plain, 0.0
    return float(weights @ fit.fe_params), math.sqrt(variance)


def sign_flip(values: Sequence[float]) -> float:
    """Return the exact two-sided p of a mean of 0: the share of all flips of signs whose mean is as far from 0.

    Fisher's randomisation test (1935). Raises ValueError for none, or for more than can be flipped in every way.
    """
    if not 1 <= len(values) <= MOST_FLIPPED:
        raise ValueError(f"{len(values)} values; from 1 to {MOST_FLIPPED} can be flipped in every way")
    seen = abs(math.fsum(values)) * (1 - 1e-12)  # sums of the same numbers differ in their last digits
    flips = itertools.product((1.0, -1.0), repeat=len(values))
    as_far = sum(abs(math.fsum(s * v for s, v in zip(signs, values, strict=True))) >= seen for signs in flips)
    return float(as_far / 2.0 ** len(values))


def sign_flip_p(values: Sequence[float], level: float = 0.05) -> float | None:
    """Return the p of flipping signs where so many values can show anything at a level at all; else None."""
    return sign_flip(values) if len(values) <= MOST_FLIPPED and smallest_p(len(values)) <= level else None


def smallest_p(n: int) -> float:
    """Return the smallest two-sided p that flipping the signs of n differences can give: 0.25 for 3, 0.0625 for 5."""
    return 2.0 / 2.0**n


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted for a family of tests, in their order (Holm, 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(ps, method="holm")[1]] if ps else []


def verdict(found: Interval, margin: float) -> str:
    """Judge an interval of a difference, higher being better, by the margin that was said to matter.

    Equivalent: wholly within the margin either way. Better or worse: wholly on one side of 0, and not equivalent.
    """
    if not found.known:
        return "undecided"
    if -margin <= found.low and found.high <= margin:
        return "equivalent"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "undecided"


def seeds_needed(spread: float, margin: float, level: float = 0.95, most: int = 1000) -> int | None:
    """Return the fewest seeds whose interval is no wider than the margin either way, at a spread between seeds.

    Then an interval lies within the margin, or leaves out 0, whatever the effect is; None where `most` are too few.
    """
    for n in range(2, most + 1):
        if _quantile(level, n - 1) * spread / math.sqrt(n) <= margin / 2:
            return n
    return None


def decidable_spread(n: int, margin: float, level: float = 0.95) -> float:
    """Return the largest spread between seeds at which n of them decide, whatever the effect is (`seeds_needed`)."""
    return margin / 2 * math.sqrt(n) / _quantile(level, n - 1)


def effect_p(found: Effect) -> float:
    """Return the two-sided p of an effect of 0, by Student's t over seeds; 1 where no spread can be told."""
    if not found.known or not found.spread > 0:
        return 1.0
    return _two_sided(found.mean / (found.spread / math.sqrt(found.n)), found.n - 1)


def seeds_range(spread: float, n: int, margin: float, level: float = 0.95) -> tuple[int | None, int | None]:
    """Return the seeds needed at the spread that n of them showed, and at the upper end of what it may be (95 %)."""
    from scipy.special import chdtri

    most = spread * math.sqrt((n - 1) / float(chdtri(n - 1, 0.95)))  # chi-squared, of its upper tail
    return seeds_needed(spread, margin, level), seeds_needed(most, margin, level)


def look_level(looks: int, level: float = 0.95) -> float:
    """Return the confidence level of each of some planned looks, so that together they err no more than one would.

    The error is shared out evenly (Bonferroni's inequality): it holds whatever a look at one stage leads to.
    """
    return 1.0 - (1.0 - level) / looks
