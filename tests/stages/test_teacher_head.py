"""The stage: what it hands over is out of fold, for each draw of a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avdistill.data.files import write_arrays
from avdistill.data.index import read_index
from avdistill.reporting.teacher_heads import estimated_share
from stages import teacher_head
from tests.helpers.teaching import index_of, stage, suite

SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2


def heads(
    folder: Path,
    tables: list[np.ndarray],
    features: dict[str, int] | None = None,
    given: list[int] | None = None,
    **teacher: int,
) -> tuple[Path, Any]:
    """Run the stage on a features table (N, D) per draw; return the folder of its outputs, and draw 0's metrics.

    Clip n is of class n % 2; `given` are the labels that training is given."""
    count = len(tables[0])
    rows = [
        {"id": f"c{n:03}", "file": f"{n}.mp4", "class": f"k{n % 2}", "group": f"g{n // 2}", "split": SPLITS[n % 10]}
        | ({"given": given[n]} if given else {})
        for n in range(count)
    ]
    entry = {"dataset": "d", "teacher": "t", "input": "spectrogram/d", **(features or {})}
    drawn = {"kind": "cnn14", "weights": "avsynth", **teacher}
    params = suite(folder, index_of(rows), teachers={"t": drawn}, features={"f": entry})
    ids = read_index(params.index("d"))["id"].to_numpy("U")
    for draw, values in enumerate(tables):
        path = params.path("teacher_features", "f") / (f"draw-{draw}" if draw else "") / "features.npz"
        write_arrays(path, ids=ids, features=values, mask=np.ones(count, dtype=bool))
    teacher_head.main(stage(params, "teacher_head", "f"))
    made = params.path("teacher_head", "f")
    return made, json.loads((made / "metrics.json").read_text())


@pytest.mark.parametrize(("option", "folds"), [({}, 5), ({"cross_fit": 5}, 5), ({"cross_fit": 0}, 0)])
def test_what_the_stage_hands_over_is_out_of_fold_unless_asked_otherwise(
    tmp_path: Path, option: dict[str, int], folds: int
) -> None:
    table = np.random.default_rng(0).normal(size=(120, 90)).astype(np.float32)
    folder, summary = heads(tmp_path, [table], features=option)
    accuracy = summary["accuracy"]
    assert accuracy["train"] > 0.9 and (accuracy["distilled"] < 0.7 if folds else accuracy["distilled"] > 0.9)
    head, given = np.load(folder / "head.npz"), np.load(folder / "logits.npz")["logits"]
    in_sample = np.isclose(given, table @ head["weight"].T + head["bias"], atol=1e-4).all(1)
    train = (read_index(folder.parents[1] / "split/d/index.csv")["split"] == "train").to_numpy()
    assert in_sample[~train].all() and in_sample[train].any() == (not folds)


def test_agreement_is_with_the_labels_that_training_is_given(tmp_path: Path) -> None:
    table = np.eye(2, dtype=np.float32)[np.arange(120) % 2]
    _, right = heads(tmp_path / "right", [table])
    assert right["agreement"] == right["accuracy"]["distilled"] == 1 and right["classes"] == 2
    given = [n % 2 if n % 10 else 1 - n % 2 for n in range(120)]  # one of six training clips
    _, wrong = heads(tmp_path / "wrong", [table], given=given)
    assert wrong["accuracy"]["distilled"] == wrong["accuracy"]["test"] == 1
    assert wrong["agreement"] == pytest.approx(5 / 6)
    assert estimated_share(wrong["agreement"], wrong["accuracy"]["test"], wrong["classes"]) == pytest.approx(1 / 6)


def test_each_draw_of_a_teacher_has_a_head(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tables = [random.normal(size=(60, 5)).astype(np.float32) for _ in range(2)]
    found, _ = heads(tmp_path / "drawn", tables, draws=2)
    alone = [heads(tmp_path / str(draw), [table]) for draw, table in enumerate(tables)]
    for draw, (folder, _) in enumerate(alone):
        assert sorted(path.name for path in folder.iterdir()) == ["head.npz", "logits.npz", "metrics.json"]
        for path in folder.iterdir():
            assert path.read_bytes() == (found / (f"draw-{draw}" if draw else "") / path.name).read_bytes()
    assert alone[0][1]["accuracy"] != alone[1][1]["accuracy"]
