from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avdistill.data.draws import of_draw
from avdistill.data.files import write_json
from avdistill.reporting.teacher_heads import estimated_share, head_metrics, wrong_labels
from tests.helpers.synthetic import suite_params


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


def test_of_a_teacher_with_draws_it_is_the_mean(tmp_path: Path) -> None:
    params = suite_params(tmp_path)
    params.teachers["ear"] = params.teachers["ear"].model_copy(update={"draws": 2})
    assert np.isnan(wrong_labels(head_metrics(params, "made_A"))), "the stage has not run"
    folder = params.path("teacher_head", "made_A")
    for draw, agreement in enumerate((0.58, 0.42)):
        found = {"accuracy": {"test": 0.58}, "agreement": agreement, "classes": 4, "cross_fit": 5}
        write_json(folder / of_draw(draw) / "metrics.json", found)
    found = head_metrics(params, "made_A")
    assert wrong_labels(found) == pytest.approx(estimated_share(0.42, 0.58, 4) / 2)
    in_sample = [each | {"cross_fit": 0} for each in found]
    assert np.isnan(wrong_labels(in_sample)), "predictions in sample agree with wrong labels, too"
