from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from avdistill.config.schema import Params
from avdistill.reporting import results, significance
from avdistill.reporting.two_way import Contrast, two_way
from tests.helpers import both_papers


@pytest.fixture
def params(tmp_path: Path) -> Params:
    return both_papers.suite_params(tmp_path)


class Drawn:
    """Stands for the contrasts of a suite, with values of accuracy by run and seed."""

    def __init__(self, values: dict[str, pd.Series]) -> None:
        self.values = values

    def contrast(self, metric: str, runs: tuple[str, ...], minus: tuple[str, ...]) -> Contrast | None:
        if metric != "accuracy" or not self.values:
            return None
        return two_way(100 * (self.values[runs[0]] - self.values[minus[0]]).dropna().to_numpy()[:, None])


def drawn(params: Params) -> dict[str, pd.Series]:
    """Accuracy of each run by seed; runs of one job share its seeds."""
    random = np.random.default_rng(0)
    values = {}
    for run, (job, _) in params.runs().items():
        seeds = list(params.jobs[job].seeds)
        values[run] = pd.Series(0.5 + random.normal(0, 0.03) + random.normal(0, 0.002, len(seeds)), seeds)
    return values


def test_p_is_that_of_the_paired_t_test() -> None:
    random = np.random.default_rng(1)
    for count in (2, 3, 5, 20):
        ours, base = random.normal(0.01, 0.02, count), random.normal(0, 0.02, count)
        found = results.paired_p(results.paired_difference(pd.Series(ours), pd.Series(base)))
        assert found == pytest.approx(stats.ttest_rel(ours, base).pvalue, rel=1e-9)
    assert np.isnan(results.paired_p(results.paired_difference(pd.Series([0.5]), pd.Series([0.4]))))


def test_holm_is_the_step_down_of_bonferroni() -> None:
    p = [0.04, 0.001, np.nan, 0.03, 0.6]
    # In order 0.001 * 4, 0.03 * 3, max(0.09, 0.04 * 2), max(0.09, 0.6 * 1).
    np.testing.assert_allclose(results.holm(p), [0.09, 0.004, np.nan, 0.09, 0.6])
    assert results.holm([0.9, 0.8]) == [1.0, 1.0] and results.holm([]) == []


def test_the_corrected_p_is_never_above_bonferroni_nor_below_the_raw_one() -> None:
    p = np.random.default_rng(2).uniform(0, 0.2, 30)
    corrected = np.array(results.holm(p.tolist()))
    assert (corrected >= p).all() and (corrected <= np.minimum(1, 30 * p)).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


def test_comparisons_are_of_runs_that_only_the_method_tells_apart(params: Params) -> None:
    found = significance.comparisons(params)
    pairs = {(c.kind, c.family, c.run, c.base) for c in found}
    assert ("baseline", "xia", "kd", "uni_modal") in pairs
    assert ("baseline", "xia", "tagging-kd", "tagging-uni_modal") in pairs, "another student has a baseline of its own"
    assert ("baseline", "large", "large-ccl", "large-uni_modal") in pairs
    assert ("proposed", "chen", "mnf_csc", "ccl-AI") in pairs and ("proposed", "xia", "mnf_csc", "kd") in pairs
    assert ("proposed", "xia", "tagging-mnf_csc", "tagging-kd") in pairs
    assert ("table", "xia_2", "mnf_csc", "mnf_csc-no_triplet-no_contrast") in pairs
    assert ("table", "xia_3", "noise_0db-mnf", "noise_0db-no_mnf") in pairs
    assert ("table", "noise", "noise_10db-mnf", "noise_10db-no_mnf") in pairs
    assert not any(kind == "proposed" and base.startswith(("mnf_csc", "uni_modal")) for kind, _, _, base in pairs)
    assert not any(results.comparable(params, run, base) is False for _, _, run, base in pairs)
    keys = [(c.run, c.base, c.metric) for c in found]
    assert len(keys) == len(set(keys)), "each comparison is of one family only"
    assert {c.metric for c in found} == {"accuracy", "R@1", "R@5", "R@10", "mAP@100", "mAP@500"}


def test_decisions_are_those_of_holm_within_a_family(params: Params) -> None:
    values = drawn(params)
    table = significance.tests(params, Drawn(values))
    assert set(table["metric"]) == {"accuracy"}
    family = table[(table["kind"] == "baseline") & (table["family"] == "xia")]
    p = [stats.ttest_rel(values[row["run"]], values[row["base"]]).pvalue for _, row in family.iterrows()]
    np.testing.assert_allclose(family["p"], p, rtol=1e-9)
    assert (family["tests"] == len(p)).all()
    order = np.argsort(p)
    rejected = set()
    for rank, row in enumerate(order):  # Holm's procedure in its words: stop at the first that is too large
        if p[row] > 0.05 / (len(p) - rank):
            break
        rejected.add(int(row))
    assert 0 < len(rejected) < len(p)
    for number, (_, row) in enumerate(family.iterrows()):
        sign = values[row["run"]].mean() - values[row["base"]].mean()
        assert row["verdict"] == ("undecided" if number not in rejected else "higher" if sign > 0 else "lower")
    untested = table[table["family"] == "large"]
    assert len(untested) == 3 and untested["p"].isna().all() and (untested["verdict"] == "undecided").all()
    assert (untested["tests"] == 0).all()


def test_a_suite_with_nothing_to_compare_has_no_tests(params: Params) -> None:
    table = significance.tests(params, Drawn({}))
    assert table.empty and {"p_holm", "verdict", "difference"} <= set(table.columns)
