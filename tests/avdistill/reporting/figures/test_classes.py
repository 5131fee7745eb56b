from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from avdistill.config.schema import Params
from avdistill.reporting.figures import classes
from tests.helpers.synthetic import CLASSES


def many_classes(params: Params) -> None:
    """Ten times as many classes and a single seed, in the tables of all runs."""
    for job in params.jobs:
        for name in ("metrics", "per_class", "confusion"):
            path = params.path("evaluate", job) / f"{name}.csv"
            if path.exists():
                table = pd.read_csv(path)
                table = table[table["seed"] == 0]
                columns = [column for column in ("class", "true", "predicted") if column in table]
                more = [
                    table.assign(**{column: table[column] + f" {number}" for column in columns}) for number in range(11)
                ]
                (pd.concat(more) if columns else table).to_csv(path, index=False)


def test_gain_per_class_is_the_mean_difference_by_seed(pictured: Params):
    def accuracy(job: str, run: str) -> np.ndarray:
        table = pd.read_csv(pictured.path("evaluate", job) / "per_class.csv")
        return table[(table["run"] == run) & (table["class"] == "pulsing")].sort_values("seed")["accuracy"].to_numpy()

    drawn = classes.gain_per_class(pictured)
    gains = drawn.data.set_index(["run", "class"])
    expected = 100 * (accuracy("kd", "kd") - accuracy("uni_modal", "uni_modal")).mean()
    assert gains.loc[("kd", "pulsing"), "gain"] == pytest.approx(expected)
    assert gains.index.get_level_values("run").unique().tolist() == ["kd", "mnf_csc"]
    shown = [label.get_text().split(" (")[0] for label in drawn.figure.axes[0].get_xticklabels()]
    assert shown == gains["gain"].groupby("class").mean().sort_values(ascending=False).index.tolist()


def test_one_seed_and_many_classes(other: Params):
    many_classes(other)
    assert len(classes.confusion_matrices(other).data["true"].unique()) == 66
    drawn = classes.gain_per_class(other)
    assert drawn.data["gain_low"].isna().all() and "interval" not in drawn.caption
    assert drawn.data["class"].nunique() == 66 and len(drawn.figure.axes[0].get_xticks()) == 60
    assert "Of 66 classes the 30" in drawn.caption


def test_confusion_shows_the_baseline_and_the_best(pictured: Params):
    drawn = classes.confusion_matrices(pictured)
    assert drawn.data["run"].unique().tolist() == ["mnf_csc", "uni_modal"]
    table = pd.read_csv(pictured.path("evaluate", "mnf_csc") / "confusion.csv")
    same = table[(table["run"] == "mnf_csc") & (table["true"] == "pulsing") & (table["predicted"] == "pulsing")]
    row = drawn.data.set_index(["run", "true", "predicted"])["clips"]
    assert row["mnf_csc", "pulsing", "pulsing"] == same["clips"].sum()


def test_clips_of_a_class_are_neighbours_in_the_map_of_features(pictured: Params):
    data = classes.feature_maps(pictured).data
    counts = data.groupby(["run", "split"]).size()
    assert counts["mnf_csc", "test"] == 35 and counts["mnf_csc", "training"] == 72
    for _, points in data.groupby("run"):
        place = points[["x", "y"]].to_numpy()
        distance = np.linalg.norm(place[:, None] - place[None], axis=2) + np.diag(np.full(len(place), np.inf))
        names = points["class"].to_numpy()
        assert (names[distance.argmin(1)] == names).mean() > 0.9
    assert set(data["class"]) == set(CLASSES)


def test_a_map_shows_few_classes_and_few_clips(pictured: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classes, "CLASSES", 4)
    monkeypatch.setattr(classes, "POINTS", 10)
    drawn = classes.feature_maps(pictured)
    assert drawn.data.groupby(["run", "split"]).size().tolist() == [10] * 4
    assert sorted(set(drawn.data["class"])) == [CLASSES[place] for place in (0, 2, 3, 5)]
    assert "4 of 6 classes" in drawn.caption
