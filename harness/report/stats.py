"""Statistics for few seeds: intervals of paired differences, one effect over many cells, exact tests, corrections."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""The confidence of every interval."""
EDGE = 1e-6
"""A variance between seeds, as a share of the residual one, below which it counts as none."""
FLIPPED = (6, 20)
"""Numbers of differences whose signs are flipped in every way: p is at least 2 / 2**n, and there are 2**n ways."""
SAME = 1e-12
"""A spread, as a share of the mean, up to which values count as equal."""


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


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with Student's t interval at LEVEL. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    mean, n = statistics.fmean(values), len(values)
    if not _spread(values):
        return Interval(mean, math.nan, math.nan, n)
    from scipy.stats import ttest_1samp  # takes 0.7 s to load

    found = ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return Interval(mean, float(found.low), float(found.high), n)


def _spread(values: Sequence[float]) -> bool:
    """Return whether values tell their spread: few that happen to be equal do not say that there is none."""
    return len(values) > 1 and statistics.stdev(values) > abs(statistics.fmean(values)) * SAME


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t test for a mean of 0; 1 where no spread can be told."""
    if not _spread(differences):
        return 1.0
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(differences, 0.0).pvalue)


def effect(values: Mapping[tuple[str, str], float]) -> Effect:
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
        found = t_interval(means)
        spread = statistics.stdev(means) if len(means) > 1 else math.nan
        return Effect(found.mean, found.low, found.high, found.n, len(cells), spread)
    mean = _plain(values, cells)
    if any(sum(place[0] == cell for place in values) < 2 for cell in cells):
        return Effect(mean, math.nan, math.nan, len(seeds), len(cells))
    mean, modelled = _mixed(values, cells, seeds, mean)
    error = max(modelled, _jackknife(values, cells, seeds))
    least = min(sum(place[0] == cell for place in values) for cell in cells)
    if error <= abs(mean) * SAME:
        return Effect(mean, math.nan, math.nan, len(seeds), len(cells))
    from scipy.stats import t

    low, high = t.interval(LEVEL, least - 1, loc=mean, scale=error)
    return Effect(mean, float(low), float(high), len(seeds), len(cells), error * math.sqrt(len(seeds)))


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


def sign_flip_p(values: Sequence[float]) -> float | None:
    """Return the exact two-sided p of a mean of 0: the share of all flips of signs whose mean is as far from 0.

    Fisher's randomisation test (1935). None for too few values to be below 0.05, or too many to flip in every way.
    """
    if not FLIPPED[0] <= len(values) <= FLIPPED[1]:
        return None
    import numpy as np
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.array(values) / (max(map(abs, values)) or 1.0),),
        lambda flipped, axis: np.abs(flipped.sum(axis=axis)).round(12),  # equal sums differ in their last digits
        permutation_type="samples",  # of one sample: flips of signs
        alternative="greater",
        n_resamples=2 ** len(values),
        batch=2**14,
    )
    return float(found.pvalue)


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


def effect_p(found: Effect) -> float:
    """Return the two-sided p of an effect of 0, by Student's t over seeds; 1 where no spread can be told."""
    if not found.known or not found.spread > 0:
        return 1.0
    from scipy.stats import t

    return float(2 * t.sf(abs(found.mean) / (found.spread / math.sqrt(found.n)), found.n - 1))
