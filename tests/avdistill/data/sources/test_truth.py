"""An oracle's features: one-hot values of a column of the index, from the params to a student that it teaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from avdistill.config.loading import load
from avdistill.config.schema import Features, Params, Teacher
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index, write_index
from avdistill.data.sources.truth import one_hot
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import start
from avdistill.training.task import task_of
from avdistill.training.trainer import Trainer
from stages import check, teacher_features, teacher_head, teachers
from tests.helpers.little import logged
from tests.helpers.teaching import index_of, stage, suite

SECTIONS: dict[str, Any] = {
    "teachers": {"oracle": {"kind": "truth", "column": "hidden"}},
    "features": {"truth": {"dataset": "d", "teacher": "oracle", "input": "split/d"}},
}


def index(values: list[Any], **columns: list[str]) -> pd.DataFrame:
    rows = [
        {"id": f"clip {n:02d}", "file": f"{n}.avi", "class": f"class {n % 2}", "group": f"g{n // 2}", "split": "train"}
        for n in range(len(values))
    ]
    return index_of(rows).assign(hidden=values, **columns)


def run(tmp_path: Path, table: pd.DataFrame) -> tuple[Params, dict[str, np.ndarray]]:
    """The stages from the teacher to its features."""
    params = suite(tmp_path, table, **SECTIONS)
    teachers.main(stage(params, "teachers", "oracle"))
    teacher_features.main(stage(params, "teacher_features", "truth"))
    return params, read_arrays(params.path("teacher_features", "truth") / "features.npz")


def test_features_are_one_hot_and_clips_without_a_value_are_masked(tmp_path: Path) -> None:
    table = index(["walk", "run", "", "walk", "NA", "fly"]).assign(status=["ok"] * 5 + ["corrupt"])
    params, found = run(tmp_path, table)
    assert found["ids"].tolist() == table["id"].tolist()
    assert found["values"].tolist() == ["NA", "run", "walk"]
    assert found["mask"].tolist() == [True, True, False, True, True, False]
    expected = [[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert found["features"].dtype == np.float32 and found["features"].tolist() == expected
    made = stage(params, "teacher_features", "truth")
    teacher_features.main(made)
    assert logged(made) == {"clips": 6, "with_input": 4, "values": 3}
    folder = params.path("teachers", "oracle")
    assert [file.name for file in folder.iterdir()] == ["teacher.json"]
    assert json.loads((folder / "teacher.json").read_text()) == {"kind": "truth", "column": "hidden"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "ö", "10", "9"]), min_size=1, max_size=20).filter(any))
def test_the_feature_gives_the_value_back(values: list[str]) -> None:
    found = one_hot(index(values), "hidden")
    assert found["values"].tolist() == sorted(set(values) - {""})
    assert found["mask"].tolist() == [value != "" for value in values]
    assert found["features"].sum(1).tolist() == found["mask"].tolist()
    back = found["values"][found["features"].argmax(1)]
    assert back[found["mask"]].tolist() == [value for value in values if value]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2, 1, 2], ["1", "2"]), ([0.5, np.nan, 1], ["0.5", "1.0"]), ([True, False, True], ["False", "True"])],
)
def test_numbers_count_as_categories(tmp_path: Path, values: list[Any], expected: list[str]) -> None:
    _, found = run(tmp_path, index(values))
    assert found["values"].tolist() == expected


def test_columns_that_every_index_has_are_columns_too() -> None:
    table = index(["x"] * 6)
    assert one_hot(table, "status")["features"].tolist() == [[1]] * 6, "an oracle that knows nothing"
    labels = one_hot(table, "class")["features"].argmax(1)
    assert labels.tolist() == table["label"].tolist(), "and one that knows it all"


def test_an_unknown_column_names_file_and_nearest_column(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, index(["a", "b"]).rename(columns={"hidden": "hiden"}))
    message = str(caught.value)
    assert message.startswith("params.yaml: teachers.oracle.column: ") and "\n" not in message
    assert "split/d/index.csv: there is no column 'hidden'; did you mean 'hiden'?" in message


def test_an_empty_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"column 'hidden' is empty for all usable clips"):
        run(tmp_path, index(["", "", "a"]).assign(status=["ok", "ok", "corrupt"]))


def test_the_head_classifies_by_the_value_out_of_fold(tmp_path: Path) -> None:
    """Values that name the class are read from clips of other groups; a value of one group only tells nothing."""
    size = 24
    table = index([f"value {n % 2}" for n in range(size)])
    table["split"] = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    params, _ = run(tmp_path / "told", table)
    teacher_head.main(stage(params, "teacher_head", "truth"))
    accuracy = json.loads((params.path("teacher_head", "truth") / "metrics.json").read_text())["accuracy"]
    assert accuracy == {"train": 1, "val": 1, "test": 1, "distilled": 1}

    params, _ = run(tmp_path / "named", table.assign(hidden=table["id"]))
    teacher_head.main(stage(params, "teacher_head", "truth"))
    accuracy = json.loads((params.path("teacher_head", "truth") / "metrics.json").read_text())["accuracy"]
    assert accuracy["train"] == 1 and accuracy["distilled"] <= 0.75
    assert np.isfinite(read_arrays(params.path("teacher_head", "truth") / "logits.npz")["logits"]).all()


def test_stage_check_accepts_an_oracle(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["teachers"]["oracle"] = {"kind": "truth", "column": "relevant"}
    raw["features"]["avsynth_truth"] = {"dataset": "avsynth", "teacher": "oracle", "input": "split/avsynth"}
    raw["jobs"]["privileged"] = raw["jobs"]["uni_modal"] | {
        "method": "privileged", "A": "avsynth_truth", "runs": {"privileged": {"teachers": "A"}},
    }  # fmt: skip
    raw["studies"]["xia"]["jobs"].append("privileged")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    check.check("params.yaml", load(tmp_path / "params.yaml"))


@pytest.mark.parametrize("method", ["privileged", "kd", "crd"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_oracle_teaches_a_student(tiny: Params, tmp_path: Path, method: str, shuffle: bool) -> None:
    """`relevant` is a column of the tiny suite; a clip without a value has no teacher."""
    file = tiny.index("avsynth")
    table = read_index(file)
    write_index(file, table.assign(relevant=table["relevant"].mask(table["id"] == "c0_g2_1", "")))
    job = tiny.jobs["kd"].model_dump() | {
        "method": method,
        "A": "truth",
        "runs": {"taught": {"teachers": "A", "shuffled": "other_class" if shuffle else None}},
    }
    entry = Features(dataset="avsynth", teacher="oracle", input="split/avsynth")
    params = tiny.model_copy(
        update={
            "teachers": tiny.teachers | {"oracle": Teacher(kind="truth", column="relevant")},
            "features": tiny.features | {"truth": entry},
            "jobs": tiny.jobs | {"kd": tiny.jobs["kd"].model_validate(job)},
        }
    )
    teacher_features.main(stage(params, "teacher_features", "truth"))
    teacher_head.main(stage(params, "teacher_head", "truth"))
    with start("train", "kd", params) as tracked:
        trainer = Trainer(task_of(params, "taught", 0, "cpu", tmp_path, tracked))
    assert trainer.teachers["A"].feature.shape == (len(trainer.clips), 2)
    assert (~trainer.teachers["A"].mask).sum() == 1
    trainer.fit(2)
    assert len(trainer.history) == 2 and not trainer.diverged
