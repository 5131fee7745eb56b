from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from avdistill.config.schema import Params
from avdistill.data.files import write_arrays
from avdistill.data.index import read_index, write_index
from avdistill.reporting.figures import NoDataError, clips
from tests.helpers.synthetic import CLASSES


def test_contact_sheet_shows_a_clip_of_each_class(pictured: Params):
    data = clips.contact_sheet(pictured, "made").data
    assert data["class"].tolist() == CLASSES and (data["split"] == "train").all()


def test_attention_is_shown_on_clips_of_both_kinds_of_the_same_classes(pictured: Params):
    drawn = clips.attention_maps(pictured)
    assert drawn.data["relevant"].tolist() == ["yes"] * 4 + ["no"] * 4
    halves = drawn.data["class"].tolist()
    assert halves[:4] == halves[4:] == sorted(set(halves))
    found = np.load(pictured.evaluated("mnf_csc") / "attention.npz")
    row = drawn.data.iloc[5]
    weights = found["weights"][found["ids"].tolist().index(row["id"])].astype(np.float64)
    assert row["at_1_0_1"] == pytest.approx(8 * weights[1, 0, 1])
    assert row["frame"] == (2 if weights[0].sum() > weights[1].sum() else 6)  # the middle of one half of 8 frames
    scores = pd.read_csv(pictured.path("evaluate", "mnf_csc") / "scores.csv")
    known = scores[(scores["run"] == "mnf_csc") & (scores["seed"] == 0) & (scores["id"] == row["id"])]
    assert row["tau"] == pytest.approx(known["tau"].item())


def test_attention_without_truth_shows_each_class(other: Params):
    path = other.index("made")
    write_index(path, read_index(path).drop(columns="relevant"))
    drawn = clips.attention_maps(other)
    assert set(drawn.data["class"]) == set(CLASSES) and len(drawn.data) == 8
    assert "relevant" not in drawn.caption


def test_no_attention_is_no_data(other: Params):
    path = other.evaluated("mnf_csc") / "attention.npz"
    write_arrays(path, ids=np.array([], dtype="U1"), weights=np.zeros((0, 2, 2, 2), np.float32))
    with pytest.raises(NoDataError, match="has no attention map of a test clip"):
        clips.attention_maps(other)
    path.unlink()
    with pytest.raises(NoDataError, match=r"attention\.npz"):
        clips.attention_maps(other)


def test_the_gallery_shows_the_nearest_by_cosine_and_whether_they_are_right(pictured: Params):
    data = clips.retrieval_gallery(pictured).data
    assert len(data) == 3 * 2 * 4 and data["query_class"].nunique() == 3
    found = np.load(pictured.evaluated("mnf_csc") / "seed-0.npz")
    query = data["query"].iloc[0]
    one = found["features"][found["ids"].tolist().index(query)].astype(np.float64)
    all_ = found["gallery_features"].astype(np.float64)
    cosine = all_ @ one / np.linalg.norm(all_, axis=1) / np.linalg.norm(one)
    shown = data[(data["query"] == query) & (data["run"] == "mnf_csc")]
    assert shown["id"].tolist() == found["gallery_ids"][np.argsort(-cosine)[:4]].tolist()
    assert shown["rank"].tolist() == [1, 2, 3, 4]
    name = data["id"].str.split("/").str[0]
    assert (data["right"] == (name == data["query"].str.split("/").str[0])).all() and (data["class"] == name).all()


def test_the_classes_heard_are_those_of_highest_probability(pictured: Params):
    data = clips.heard_classes(pictured).data
    found = np.load(pictured.path("teacher_features", "made_A") / "features.npz")
    assert data["id"].nunique() == 6 and data["class"].nunique() == 6
    for name, rows in data.groupby("id"):
        chances = found["probabilities"][found["ids"].tolist().index(name)].astype(np.float64)
        assert rows["probability"].tolist() == sorted(chances, reverse=True)[:5]
    index = read_index(pictured.index("made")).set_index("id")
    assert (index.loc[data["id"], "split"] == "test").all() and (index.loc[data["id"], "audio"] == "yes").all()


def test_a_teacher_without_probabilities_is_no_data(other: Params):
    path = other.path("teacher_features", "made_A") / "features.npz"
    known = dict(np.load(path))
    write_arrays(path, ids=known["ids"], mask=known["mask"])
    with pytest.raises(NoDataError, match="probabilities"):
        clips.heard_classes(other)


def test_long_names_are_shortened():
    assert clips.shortened("Acoustic guitar") == "Acoustic guitar"
    short = clips.shortened("Vehicle horn, car horn, honking")
    assert short == "Vehicle horn, car horn, h…" and len(short) == 26
