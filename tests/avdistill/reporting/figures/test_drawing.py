from __future__ import annotations

import pandas as pd
import pytest

from avdistill.config.schema import Params
from avdistill.reporting.figures import NoDataError, outputs, sample_by_class, whole_points


def test_sampled_clips_are_of_as_many_classes_as_possible():
    clips = pd.DataFrame({"id": [f"c{n:02d}" for n in range(30)], "class": [f"{n % 3}" for n in range(30)]})
    sampled = sample_by_class(clips, 7)
    assert sorted(sampled["class"].value_counts()) == [2, 2, 3] and sampled["id"].is_unique
    assert sample_by_class(clips, 3)["class"].nunique() == 3
    assert len(sample_by_class(clips, 100)) == 30
    assert sample_by_class(clips.iloc[::-1], 7)["id"].tolist() == sampled["id"].tolist()
    assert sampled["id"].tolist() != clips["id"].tolist()[:7]


def test_outputs_that_are_not_there_are_no_data(pictured: Params):
    with pytest.raises(NoDataError, match="no features of kd"):
        outputs(pictured, "kd")
    with pytest.raises(NoDataError, match="at_10db"):
        outputs(pictured, "at_10db")


def test_a_zero_has_no_sign():
    assert [whole_points(value) for value in (-0.4, 0.4, 2.6, -2.6)] == ["0", "0", "+3", "\N{MINUS SIGN}3"]
