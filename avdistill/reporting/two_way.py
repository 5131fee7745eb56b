"""Statistics of a contrast whose test clips and seeds are both samples.

The contrast d[s, g] of seed s on group g of test clips (clips of one source video, which are not independent) is

    d[s, g] = mean + seed effect a_s + group effect b_g + residual e_sg

with independent effects of variances `seed`, `group` and `residual`: a crossed analysis of variance with random effects
and one value per cell (Searle, Casella & McCulloch, Variance Components, 1992, section 4.4). With S seeds and G groups,
the expected mean squares are MS_seed = residual + G seed, MS_group = residual + S group and MS_residual = residual, so

    Var(mean) = seed / S + group / G + residual / (S G) = (MS_seed + MS_group - MS_residual) / (S G)

Seeds that share a draw of the teachers are averaged before: they are one of the S (by_draw in results.py). A component
estimated below 0 is set to 0. Degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946):
(sum of a_i MS_i)^2 / sum of (a_i MS_i)^2 / df_i. A metric without values by clip has one group, and the formulas are
those of Student's t over seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from avdistill.config.report import Expected
from avdistill.reporting.results import CONFIDENCE, Interval

POWER = 0.8  # probability of finding an effect of the size `smallest_effect`
MOST_SEEDS = 100  # larger numbers of seeds are not searched for
ROUNDING = 1e-9  # a smaller standard error comes from rounding
UNLIMITED = 10**9  # seeds that leave only the error from the test clips


class Contrast(NamedTuple):
    """The estimated mean of a contrast and the variances of its effects, from `seeds` seeds and `groups` groups.

    Numbers are in the unit of the contrast (variances: squared)."""

    mean: float
    seed: float
    group: float
    residual: float
    seeds: int
    groups: int

    def _squares(self, seeds: int) -> tuple[tuple[float, int], ...]:
        """Return the expected mean squares with their degrees of freedom: seed, group, residual."""
        between = self.residual + self.groups * self.seed, seeds - 1
        within = self.residual + seeds * self.group, self.groups - 1
        return between, within, (self.residual, (seeds - 1) * (self.groups - 1))

    def error(self, seeds: int | None = None) -> float:
        """Return the standard error of the mean, with another number of seeds if given."""
        seeds = seeds or self.seeds
        return float(np.sqrt((self.seed + self.residual / self.groups) / seeds + self.group / self.groups))

    def freedom(self, seeds: int | None = None) -> float:
        """Return the degrees of freedom of the standard error, with another number of seeds if given."""
        seeds = seeds or self.seeds
        spread = sum(square**2 / freedom for square, freedom in self._squares(seeds) if freedom > 0)
        return float((self.error(seeds) ** 2 * seeds * self.groups) ** 2 / spread)

    @property
    def tested(self) -> bool:
        """Whether there is an interval: at least two seeds, and not the same value for all seeds and groups."""
        return self.seeds > 1 and self.error() > ROUNDING

    def interval(self) -> Interval:
        """Return the mean with its 95 % t interval, which is undefined if the contrast is not tested."""
        if not self.tested:
            return Interval(self.mean, np.nan, np.nan, self.seeds)
        half = quantile((1 + CONFIDENCE) / 2, self.freedom()) * self.error()
        return Interval(self.mean, self.mean - half, self.mean + half, self.seeds)

    def p(self, bound: float = 0.0) -> float:
        """Return the two-sided p of the hypothesis that the mean is not outside ± `bound`; NaN if not tested."""
        if not self.tested:
            return np.nan
        from scipy.special import stdtr

        return float(min(1.0, 2 * stdtr(self.freedom(), -(abs(self.mean) - bound) / self.error())))

    def smallest_effect(self, alpha: float, seeds: int | None = None) -> float:
        """Return the effect that a test at level `alpha` finds with a probability of 80 %; NaN if not tested."""
        if not self.tested:
            return np.nan
        freedom = self.freedom(seeds)
        return (quantile(1 - alpha / 2, freedom) + quantile(POWER, freedom)) * self.error(seeds)

    def decided(self, alpha: float, bound: float, expected: Expected, seeds: int) -> bool:
        """Return whether this mean would decide a claim with `seeds` seeds.

        It does if it is an effect that a test at level `alpha` finds, or if its interval is within ± `bound`
        (not_higher: below it). With `equal`, the effect is what exceeds `bound`."""
        half = quantile((1 + CONFIDENCE) / 2, self.freedom(seeds)) * self.error(seeds)
        effect = abs(self.mean) - (bound if expected == "equal" else 0.0)
        inside = (self.mean if expected == "not_higher" else abs(self.mean)) + half <= bound
        return bool(inside or effect >= self.smallest_effect(alpha, seeds))

    def seeds_to_decide(self, alpha: float, bound: float, expected: Expected) -> float:
        """Return how many seeds would decide a claim if the mean and the variances stay as they are.

        Infinity if more than MOST_SEEDS; NaN if none would, because of the error from the test clips alone."""
        if not self.tested or not self.decided(alpha, bound, expected, UNLIMITED):
            return np.nan
        enough = (seeds for seeds in range(2, MOST_SEEDS + 1) if self.decided(alpha, bound, expected, seeds))
        return next(enough, np.inf)


def quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t distribution."""
    from scipy.special import stdtrit  # the quantile that scipy.stats uses, at half the import time

    return float(stdtrit(freedom, probability))


def linearised(values: np.ndarray) -> np.ndarray:
    """Return values (…, N), whose mean leaves out NaN, as values without NaN of the same mean.

    The mean over the known values is a ratio of two sums, and varies with the sample of clips as the mean of
    `mean + (value - mean) / share of known values` does (0 in place of the last term where the value is NaN)."""
    known = ~np.isnan(values)
    means = np.nanmean(values, axis=-1, keepdims=True)
    return means + np.where(known, values - means, 0.0) / known.mean(axis=-1, keepdims=True)


def by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the contrast of each group (S, G), from values by clip (S, N) and the group of each clip (N,).

    Groups count by their number of clips: the mean over groups is the mean over clips."""
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    mean = values.mean()
    centred = np.stack([np.bincount(number, row - mean, minlength=len(sizes)) for row in values])
    return mean + centred * len(sizes) / len(groups)


def two_way(values: np.ndarray) -> Contrast:
    """Return the contrast of values by seed and group (S, G); with one seed or group, the others' components are 0."""
    seeds, groups = values.shape
    mean = float(values.mean())
    rows, columns = values.mean(1) - mean, values.mean(0) - mean
    rest = values - mean - rows[:, None] - columns
    squares = groups * rows @ rows, seeds * columns @ columns, float((rest**2).sum())
    between, within, residual = (
        float(square) / max(1, freedom)
        for square, freedom in zip(squares, (seeds - 1, groups - 1, (seeds - 1) * (groups - 1)), strict=True)
    )
    seed, group = (between - residual) / groups, (within - residual) / seeds
    return Contrast(mean, max(0.0, seed), max(0.0, group), residual, seeds, groups)
