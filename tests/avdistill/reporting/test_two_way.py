"""Contrasts over seeds and test clips, against least squares, against scipy, and by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from avdistill.reporting.results import by_draw, holm
from avdistill.reporting.two_way import UNLIMITED, Contrast, by_group, linearised, two_way

REPEATS = 4000


def least_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, groups and residual, by fitting nested linear models to (S, G)."""
    seeds, groups = values.shape
    row, column = (axis.ravel() for axis in np.indices(values.shape))
    one, a, b = np.ones((values.size, 1)), np.eye(seeds)[row], np.eye(groups)[column]

    def rest(*parts: np.ndarray) -> float:
        design = np.hstack(parts)
        fitted = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return float(((values.ravel() - fitted) ** 2).sum())

    full = rest(one, a, b)
    return (
        (rest(one, b) - full) / (seeds - 1),
        (rest(one, a) - full) / (groups - 1),
        full / ((seeds - 1) * (groups - 1)),
    )


def sampled(random: np.random.Generator, shape: tuple[int, ...], sd: tuple[float, float, float]) -> np.ndarray:
    """Contrasts (…, S, G) around 0 with effects of seeds, groups and residual of these standard deviations."""
    *tables, seeds, groups = shape
    seed, group = random.normal(0, sd[0], (*tables, seeds, 1)), random.normal(0, sd[1], (*tables, 1, groups))
    return seed + group + random.normal(0, sd[2], shape)


def test_components_are_those_of_least_squares() -> None:
    values = sampled(np.random.default_rng(0), (5, 40), (0.3, 0.2, 0.4)) + 0.1
    seed, group, residual = least_squares(values)
    found = two_way(values)
    assert found.residual == pytest.approx(residual)
    assert found.seed == pytest.approx((seed - residual) / 40) and found.group == pytest.approx((group - residual) / 5)
    assert found.error() ** 2 == pytest.approx((seed + group - residual) / 200)
    freedom = (seed + group - residual) ** 2 / (seed**2 / 4 + group**2 / 39 + residual**2 / 156)
    half = stats.t.ppf(0.975, freedom) * found.error()
    assert found.interval() == pytest.approx((values.mean(), values.mean() - half, values.mean() + half, 5))
    assert found.p() == pytest.approx(2 * stats.t.sf(abs(values.mean()) / found.error(), freedom))


def test_a_component_below_zero_is_zero() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0, 1, (4, 30))
    values -= values.mean(1, keepdims=True)  # seeds agree more than the residual allows
    found = two_way(values)
    assert found.seed == 0 and found.error() ** 2 >= found.residual / values.size * (1 - 1e-9)


def test_values_by_seed_alone_are_the_t_test() -> None:
    values = np.random.default_rng(2).normal(0.5, 1, (6, 1))
    found, expected = two_way(values), stats.ttest_1samp(values[:, 0], 0)
    assert found.p() == pytest.approx(expected.pvalue)
    assert found.interval()[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("values", [np.ones((1, 8)), np.zeros((3, 8)), np.full((3, 1), 0.5), np.full((3, 7), 0.1)])
def test_one_seed_and_equal_values_decide_nothing(values: np.ndarray) -> None:
    found = two_way(values)
    assert not found.tested and not found.interval().defined and np.isnan(found.p())
    assert np.isnan(found.smallest_effect(0.05)) and np.isnan(found.seeds_to_decide(0.05, 1.0, "higher"))


def test_mean_over_groups_is_the_mean_over_clips() -> None:
    random = np.random.default_rng(3)
    groups = random.choice(list("abcdefgh"), 50)
    values = random.normal(size=(3, 50))
    found = by_group(values, groups)
    assert found.shape == (3, len(set(groups))) and found.mean(1) == pytest.approx(values.mean(1))
    assert by_group(np.full((2, 50), 0.7), groups) == pytest.approx(0.7), "sizes of groups are no variation"
    assert by_group(values, np.arange(50)) == pytest.approx(values)


def test_a_mean_that_leaves_clips_out_is_linearised() -> None:
    random = np.random.default_rng(4)
    values = random.normal(3, 1, (2, 4000))
    values[random.random(values.shape) < 0.3] = np.nan
    found = linearised(values)
    assert found.mean(1) == pytest.approx(np.nanmean(values, 1))
    known = (~np.isnan(values)).sum(1)
    assert found.std(1) / np.sqrt(4000) == pytest.approx(np.nanstd(values, 1) / np.sqrt(known), rel=1e-9)
    whole = random.normal(size=(2, 9))
    assert linearised(whole) == pytest.approx(whole)


# Standard deviations of seeds, groups and residual as shares of clips: a seed changes the accuracy of a run by some
# points; a group has a few clips, on which two students differ or not.
@pytest.mark.parametrize("sd", [(0.05, 0.1, 0.3), (0.08, 0.15, 0.4)])
@pytest.mark.parametrize(("seeds", "groups"), [(5, 40), (5, 200), (8, 80), (12, 40), (12, 200)])
def test_nineteen_of_twenty_intervals_cover_the_truth(seeds: int, groups: int, sd: tuple[float, float, float]) -> None:
    random = np.random.default_rng(seeds * groups)
    means = [two_way(values).interval() for values in sampled(random, (REPEATS // 2, seeds, groups), sd)]
    assert 0.93 <= np.mean([low <= 0 <= high for _, low, high, _ in means]) <= 0.97


def of_teachers(random: np.random.Generator, draws: int, teacher: float) -> list[pd.DataFrame]:
    """Contrasts of 21 seeds that learn from `draws` teachers in turn, on 60 groups (index: seed).

    A teacher changes the mean of its seeds with a standard deviation of `teacher`, and each group with 0.1."""
    tables = sampled(random, (REPEATS // 2, 21, 60), (0.05, 0.1, 0.3))
    effects = sampled(random, (REPEATS // 2, draws, 60), (teacher, 0.0, 0.1))
    return [pd.DataFrame(table) for table in tables + effects[:, np.arange(21) % draws]]


@pytest.mark.parametrize(("draws", "teacher"), [(7, 0.0), (7, 0.08), (21, 0.08)])
def test_intervals_cover_other_teachers(draws: int, teacher: float) -> None:
    tables = of_teachers(np.random.default_rng(draws), draws, teacher)
    means = [two_way(by_draw(table, draws).to_numpy()).interval() for table in tables]
    assert {mean.seeds for mean in means} == {draws}
    assert 0.93 <= np.mean([low <= 0 <= high for _, low, high, _ in means]) <= 0.97


def test_seeds_that_share_teachers_are_no_sample_of_teachers() -> None:
    """The control: intervals over 21 seeds, as if each had teachers of its own, are too narrow."""
    tables = of_teachers(np.random.default_rng(7), 7, 0.08)
    means = [two_way(table.to_numpy()).interval() for table in tables]
    assert np.mean([low <= 0 <= high for _, low, high, _ in means]) < 0.88


@pytest.mark.parametrize("sd", [(0.0, 0.15, 0.4), (0.02, 0.0, 0.3), (0.1, 0.05, 0.3)])
@pytest.mark.parametrize(("seeds", "groups"), [(3, 12), (3, 120), (8, 60)])
def test_intervals_are_not_too_narrow_at_the_limits(seeds: int, groups: int, sd: tuple[float, float, float]) -> None:
    """Few seeds and groups, or a component of 0, make intervals wider than they need to be."""
    random = np.random.default_rng(seeds * groups)
    means = [two_way(values).interval() for values in sampled(random, (REPEATS // 4, seeds, groups), sd)]
    assert np.mean([low <= 0 <= high for _, low, high, _ in means]) >= 0.93


@pytest.mark.parametrize(("seeds", "groups"), [(5, 60), (8, 60)])
def test_where_nothing_is_to_be_found_few_tables_claim_anything(seeds: int, groups: int) -> None:
    """Tables of 20 claims, all against one baseline: the family-wise error rate is at most 5 %."""
    random = np.random.default_rng(7)
    tables = REPEATS // 8
    baseline = sampled(random, (tables, 1, seeds, groups), (0.04, 0.1, 0.25))
    values = sampled(random, (tables, 20, seeds, groups), (0.04, 0.1, 0.25)) - baseline
    called = [min(holm([two_way(claim).p() for claim in table])) < 0.05 for table in values]
    assert np.mean(called) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / tables)


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    sd, alpha = (0.04, 0.1, 0.3), 0.05 / 20
    truth = Contrast(0.0, *(part**2 for part in sd), 10, 100)
    effect = truth.smallest_effect(alpha)
    values = sampled(np.random.default_rng(8), (REPEATS // 4, 10, 100), sd) + effect
    assert np.mean([two_way(each).p() < alpha for each in values]) == pytest.approx(0.8, abs=0.06)
    assert truth.smallest_effect(alpha, 20) < effect < truth.smallest_effect(alpha, 5)


def test_seeds_that_decide() -> None:
    clips = Contrast(3.0, 4.0, 100.0, 100.0, 5, 50)  # the error from the clips alone is 1.4
    assert np.isnan(clips.seeds_to_decide(0.001, 1.0, "higher")), "no number of seeds decides"
    seeds = clips._replace(mean=6.0, group=1.0).seeds_to_decide(0.001, 1.0, "higher")
    assert clips._replace(mean=6.0, group=1.0).smallest_effect(0.001, int(seeds)) <= 6.0
    assert clips._replace(mean=6.0, group=1.0).smallest_effect(0.001, int(seeds) - 1) > 6.0
    small = Contrast(0.0, 4.0, 0.1, 1.0, 5, 50)
    within = small.seeds_to_decide(0.001, 1.0, "higher")
    assert stats.t.ppf(0.975, small.freedom(int(within))) * small.error(int(within)) <= 1.0
    assert small.seeds_to_decide(0.001, 0.2, "higher") == np.inf, "more than one looks for"
    assert small.error(UNLIMITED) == pytest.approx(np.sqrt(0.1 / 50), rel=1e-4)
    beyond = small._replace(mean=5.0)
    assert beyond.decided(0.001, 1.0, "equal", 30) and not beyond.decided(0.001, 4.9, "equal", 30)
    below = small._replace(mean=-3.0)
    assert below.seeds_to_decide(0.001, 1.0, "not_higher") < below.seeds_to_decide(0.001, 1.0, "higher")
