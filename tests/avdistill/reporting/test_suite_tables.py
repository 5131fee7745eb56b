from __future__ import annotations

from pathlib import Path

import pandas as pd

from avdistill.config.schema import Params
from avdistill.reporting import results
from avdistill.reporting.paper_tables import paper_section
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.suite_tables import dataset_sheet, dataset_table, seen_in_training, teachers_sheet
from stages.report import DrawnFigures, data_chapter
from tests.helpers.synthetic import suite_params, write_suite

ROWS = [  # split, class, group, seconds, audio, status
    ("train", "a", "a1", 60.0, "yes", "ok"),
    ("train", "a", "a1", 30.0, "silent", "ok"),
    ("train", "b", "b1", 0.0, "no", "unavailable"),
    ("train", "b", "b2", 0.0, "no", "corrupt"),
    ("val", "b", "b3", 30.0, "yes", "ok"),
    ("test", "a", "a2", 0.0, "no", "excluded"),
    ("test", "a", "a3", 0.0, "no", "unavailable"),
]


def index(*statuses: str) -> pd.DataFrame:
    """The clips of ROWS that have one of these statuses."""
    table = pd.DataFrame(ROWS, columns=["split", "class", "group", "seconds", "audio", "status"])
    return table[table["status"].isin(statuses)]


def test_clips_are_counted_by_part_and_by_what_is_amiss() -> None:
    table = dataset_table(index("ok", "corrupt", "unavailable", "excluded")).set_index("split")
    counts = table[["clips", "corrupt", "unavailable", "excluded"]].to_dict("index")
    assert counts == {
        "train": {"clips": 4, "corrupt": 1, "unavailable": 1, "excluded": 0},
        "val": {"clips": 1, "corrupt": 0, "unavailable": 0, "excluded": 0},
        "test": {"clips": 2, "corrupt": 0, "unavailable": 1, "excluded": 1},
        "all": {"clips": 7, "corrupt": 1, "unavailable": 2, "excluded": 1},
    }
    assert table.loc["all", ["classes", "groups", "minutes", "sound yes", "sound silent"]].tolist() == [2, 6, 2, 2, 1]


def test_columns_of_what_does_not_occur_are_left_out() -> None:
    assert {"unavailable", "excluded"}.isdisjoint(dataset_table(index("ok", "corrupt")).columns)
    assert dataset_table(index("ok"))["corrupt"].tolist() == [0, 0, 0, 0]
    some = dataset_sheet("d", dataset_table(index("ok", "unavailable")))
    assert [column.heading for column in some.columns][-2:] == ["corrupt", "unavailable"]
    assert [row[-1].text for row in some.rows] == ["1", "0", "1", "2"]


def test_the_teachers_table_says_what_a_weak_teacher_does_to_kd() -> None:
    row = {"features": "a", "teacher": "t", "kind": "cnn14", "input": "spectrogram/d", "logits": "5 folds", "clips": 4}
    row |= dict.fromkeys(("in-sample", "distilled", "val", "test", "majority", "wrong labels"), 50.0) | {"mlflow": ""}
    (note,) = (note for note in teachers_sheet(pd.DataFrame([row])).notes if note.startswith("KD with its published"))
    assert "one below the student's own accuracy pulls it down" in note


def test_a_teacher_that_may_have_seen_the_test_clips_is_named(tmp_path: Path) -> None:
    raw = suite_params(tmp_path, figures={}).model_dump(mode="json")
    (name,) = raw["features"]
    raw["teachers"][raw["features"][name]["teacher"]]["weights"] = "panns:Cnn14_emb512_mAP=0.420"
    assert not seen_in_training(Params.model_validate(raw)), "a dataset that is no part of AudioSet"
    raw["datasets"]["made"]["origin"] = {"kind": "ave", "source": "x"}
    params = Params.model_validate(raw)
    write_suite(params)
    chapter = data_chapter(EvaluatedSuite(params), {}, DrawnFigures(tmp_path))
    (sheet,) = (sheet for section in chapter.sections for sheet in section.sheets if sheet.name == "teachers")
    assert sheet.notes[-1].startswith(f"{name}: the teacher was trained on AudioSet, of which AVE is a part")
    raw["teachers"][raw["features"][name]["teacher"]]["weights"] = "avsynth"
    assert not seen_in_training(Params.model_validate(raw))


def test_tables_say_whether_what_teachers_predict_is_out_of_fold(tmp_path: Path) -> None:
    params = suite_params(tmp_path)
    write_suite(params)
    suite = EvaluatedSuite(params)
    assert suite.logits_note(["uni_modal"]) == []
    assert suite.logits_note(["mnf_csc"]) == [], "it uses the features of its teacher, not the predictions"
    assert suite.logits_note(["uni_modal", "kd", ""]) == [
        "Teachers' predictions for training clips: out of fold (5 folds)."
    ]
    (name,) = {suite.job(run).A for run in ("kd", "mnf_csc")}
    entry = params.features[name]
    suite.params = params.model_copy(update={"features": {name: entry.model_copy(update={"cross_fit": 0})}})
    assert suite.logits_note(["kd"]) == ["Teachers' predictions for training clips: in sample."]
    table = params.report.tables["xia_1"]
    compared = results.compare(params, table, suite.measured, suite.gain)
    section = paper_section(suite, "xia_1", table, compared.assign(verdict=""))
    sheets = [*section.sheets, *section.folded]
    assert sheets and all("in sample" in sheet.markdown() for sheet in sheets)
