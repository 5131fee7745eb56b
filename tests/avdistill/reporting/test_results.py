from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from avdistill.config.report import Table
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results
from avdistill.reporting.suite import EvaluatedSuite
from tests.helpers.synthetic import suite_params, write_suite


def test_interval_is_student_t():
    values = [0.61, 0.58, 0.66, 0.6]
    found = results.student_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert found == pytest.approx((np.mean(values), low, high, 4), abs=1e-12)
    assert found.half == pytest.approx((high - low) / 2)


def test_interval_of_one_value_and_of_none_is_undefined():
    one = results.student_interval([0.5])
    assert one.mean == 0.5 and not one.defined and one.seeds == 1 and not one.excludes(0)
    assert results.student_interval([np.nan]).seeds == 0


def test_difference_is_the_paired_t_test_over_shared_seeds():
    ours = pd.Series({0: 0.70, 1: 0.64, 2: 0.69, 9: 0.99})
    base = pd.Series({0: 0.61, 1: 0.60, 2: 0.62, 8: 0.01})
    found = results.paired_difference(ours, base)
    expected = stats.ttest_rel([0.70, 0.64, 0.69], [0.61, 0.60, 0.62]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.seeds == 3


def test_equal_differences_claim_nothing():
    ours, base = pd.Series({0: 0.75, 1: 0.5}), pd.Series({0: 0.5, 1: 0.25})
    found = results.paired_difference(ours, base)
    assert found.mean == 0.25 and not found.excludes(0)


def test_names_that_look_like_something_else_stay_names(tmp_path: Path):
    path = tmp_path / "per_class.csv"
    path.write_text("run,seed,class,accuracy\n007,0,NA,\n007,1,None,0.5\n")
    table = results.read_table(path, ("run", "class"))
    assert table["run"].tolist() == ["007", "007"] and table["class"].tolist() == ["NA", "None"]
    assert np.isnan(table["accuracy"][0]) and table["accuracy"][1] == 0.5


@pytest.mark.parametrize(
    "content", ["", "run,seed\nkd,0\n", 'run,metric,value\n"', "run,metric,value\nkd,accuracy,good\n"]
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, content: str):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv") as error:
        results.read_table(path, ("run", "metric", "value"))
    assert "\n" not in str(error.value)


def test_comparison_with_a_table(tmp_path: Path):
    params = suite_params(tmp_path)
    write_suite(params)
    measured = results.gather(params, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
    table = results.compare(params, params.report.tables["xia_1"], measured, EvaluatedSuite(params).gain)
    assert table["method"].unique().tolist()[:3] == ["Uni-modal", "KD", "CRD"]
    row = table.set_index(["method", "metric"]).loc[("MNF+CSC", "mAP@100")]
    assert (row["reported"], row["reported_gain"]) == pytest.approx((91.4, 91.4 - 70.7))
    values = measured[measured["metric"] == "mAP@100/released"].pivot(index="seed", columns="run", values="value")
    assert row["ours"] == pytest.approx(100 * values["mnf_csc"].mean())
    assert row["gain"] == pytest.approx(100 * (values["mnf_csc"] - values["uni_modal"]).mean())
    missing = table[table["method"] == "xID"]
    assert (missing["run"] == "").all() and missing["ours"].isna().all() and missing["reported"].notna().all()


def test_a_row_with_setup_goes_before_one_without():
    table = Table(
        title="t",
        source="chen2021",
        table=1,
        reported_dataset="ucf51",
        metrics=("accuracy",),
        rows={"baseline": "uni", "CCL/AI": "ccl_ai", "CCL": "ccl"},
    )
    assert table.run_of("CCL", "AI") == "ccl_ai" and table.run_of("CCL", "A") == "ccl"
    assert table.run_of("baseline", "I") == "uni" and table.run_of("CMC", "I") is None
    assert table.base == "baseline"
    assert Table.method_and_setup("MNF+CSC w/o L_t") == ("MNF+CSC w/o L_t", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": 9}, "no table 9"),
        ({"reported_dataset": "ucf50"}, "did you mean 'ucf51'"),
        ({"rows": {"Uni-modal": "uni_modal", "MNF+CSV": "mnf_csc"}}, "did you mean 'MNF+CSC'"),
        ({"metrics": ["accurcy"]}, "did you mean 'accuracy'"),
    ],
)
def test_a_table_that_the_paper_does_not_have(tmp_path: Path, change: dict[str, object], message: str):
    table = suite_params(tmp_path).report.tables["xia_1"].model_dump() | change
    with pytest.raises(UserError, match=re.escape(message)) as error:
        results.check_tables(suite_params(tmp_path, tables={"x": table}))
    assert "report.tables.x" in str(error.value)


def test_a_table_must_not_replace_one_of_the_report(tmp_path: Path):
    table = suite_params(tmp_path).report.tables["xia_1"].model_dump()
    with pytest.raises(UserError, match="choose another"):
        results.check_tables(suite_params(tmp_path, tables={"runs": table}))


def test_reported_numbers_are_complete():
    facts = results.read_table(results.REPORTED, ("source", "value"))
    assert len(facts) == 336
    best = facts[(facts["source"] == "chen2021") & (facts["table"] == 1)].set_index(["dataset", "setup", "method"])
    assert best.loc[("ucf51", "AI", "CCL"), "value"] == 70.0
    assert facts["value"].isna().sum() == 8  # Chen gives no RKD for two setups on ActivityNet


def test_a_table_without_rows_is_empty_and_no_error(tmp_path):
    (tmp_path / "empty.csv").write_text("run,seed,score\n")
    assert results.read_table(tmp_path / "empty.csv", ("run", "seed", "score")).empty
