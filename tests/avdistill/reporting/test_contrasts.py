"""Teachers with several draws: seeds that share a draw count as one, in contrasts and in scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_json
from avdistill.data.index import read_index
from avdistill.reporting import results
from avdistill.reporting.claims import claims_sheet, claims_table
from avdistill.reporting.contrasts import Contrasts
from avdistill.reporting.extra_tables import detection_table
from avdistill.reporting.figures import runs as figures
from avdistill.reporting.power import power
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.suite_tables import teachers_table
from avdistill.reporting.two_way import by_group, two_way
from tests.helpers.synthetic import suite_params, write_suite

SHARED = ([0, 2, 4], [1, 3])  # the five seeds of the suite, by draw


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    made = suite_params(tmp_path_factory.mktemp("suite"))
    write_suite(made)
    random = np.random.default_rng(0)
    for path in sorted(made.path("evaluate").glob("*/*/seed-*.npz")):  # the clips differ by seed and run
        arrays = read_arrays(path)
        noisy = {name: values + random.normal(0, 0.1, len(values)) for name, values in arrays.items() if name != "ids"}
        np.savez(path, ids=arrays["ids"], **noisy)
    return made


def drawn(params: Params, draws: int) -> Params:
    teacher = params.teachers["ear"].model_copy(update={"draws": draws})
    return params.model_copy(update={"teachers": {"ear": teacher}})


def clips(params: Params, run: str) -> np.ndarray:
    """Accuracy by seed and clip (5, N)."""
    folder = params.evaluated(run)
    return np.array([read_arrays(folder / f"seed-{seed}.npz")["accuracy"] for seed in range(5)])


def test_a_contrast_is_averaged_over_the_seeds_of_a_draw(params: Params) -> None:
    found = Contrasts(drawn(params, 2)).contrast("accuracy", ("mnf_csc",), ("uni_modal",))
    values = clips(params, "mnf_csc") - clips(params, "uni_modal")
    index = read_index(params.index("made")).set_index("id")
    ids = read_arrays(params.evaluated("kd") / "seed-0.npz")["ids"]
    groups = index.loc[ids, "group"].to_numpy(dtype=str)
    means = np.array([values[seeds].mean(0) for seeds in SHARED])
    assert found is not None and found.seeds == 2
    assert found == pytest.approx(two_way(100 * by_group(means, groups)))
    one = Contrasts(params).contrast("accuracy", ("mnf_csc",), ("uni_modal",))
    assert one == two_way(100 * by_group(values, groups)), "one draw: as if there were none"
    many = Contrasts(drawn(params, 5)).contrast("accuracy", ("mnf_csc",), ("uni_modal",))
    assert many == pytest.approx(one), "a draw for every seed: as if there were none"


def test_classes_keep_their_sign_by_seed(params: Params) -> None:
    """The share of classes is that of a student, not of the mean of the students of a draw."""
    found = Contrasts(drawn(params, 2)).contrast("classes", ("kd",), ("uni_modal",))
    index = read_index(params.index("made")).set_index("id")
    ids = read_arrays(params.evaluated("kd") / "seed-0.npz")["ids"]
    difference = pd.DataFrame((clips(params, "kd") - clips(params, "uni_modal")).T)
    sides = 50 * np.sign(difference.groupby(index.loc[ids, "class"].to_numpy()).sum().to_numpy().T)
    assert found is not None and found.seeds == 2
    assert found.mean == pytest.approx(np.mean([sides[seeds].mean() for seeds in SHARED]))


def test_metrics_and_scores_with_one_value_by_seed(params: Params) -> None:
    suite = EvaluatedSuite(drawn(params, 2))
    rows = suite.detection.query("run == 'mnf_csc' and score == 'mask' and split == 'test'")
    aurocs = rows.set_index("seed")["auroc"]
    means = [aurocs[seeds].mean() for seeds in SHARED]
    contrast = suite.contrasts.contrast("auroc/mask", ("mnf_csc",), ())
    assert contrast is not None and contrast.seeds == 2 and contrast.mean == pytest.approx(100 * np.mean(means) - 50)
    table = detection_table(suite).set_index(["run", "score", "split"]).loc[("mnf_csc", "mask", "test")]
    assert (table["auroc"], table["auroc_seeds"]) == (pytest.approx(np.mean(means)), 2)
    accuracy = suite.values("kd", "accuracy")
    expected = results.percent(results.student_interval([accuracy[seeds].mean() for seeds in SHARED]))
    assert suite.score("kd", "accuracy") == pytest.approx(expected)
    assert results.percent(results.score(suite.params, suite.measured, "kd", "accuracy")) == pytest.approx(expected)
    assert EvaluatedSuite(params).score("kd", "accuracy").seeds == 5


def test_a_draw_all_of_whose_seeds_diverged_is_left_out() -> None:
    values = pd.Series([np.nan, 1.0, 2.0, np.nan, 4.0], range(5))
    assert results.by_draw(values, 3).dropna().to_dict() == {1: 2.5, 2: 2.0}
    assert results.student_interval(results.by_draw(values, 3)).seeds == 2
    difference = results.paired_difference(values, pd.Series([0.0, 0.5, 1.0, 0.0], range(4)), 2)
    assert (difference.mean, difference.seeds) == (0.75, 2), "paired by seed before anything is averaged"


def test_the_report_says_what_intervals_cover(params: Params) -> None:
    for draws, words in {
        1: "which covers other seeds and test clips, not other teachers; AUROC",
        2: "which covers other seeds, test clips and trainings of ear (seeds that share one count as one); AUROC",
        5: "which covers other seeds, test clips and trainings of ear; AUROC",
    }.items():
        suite = EvaluatedSuite(drawn(params, draws))
        sheet = claims_sheet(suite, claims_table(suite))
        assert words in sheet.markdown()
        assert ("trainings of ear" in power(suite.params)) == (draws > 1)


def test_the_teachers_accuracy_is_the_mean_of_its_draws(params: Params) -> None:
    folder = params.path("teacher_head", "made_A")
    accuracy = {"train": 0.7, "distilled": 0.4, "val": 0.5, "test": 0.38}
    write_json(folder / "draw-1/metrics.json", {"accuracy": accuracy, "agreement": 0.38, "classes": 6, "cross_fit": 5})
    one, two = (teachers_table(EvaluatedSuite(each)).iloc[0] for each in (params, drawn(params, 2)))
    assert one["test"] == pytest.approx(58) and two["test"] == pytest.approx(48)
    assert two["in-sample"] == pytest.approx(80) and two["clips"] == one["clips"]


def test_figures_have_the_same_intervals(params: Params, tmp_path: Path) -> None:
    figure = figures.accuracy_of_runs(drawn(params, 2))
    axis = figure.figure.axes[0]
    row = [label.get_text() for label in axis.get_yticklabels()].index("kd")
    lines = [line for line in axis.lines if set(line.get_ydata()) == {row}]
    accuracy = EvaluatedSuite(drawn(params, 2)).score("kd", "accuracy")
    interval, rings, mean = (np.asarray(line.get_xdata(), dtype=float) for line in lines)
    assert interval == pytest.approx([accuracy.low, accuracy.high]) and mean == pytest.approx(accuracy.mean)
    assert len(rings) == 5, "every seed"
