from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from avdistill.config.schema import Params
from avdistill.reporting.figures import NoDataError, runs
from tests.helpers.pictured import pictured_params


def accuracy(params: Params, job: str, run: str) -> np.ndarray:
    table = pd.read_csv(params.path("evaluate", job) / "metrics.csv")
    return table[(table["run"] == run) & (table["metric"] == "accuracy")].sort_values("seed")["value"].to_numpy()


def test_curves_are_mean_lowest_and_highest_over_seeds(pictured: Params):
    history = pd.read_csv(pictured.path("train", "mnf_csc") / "history.csv")
    seeds = history[(history["run"] == "mnf_csc") & (history["epoch"] == 3)]["val_accuracy"]
    curves = runs.training_curves(pictured).data
    row = curves[(curves["strategy"] == "visual") & (curves["metric"] == "val_accuracy") & (curves["epoch"] == 3)]
    assert row[["mean", "lowest", "highest"]].to_numpy()[0] == pytest.approx([seeds.mean(), seeds.min(), seeds.max()])
    assert set(curves["run"]) == {"mnf_csc", "mnf_csc-audio", "uni_modal"}


def test_every_run_stands_among_those_that_it_can_be_compared_with(pictured: Params):
    raw = pictured.model_dump()
    raw["recipes"]["long"] = raw["recipes"]["short"]
    raw["jobs"]["kd"]["recipe"] = "long"
    drawn = runs.accuracy_of_runs(Params.model_validate(raw))
    shown = [[label.get_text() for label in axis.get_yticklabels()] for axis in drawn.figure.axes]
    assert shown[1] == ["kd"] and "uni_modal" in shown[0] and "kd" not in shown[0]
    assert "recipe long" in drawn.figure.axes[1].get_title() and "cannot be compared" in drawn.caption
    assert len(drawn.data) == 5 * 8 and "cannot be compared" not in runs.accuracy_of_runs(pictured).caption


def test_a_point_of_the_noise_curve_is_a_mean_with_its_interval(pictured: Params):
    data = runs.noise_curve(pictured).data.set_index("run")
    seeds = 100 * accuracy(pictured, "noise", "at_10db")
    low, high = stats.t.interval(0.95, len(seeds) - 1, seeds.mean(), stats.sem(seeds))
    found = data.loc["at_10db", ["accuracy", "accuracy_low", "accuracy_high"]].astype(float).to_numpy()
    assert found == pytest.approx([seeds.mean(), low, high])
    assert data["snr_db"].to_dict() == {
        "uni_modal": "", "mnf_csc": "clean", "at_10db": 10, "at_-10db": -10, "at_10db-no_mask": 10,
    }  # fmt: skip
    assert data["curve"].value_counts().to_dict() == {"with MNF": 3, "": 1, "without MNF": 1}


def test_the_noise_axis_falls_from_clean_to_the_loudest_noise(pictured: Params):
    axis = runs.noise_curve(pictured).figure.axes[0]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["clean", "10", "\N{MINUS SIGN}10"]
    assert axis.get_xticks().tolist() == [30, 10, -10] and axis.get_xlim()[0] > axis.get_xlim()[1]


def test_the_large_set_is_shown_in_percent(pictured: Params):
    drawn = runs.large_set(pictured)
    table = pd.read_csv(pictured.path("evaluate", "mnf_csc") / "metrics.csv")
    seeds = table[(table["run"] == "mnf_csc") & (table["metric"] == "mAP@100/released")]["value"]
    data = drawn.data.set_index(["run", "metric"])["value"]
    assert data["mnf_csc", "mAP@100"] == pytest.approx(100 * seeds.mean())
    assert data["uni_modal", "accuracy"] == pytest.approx(100 * accuracy(pictured, "uni_modal", "uni_modal").mean())
    assert len(data) == 6 and "95 %" in drawn.caption


def test_intervals_beyond_all_or_nothing_are_cut(other: Params):
    for job in other.jobs:
        file = other.path("evaluate", job) / "metrics.csv"
        table = pd.read_csv(file)
        table["value"] = table["value"].where(table["metric"] == "queries", (table["seed"] % 2).astype(float))
        table.to_csv(file, index=False)
    for axis in runs.accuracy_of_runs(other).figure.axes:
        assert axis.get_xlim()[0] > -2 and axis.get_xlim()[1] < 102
    for axis in runs.large_set(other).figure.axes:
        assert axis.get_xlim() == pytest.approx((0, 116))
        assert max(line.get_xdata().max() for line in axis.lines) == 100
    bottom, top = runs.noise_curve(other).figure.axes[0].get_ylim()
    assert bottom > -2 and top < 102


def test_runs_that_are_not_evaluated_are_no_data(tmp_path):
    params = pictured_params(tmp_path)
    for figure in (runs.accuracy_of_runs, runs.noise_curve, runs.large_set, runs.score_histograms):
        with pytest.raises(NoDataError):
            figure(params)


def test_shares_of_a_histogram_add_up_to_one(pictured: Params):
    bins = runs.score_histograms(pictured).data
    assert bins.groupby(["run", "score", "relevant"])["share"].sum().to_numpy() == pytest.approx(1.0)
    assert set(bins["score"]) == {"mask", "tau"} and set(bins["relevant"]) == {"yes", "no"}
    assert set(bins["run"]) == {"mnf_csc"}


def test_scores_without_truth_are_no_histogram(other: Params):
    path = other.path("evaluate", "mnf_csc") / "scores.csv"
    pd.read_csv(path).assign(relevant="").to_csv(path, index=False)
    with pytest.raises(NoDataError, match="relevance"):
        runs.score_histograms(other)
