from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avdistill.data.files import write_arrays
from avdistill.data.index import read_index, write_index
from avdistill.reporting.wrong_labels import estimated_share, wrong_labels
from tests.helpers.synthetic import suite_params, write_suite

SETTING = {"title": "Main setting", "baseline": "uni_modal", "runs": {"KD": "kd"}, "A": "made_A"}


@pytest.mark.parametrize("wrong", [0.0, 0.15, 0.3, 0.45])
@pytest.mark.parametrize("accuracy", [0.4, 0.9])
def test_the_share_that_labels_were_changed_by_is_found(wrong: float, accuracy: float) -> None:
    random, clips, classes = np.random.default_rng(0), 200_000, 5
    labels = random.integers(classes, size=clips)
    changed, missed = (
        np.where(random.random(clips) < share, (labels + random.integers(1, classes, clips)) % classes, labels)
        for share in (wrong, 1 - accuracy)
    )
    found = estimated_share(float((missed == changed).mean()), float((missed == labels).mean()), classes)
    assert found == pytest.approx(wrong, abs=0.015)


def test_predictions_at_chance_tell_nothing() -> None:
    assert np.isnan(estimated_share(0.2, 0.2, 5)) and np.isnan(estimated_share(0.2, 0.1, 5))


def test_a_setting(tmp_path: Path) -> None:
    """Predictions that are always right agree with all labels but the wrong ones."""
    params = suite_params(tmp_path, settings={"main": SETTING})
    write_suite(params)
    (entry,) = params.report.settings.values()
    assert np.isnan(wrong_labels(params, entry)), "no predictions"
    index = read_index(params.index("made"))
    classes = index["label"].max() + 1
    train = index.index[index["split"] == "train"]
    index["given"] = index["label"]
    index.loc[train[::4], "given"] = (index["label"][train[::4]] + 1) % classes
    write_index(params.index("made"), index)
    for stage, name, arrays in (
        ("teacher_head", "logits.npz", {"logits": np.eye(classes)[index["label"]]}),
        ("teacher_features", "features.npz", {"mask": np.ones(len(index), dtype=bool)}),
    ):
        write_arrays(params.path(stage, "made_A") / name, ids=index["id"].to_numpy("U"), **arrays)
    wrong = index[(index["split"] == "train") & (index["status"] == "ok")].eval("given != label").mean()
    assert 0.1 < wrong < 0.4 and wrong_labels(params, entry) == pytest.approx(wrong)
