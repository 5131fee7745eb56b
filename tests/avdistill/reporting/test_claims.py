from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from avdistill.config.loading import load
from avdistill.config.report import Claim, Table
from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_arrays, write_csv
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from avdistill.reporting.claims import beside, claims_sheet, claims_table
from avdistill.reporting.contrasts import Contrasts
from avdistill.reporting.power import power
from avdistill.reporting.results import Interval, interval_of, reported
from avdistill.reporting.suite import EvaluatedSuite
from tests.helpers import both_papers

# Accuracy by run, less that of uni_modal, in points.
EFFECTS = {"mnf_csc": 9.0, "kd": -8.0, "crd-A": 5.0, "rkd-A": 0.0, "ccl-A": 9.2, "xid": 0.1}


def claim(runs: list[str], minus: list[str], **changes: Any) -> dict[str, Any]:
    return {"claim": "a claim", "metric": "accuracy", "runs": runs, "minus": minus} | changes


CLAIMS = {
    "above": claim(["mnf_csc"], ["uni_modal"], reported={"UCF51": 6.4, "ActivityNet": 2.9}),
    "below": claim(["kd"], ["uni_modal"]),
    "lower": claim(["kd"], ["uni_modal"], expected="lower"),
    "means": claim(["mnf_csc", "crd-A"], ["uni_modal", "rkd-A"]),
    "each": claim(["mnf_csc"], ["kd", "crd-A", "rkd-A"], against="each"),
    "best": claim(["mnf_csc"], ["kd", "ccl-A", "crd-A"], against="each"),
    "beaten": claim(["crd-A"], ["kd", "ccl-A", "mnf_csc"], against="each"),
    "equal": claim(["rkd-A"], ["uni_modal"], expected="equal"),
    "unequal": claim(["crd-A"], ["uni_modal"], expected="equal"),
    "no_gain": claim(["kd"], ["uni_modal"], expected="not_higher"),
    "small_gain": claim(["rkd-A"], ["uni_modal"], expected="not_higher"),
    "gain": claim(["crd-A"], ["uni_modal"], expected="not_higher"),
    "nothing": claim(["rkd-A"], ["uni_modal"]),
    "chance": claim(["mnf_csc"], [], metric="auroc/mask"),
    "absent": claim(["cmc-A"], ["uni_modal"]),
    "classes": claim(["crd-A"], ["uni_modal"], metric="classes"),
}
VERDICTS = {
    "above": "holds",
    "below": "does not hold",
    "lower": "holds",
    "means": "holds",
    "each": "holds",
    "best": "does not hold",
    "beaten": "does not hold",
    "equal": "holds",
    "unequal": "does not hold",
    "no_gain": "holds",
    "small_gain": "holds",
    "gain": "does not hold",
    "nothing": "does not hold",
    "chance": "holds",
    "absent": "undecided",
    "classes": "holds",
}


@pytest.fixture
def params(tmp_path: Path) -> Params:
    """The suite of both papers with 12 seeds of Xia's runs, and clips on which the runs differ by EFFECTS."""
    raw = both_papers.suite_params(tmp_path).model_dump()
    raw["report"]["claims"] = CLAIMS
    params = Params.model_validate(raw)
    both_papers.write_suite(params)
    raw["jobs"] = {
        name: job | ({"seeds": list(range(12))} if set(job["runs"]) & {"uni_modal", *EFFECTS} else {})
        for name, job in raw["jobs"].items()
    }
    params = Params.model_validate(raw)
    random = np.random.default_rng(0)
    ids = read_index(params.index("made"))["id"].to_numpy("U")
    for run in ("uni_modal", *EFFECTS):
        for seed in range(12):
            values = 0.6 + EFFECTS.get(run, 0.0) / 100 + random.normal(0, 0.002) + random.normal(0, 0.02, len(ids))
            write_arrays(params.evaluated(run) / f"seed-{seed}.npz", ids=ids, accuracy=values)
    return params


def without_tests(monkeypatch: pytest.MonkeyPatch, params: Params) -> EvaluatedSuite:
    """The evaluated suite; its clips have accuracy only, so the tests of other metrics are left out."""
    monkeypatch.setattr("avdistill.reporting.significance.comparisons", lambda params: [])
    return EvaluatedSuite(params)


def test_verdicts(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = without_tests(monkeypatch, params)
    table = claims_table(suite).set_index("id")
    assert {name: table.loc[name, "verdict"] for name in VERDICTS} == VERDICTS
    assert table.loc["best", "minus"] == "ccl-A" and table.loc["beaten", "minus"] == "ccl-A"
    assert table.loc["beaten", "difference"] == pytest.approx(-4, abs=0.3)
    assert table.loc["means", "difference"] == pytest.approx(7, abs=0.3)
    assert table.loc["means", "groups"] == 120 and table.loc["chance", "groups"] == 1
    assert table.loc["absent", "difference_seeds"] == 1 and np.isnan(table.loc["absent", "p"])
    rows = claims_sheet(suite, table.reset_index())
    assert rows.caption == (
        "Claims: 9 hold, 6 do not hold, 1 undecided. Intervals that exclude the paper's numbers: 1 of 1"
    )
    decided = [row[-1].text in {"holds", "does not hold"} for row in rows.rows]
    assert decided == sorted(decided, reverse=True) and sum(decided) == 15
    assert [row[-1].detail for row in rows.rows if row[0].text == "absent"] == ["one seed"]
    assert rows.rows[0][2].text == "UCF51\N{NO-BREAK SPACE}+6.4, ActivityNet\N{NO-BREAK SPACE}+2.9"
    assert len(rows.rows[0][4].plot.reported) == 2
    assert "accuracy: mean of 2 runs \N{MINUS SIGN} mean of 2 runs" in rows.markdown()


def test_contrasts_are_those_of_the_clips(params: Params) -> None:
    contrasts = Contrasts(params)
    found = contrasts.contrast("accuracy", ("crd-A",), ("uni_modal",))
    means = {
        run: [read_arrays(params.evaluated(run) / f"seed-{seed}.npz")["accuracy"] for seed in range(12)]
        for run in ("crd-A", "uni_modal")
    }
    difference = np.array(means["crd-A"]) - np.array(means["uni_modal"])
    assert found is not None and found.mean == pytest.approx(100 * difference.mean()) and found.seeds == 12
    classes = difference.reshape(12, 10, 24).mean(2)
    share = contrasts.contrast("classes", ("crd-A",), ("uni_modal",))
    assert (classes > 0).all() and share is not None and share.mean == pytest.approx(50)
    padded = np.array([*np.full(11, 50.0), -50.0])  # one class is added on either side
    assert share.groups == 12 and share.error() == pytest.approx(padded.std(ddof=1) / np.sqrt(12))


def test_a_run_that_is_not_evaluated_is_not_measured(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(12):
        (params.path("evaluate", "kd") / "kd" / f"seed-{seed}.npz").unlink()
    table = claims_table(without_tests(monkeypatch, params)).set_index("id")
    missing = table[table["verdict"] == "not measured"]
    assert missing.index.tolist() == ["below", "lower", "each", "best", "beaten", "no_gain"]
    assert interval_of(missing.loc["below"], "difference").seeds == 0


def test_a_seed_that_did_not_converge_is_left_out(params: Params) -> None:
    (params.evaluated("kd") / "seed-4.npz").unlink()
    found = Contrasts(params).contrast("accuracy", ("kd",), ("uni_modal",))
    assert found is not None and found.seeds == 11


def test_runs_on_other_clips_are_an_error(params: Params) -> None:
    path = params.evaluated("kd") / "seed-0.npz"
    arrays = read_arrays(path)
    for seed in range(12):
        write_arrays(path.with_name(f"seed-{seed}.npz"), ids=arrays["ids"][::-1], accuracy=arrays["accuracy"])
    with pytest.raises(UserError, match="other test clips than kd; run"):
        Contrasts(params).contrast("accuracy", ("kd",), ("uni_modal",))


def test_seeds_on_other_clips_are_an_error(params: Params) -> None:
    path = params.evaluated("kd") / "seed-3.npz"
    arrays = read_arrays(path)
    write_arrays(path, ids=arrays["ids"][1:], accuracy=arrays["accuracy"][1:])
    with pytest.raises(UserError, match=r"seed-3\.npz: evaluated on other test clips than other seeds; run"):
        Contrasts(params).contrast("accuracy", ("kd",), ("uni_modal",))


def test_metrics_that_leave_clips_out_have_the_mean_of_the_others(params: Params) -> None:
    random, ids = np.random.default_rng(1), read_arrays(params.evaluated("kd") / "seed-0.npz")["ids"]
    means = {}
    for run in ("kd", "uni_modal"):
        values = random.random((2, len(ids)))
        values[random.random(values.shape) < 0.2] = np.nan
        means[run] = np.nanmean(values, 1)
        for seed in (0, 1):
            path = params.evaluated(run) / f"seed-{seed}.npz"
            write_arrays(path, ids=ids, accuracy=values[seed], **{"mAP@100/released": values[seed]})
        for seed in range(2, 12):
            (params.evaluated(run) / f"seed-{seed}.npz").unlink()
    found = Contrasts(params).contrast("mAP@100", ("kd",), ("uni_modal",))
    assert found is not None and found.mean == pytest.approx(100 * (means["kd"] - means["uni_modal"]).mean())


def test_training_accuracy_of_the_guided_classifier_is_that_of_the_last_epoch(params: Params) -> None:
    rows = [
        {"run": run, "seed": seed, "epoch": epoch, "guided_accuracy": level * epoch + 0.01 * seed}
        for run, level in (("mnf_csc", 0.2), ("mnf_csc-audio", 0.1))
        for seed in (0, 1)
        for epoch in (1, 2, 3)
    ]
    contrasts = Contrasts(params)
    write_csv(params.path("train", "mnf_csc") / "history.csv", pd.DataFrame(rows))
    found = contrasts.contrast("guided_accuracy", ("mnf_csc-audio",), ("mnf_csc",))
    assert found is not None and found.mean == pytest.approx(-30) and found.seeds == 2
    table = pd.DataFrame(rows).drop(columns="guided_accuracy")
    write_csv(params.path("train", "mnf_csc") / "history.csv", table)
    assert Contrasts(params).contrast("guided_accuracy", ("mnf_csc-audio",), ("mnf_csc",)) is None


def test_power_has_a_row_per_claim(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avdistill.reporting.significance.comparisons", lambda params: [])
    lines = [line.split() for line in power(params).splitlines()]
    assert lines[0][-6:] == ["3", "5", "8", "12", "20", "clips"] and [line[0] for line in lines[1:]] == list(CLAIMS)
    sizes = [float(size) for size in lines[1][-6:]]
    assert sizes == sorted(sizes, reverse=True) and lines[1][2] == "+9.2"
    table = claims_table(EvaluatedSuite(params))
    assert float(lines[1][-3]) == pytest.approx(table["smallest_effect"][0], abs=0.05)
    with pytest.raises(UserError, match=r"report\.claims"):
        power(Params.model_validate(params.model_dump() | {"report": {"baseline": "uni_modal"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "acuracy"}, "X1.metric: there is no such metric; did you mean 'accuracy'?"),
        ({"runs": ["mnf_scs"]}, "X1.runs: there is no run 'mnf_scs'; did you mean 'mnf_csc'?"),
        ({"minus": ["unimodal"]}, "X1.minus: there is no run 'unimodal'; did you mean 'uni_modal'?"),
        ({"minus": []}, "X1: minus: accuracy needs runs to compare with"),
        ({"minus": ["activitynet-kd"]}, "X1: activitynet-kd has dataset 'activitynet', mnf_csc has 'ucf51'"),
        ({"expected": "above"}, "X1.expected: 'above' is not a valid value; "),
        ({"bound": 0}, "X1.bound: "),
        ({"against": "every"}, "X1.against: 'every' is not a valid value; "),
        ({"reportd": {}}, "X1.reportd: unknown key; did you mean 'reported'?"),
    ],
)
def test_a_wrong_claim_is_one_line(root: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import yaml

    raw = yaml.safe_load((root / "paper/params.yaml").read_text())
    raw["report"]["claims"] = {"X1": raw["report"]["claims"]["X1"] | change}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as error:
        load(tmp_path / "params.yaml")
    assert f"report.claims.{message}" in str(error.value) and "\n" not in str(error.value)


def scores_of(table: Table, dataset: str, metric: str) -> dict[str, float]:
    """What a paper reports on a dataset for each run of a table."""
    facts = reported(table.model_copy(update={"reported_dataset": dataset})).dropna(subset=["value"])
    facts = facts[facts["metric"] == metric]
    runs = [table.run_of(*row) for row in facts[["method", "setup"]].itertuples(index=False, name=None)]
    return {run: value for run, value in zip(runs, facts["value"], strict=True) if run}


def test_reported_numbers_are_differences_of_the_papers_tables(root: Path) -> None:
    params, checked = load(root / "findings" / "params.yaml"), 0
    datasets = {"UCF51": "ucf51", "ActivityNet": "activitynet", "Kinetics-Sounds": "kinetics_sound"}
    papers = {"X": "xia2023", "C": "chen2021"}
    for name, entry in params.report.claims.items():
        for label, value in entry.reported.items():
            for table in params.report.tables.values():
                scores = scores_of(table, datasets.get(label, ""), entry.metric)
                if table.source == papers[name[0]] and {*entry.runs, *entry.minus} <= set(scores):
                    ours, others = ([scores[run] for run in side] for side in (entry.runs, entry.minus))
                    best = max(others) if entry.against == "each" else np.mean(others)
                    assert value == pytest.approx(np.mean(ours) - best, abs=0.06), (name, label)
                    checked += 1
                    break
    assert checked > 30


def test_a_claim_of_the_area_needs_no_other_run() -> None:
    assert Claim(claim="c", metric="auroc/tau", runs=("mnf_csc",)).minus == ()


def test_intervals_that_exclude_the_paper_s_numbers() -> None:
    """A claim can be undecided although its effect is surely smaller than the paper's."""
    interval = Interval(-1.4, -3.6, 0.8, 21)
    assert beside((6.4, 2.9), interval) == "below the paper"
    assert beside((6.4, 0.5), interval) == "" == beside((), interval)
    assert beside((-9.1,), interval) == "above the paper"
    assert beside((6.4,), Interval(1.0, float("nan"), float("nan"), 1)) == ""
