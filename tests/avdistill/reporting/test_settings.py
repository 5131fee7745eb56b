from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_arrays
from avdistill.data.index import read_index
from avdistill.reporting.figures import NoDataError, runs
from avdistill.reporting.information import predictor_of
from avdistill.reporting.page import MINUS
from avdistill.reporting.settings import (
    agreement_notes,
    predictors_table,
    settings_sheet,
    settings_table,
    verdict_of,
)
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.teacher_heads import estimated_share
from tests.helpers.synthetic import suite_params, write_suite

MAIN = {
    "title": "Main setting",
    "baseline": "uni_modal",
    "runs": {"KD": "kd", "MNF+CSC": "mnf_csc"},
    "A": "made_A",
}
# The same runs, and one without a method that the others have.
SETTINGS = {"main": MAIN, "part": MAIN | {"title": "Only KD", "runs": {"KD": "kd"}}}


def write_features(params: Params) -> None:
    """Write what stages evaluate and teacher_features add for the predictors; the teacher's rows in another order."""
    rng = np.random.default_rng(3)
    index = read_index(params.index("made"))
    index = index[index["status"] == "ok"].sort_values("id", ascending=False)
    centres = rng.normal(size=(6, 4))
    write_arrays(
        params.path("teacher_features", "made_A") / "features.npz",
        ids=index["id"].to_numpy("U"),
        features=(centres[index["label"]] + rng.normal(size=(len(index), 4))).astype(np.float32),
        mask=(index["audio"] == "yes").to_numpy(),
    )
    path = params.evaluated("uni_modal") / "seed-0.npz"
    arrays = read_arrays(path, ("*",))
    labels = index.set_index("id").loc[arrays["ids"], "label"].to_numpy()
    features = (centres[labels] + rng.normal(size=(len(labels), 4))).astype(np.float32)
    write_arrays(path, **(arrays | {"labels": labels, "features": features}))


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    params = suite_params(tmp_path_factory.mktemp("suite"), settings=SETTINGS)
    write_suite(params)
    write_features(params)
    return params


@pytest.fixture(scope="module")
def table(params: Params) -> pd.DataFrame:
    return settings_table(EvaluatedSuite(params))


def test_a_row_has_the_gain_of_a_method_over_the_baseline(params: Params, table: pd.DataFrame):
    suite = EvaluatedSuite(params)
    assert table[["setting", "method", "run"]].to_numpy().tolist() == [
        ["main", "KD", "kd"], ["main", "MNF+CSC", "mnf_csc"], ["part", "KD", "kd"],
    ]  # fmt: skip
    accuracy = 100 * suite.values("uni_modal", "accuracy")
    assert table["accuracy"].tolist() == pytest.approx([accuracy.mean()] * 3)
    assert table["sd"].tolist() == pytest.approx([accuracy.std(ddof=1)] * 3)
    gain = suite.gain("mnf_csc", "uni_modal")
    assert table.loc[1, ["gain", "gain_low", "gain_high", "gain_seeds"]].tolist() == pytest.approx(list(gain))
    assert table["verdict"].tolist() == ["lower", "higher", "lower"]
    p = table["p"].to_numpy()
    assert table["p_holm"].max() == pytest.approx(max(np.sort(p) * [3, 2, 1]))


def test_the_predictors_are_those_of_test_clips_with_sound(params: Params, table: pd.DataFrame):
    teacher = read_arrays(params.path("teacher_features", "made_A") / "features.npz", ("*",))
    student = read_arrays(params.evaluated("uni_modal") / "seed-0.npz", ("*",))
    index = read_index(params.index("made")).set_index("id")
    features = dict(zip(teacher["ids"], teacher["features"], strict=True))
    heard = index.loc[student["ids"], "audio"].to_numpy() == "yes"
    ids = student["ids"][heard]
    sides = np.array([features[name] for name in ids], dtype=float), student["features"][heard].astype(float)
    expected = predictor_of(*sides, student["labels"][heard], index.loc[ids, "group"].to_numpy(dtype=str))
    row = table.iloc[0]
    assert row["clips"] == heard.sum()
    for name in ("beyond_label", "margin", "log_odds_margin", "gamma", "cka", "alpha", "beta"):
        assert row[name] == pytest.approx(getattr(expected, name), abs=1e-4, nan_ok=True)
    assert row["I(T;Y)"] == pytest.approx(expected.teacher, abs=1e-4)
    assert row["I(T;S) nearest"] == pytest.approx(expected.nearest, abs=1e-4)
    assert row["teacher_accuracy"] == pytest.approx(58)
    assert row["wrong_labels"] == pytest.approx(estimated_share(0.5, 0.58, 6), abs=1e-4)


def test_a_sheet_has_one_row_per_setting(params: Params, table: pd.DataFrame):
    sheet = settings_sheet(EvaluatedSuite(params), table, predictors_table(table))
    assert [row[0].text for row in sheet.rows] == ["Main setting", "Only KD"]
    assert sheet.groups()[1:] == [("no teacher", 2), ("gain", 2), ("predictor", 7)]
    main, part = (row[3:5] for row in sheet.rows)
    assert main[0].text.startswith(MINUS) and "strong" in main[0].look and main[1].text.startswith("+")
    assert part[1].text == "not run"
    assert "No claim: fewer than 8 settings." in sheet.notes[-1]
    assert sheet.markdown().startswith("### Gain by setting") and "nan" not in sheet.markdown()


def test_settings_without_runs_or_features_are_left_out(tmp_path: Path):
    params = suite_params(tmp_path, settings=SETTINGS)
    write_suite(params)
    shutil.rmtree(params.path("evaluate", "kd"))
    table = settings_table(EvaluatedSuite(params))
    assert table["setting"].tolist() == ["main", "main"] and table["verdict"].tolist() == ["", "higher"]
    assert table["clips"].tolist() == [0, 0] and table["beyond_label"].isna().all()
    agreement = predictors_table(table)
    assert agreement["predictor"].tolist() == ["wrong_labels", "teacher_accuracy"], "which need no features"
    sheet = settings_sheet(EvaluatedSuite(params), table, agreement)
    assert sheet.rows[0][3].text == "not run" and sheet.rows[0][-3].text == "\N{EN DASH}"
    with pytest.raises(NoDataError, match="no setting"):
        runs.gain_by_setting(params)
    shutil.rmtree(params.path("evaluate", "uni_modal"))
    assert settings_table(EvaluatedSuite(params)).empty


def test_the_figure_shows_the_gains_of_the_table(params: Params, table: pd.DataFrame):
    drawn = runs.gain_by_setting(params)
    assert drawn.data["gain"].tolist() == table["gain"].tolist()
    assert drawn.data["beyond_label"].tolist() == pytest.approx(table["beyond_label"].tolist(), abs=1e-4)
    assert [text.get_text() for text in drawn.figure.axes[0].get_legend().get_texts()] == ["KD", "MNF+CSC"]


@pytest.mark.parametrize(
    ("gain", "p", "verdict"),
    [
        ((3.0, 1.0, 5.0, 9), 0.01, "higher"),
        ((-3.0, -5.0, -1.0, 9), 0.01, "lower"),
        ((3.0, 1.0, 5.0, 9), 0.06, "undecided"),
        ((0.1, -0.7, 0.9, 9), 1.0, "not higher"),
        ((0.1, np.nan, np.nan, 1), np.nan, "undecided"),
        ((np.nan, np.nan, np.nan, 0), np.nan, ""),
    ],
)
def test_a_verdict(gain: tuple[float, float, float, int], p: float, verdict: str):
    names = ("gain", "gain_low", "gain_high", "gain_seeds")
    assert verdict_of({**dict(zip(names, gain, strict=True)), "p_holm": p}) == verdict


def made_up(settings: int) -> pd.DataFrame:
    """Gains that beyond_label orders perfectly, margin in reverse; one is too small to count, the last undecided."""
    rows: list[dict[str, Any]] = []
    for number in range(settings):
        gain = number - 3 or 0.1
        verdict = "higher" if gain > 0.1 else "not higher" if gain > 0 else "lower"
        rows.append({"setting": str(number), "method": "KD", "gain": gain, "verdict": verdict})
        rows[-1] |= {"beyond_label": max(0.0, gain) / 10, "margin": -gain, "gamma": np.nan if number else 1.0}
        rows[-1] |= {"log_odds_margin": np.nan, "cka": gain**3, "wrong_labels": np.nan, "teacher_accuracy": 58.0}
    rows[-1]["verdict"] = "undecided"
    return pd.DataFrame(rows)


def test_a_predictor_is_right_where_it_has_the_sign_of_the_gain():
    found = predictors_table(made_up(9)).set_index("predictor")
    assert found.loc["beyond_label", ["agree", "decided", "settings"]].tolist() == [8, 8, 9]
    assert found.loc["margin", ["agree", "decided", "settings"]].tolist() == [1, 8, 9]
    assert found.loc["gamma", ["agree", "decided", "settings"]].tolist() == [0, 1, 1]
    assert found.loc["margin", "rho"] == pytest.approx(-1) and np.isnan(found.loc["gamma", "rho"])
    notes = agreement_notes(found.reset_index())
    assert notes[0].startswith("Right with beyond label: KD 8 of 8, rho 0.9") and notes[0].endswith("(n = 9).")
    assert notes[1] == f"Right with margin: KD 1 of 8, rho {MINUS}1.00 (n = 9)."
    assert notes[2] == "Right with gamma: KD no claim: fewer than 8 settings."
    assert notes[3] == "Right with CKA: KD rho 1.00 (n = 9).", "it predicts an order, and no sign"
    assert notes[4] == "Right with teacher accuracy: KD rho \N{EN DASH} (n = 9).", "all the same"


def test_few_settings_claim_nothing():
    notes = agreement_notes(predictors_table(made_up(7)))
    assert notes == ["Do the predictors tell where a method helps? No claim: fewer than 8 settings."]
