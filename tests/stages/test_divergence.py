"""A training that diverges is a result of its own: it ends, is marked, and no number comes of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_arrays, write_csv
from avdistill.data.loader import ClipSet, teacher_table
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from avdistill.reporting import results
from avdistill.tracking.journal import start
from avdistill.training.inference import NotConvergedError, NotFiniteError, load_student, predict
from avdistill.training.task import trained_student
from models.students import build_student
from stages import evaluate, figures, report, train
from tests.helpers.synthetic import SEEDS, stage, suite_params, write_suite


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage forks its workers, which PyTorch refuses in a process where another test has used autograd."""
    monkeypatch.setattr("avdistill.pipeline.devices.cores", lambda: 1)


@pytest.fixture
def diverging(tiny: Params) -> Params:
    """The tiny suite with a learning rate at which the first step of SGD ends in NaN; one job of two seeds."""
    recipe = tiny.recipes["small"].model_copy(update={"optimizer": "sgd", "lr": 1e30})
    return tiny.model_copy(update={"recipes": tiny.recipes | {"small": recipe}})


def run(params: Params, name: str) -> None:
    module = {"train": train, "evaluate": evaluate}[name]
    with start(name, "uni_modal", params) as tracked:
        module.main(Stage(name, "uni_modal", params, tracked))


def test_it_ends_is_marked_and_gives_no_number(diverging: Params, capsys: pytest.CaptureFixture[str]) -> None:
    run(diverging, "train")
    history = pd.read_csv(diverging.path("train", "uni_modal") / "history.csv")
    assert (history.groupby("seed")["epoch"].max() < diverging.recipes["small"].epochs).all(), "it stops"
    with pytest.raises(NotConvergedError, match=r"seed-0\.pt: the training did not converge"):
        load_student(trained_student(diverging, "uni_modal", 0), 3, torch.device("cpu"))
    run(diverging, "evaluate")
    table = pd.read_csv(diverging.path("evaluate", "uni_modal") / "metrics.csv").set_index(["seed", "metric"])["value"]
    for seed in (0, 1):
        assert table[seed, "converged"] == 0 and math.isnan(table[seed, "accuracy"]) and math.isnan(table[seed, "R@1"])
    measured = results.gather(diverging, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
    assert results.student_interval(results.by_seed(measured, "uni_modal", "accuracy")).seeds == 0


def test_a_run_of_which_one_seed_diverged_has_the_mean_of_the_others(tiny: Params) -> None:
    run(tiny, "train")
    path = tiny.path("train", "uni_modal") / "uni_modal" / "seed-1.pt"
    torch.save({"run": "uni_modal", "seed": 1, "converged": False, "epoch": 2}, path)
    run(tiny, "evaluate")
    measured = results.gather(tiny, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
    values = results.by_seed(measured, "uni_modal", "accuracy")
    interval = results.student_interval(values)
    assert interval.seeds == 1 and interval.mean == values[0] and math.isnan(values[1])


def test_a_student_that_answers_with_nan_names_the_clip(tiny: Params) -> None:
    clips = ClipSet(tiny.index("avsynth"), tiny.path("frames", "avsynth"), ("test",))
    student = build_student("r2plus1d_10", clips.classes, 0.0625)
    torch.nn.init.constant_(student.fc.bias, torch.nan)
    with pytest.raises(NotFiniteError, match=f"clip '{clips.ids[0]}': .*{len(clips)} of {len(clips)} clips"):
        predict(student, clips, tiny.recipes["small"], torch.device("cpu"))


@pytest.mark.parametrize("name", ["features", "logits"])
def test_what_a_teacher_knows_that_is_not_finite_names_file_and_clip(tiny: Params, name: str) -> None:
    clips = ClipSet(tiny.index("avsynth"), tiny.path("frames", "avsynth"), ("train",))
    features, head = tiny.path("teacher_features", "avsynth_audio"), tiny.path("teacher_head", "avsynth_audio")
    file = {"features": features, "logits": head}[name] / f"{name}.npz"
    stored, changed = read_arrays(features / "features.npz"), read_arrays(file)
    row = int(np.flatnonzero((stored["ids"] == clips.ids[3]) & stored["mask"])[0])
    changed[name][row, -1] = np.nan
    write_arrays(file, **changed)
    with pytest.raises(UserError, match=rf"{name}\.npz: {name} of clip '{clips.ids[3]}' are not finite \(1 clip"):
        teacher_table(features, head, clips)


def test_tables_show_a_dash_and_say_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed of MNF+CSC and all of KD diverged: the first has the mean of the others, the second a dash."""
    params = suite_params(tmp_path)
    write_suite(params)
    for job, lost in (("kd", set(SEEDS)), ("mnf_csc", {2})):
        path = params.path("evaluate", job) / "metrics.csv"
        table = pd.read_csv(path)
        bad = table["seed"].isin(lost) & (table["run"] == job)
        marks = [{"run": job, "seed": seed, "metric": "converged", "value": 0.0} for seed in lost]
        table.loc[bad, "value"] = np.nan
        write_csv(path, pd.concat([table, pd.DataFrame(marks)], ignore_index=True))
        for seed in lost:
            (path.parent / job / f"seed-{seed}.npz").unlink()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    figures.main(stage("figures", params))
    report.main(stage("report", params))
    tables = params.path("report") / "tables"
    scores = (tables / "xia_1-scores.md").read_text()
    assert "| KD | kd | 65.8 | \N{EN DASH} |" in scores
    runs = pd.read_csv(tables / "runs.csv").set_index("run")
    assert runs.loc["mnf_csc", "not_converged"] == 1 and runs.loc["mnf_csc", "accuracy_seeds"] == 4
    assert runs.loc["kd", "not_converged"] == 5 and math.isnan(runs.loc["kd", "accuracy"])
    assert runs.loc["uni_modal", "not_converged"] == 0
    page = (params.path("report") / "index.html").read_text()
    assert "5 (1 not converged)" in page and "6 trainings did not converge" in page
    assert "nan" not in page.lower().split()
