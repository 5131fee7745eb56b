from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avdistill.config.schema import Split
from avdistill.data import datasets
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from stages import split
from tests.helpers.little import folder_of_videos, logged, stage


def table(groups: dict[str, list[str]], clips: int = 2) -> pd.DataFrame:
    rows = [
        {"id": f"{name}/{group}/{n}", "class": name, "group": group, "status": "ok"}
        for name, own in groups.items()
        for group in own
        for n in range(clips)
    ]
    return pd.DataFrame(rows)


def splits_of_groups(index: pd.DataFrame) -> pd.DataFrame:
    assert (index.groupby("group")["split"].nunique() == 1).all(), "a group stands in two splits"
    return index.groupby(["class", "split"])["group"].nunique().unstack(fill_value=0)


@pytest.mark.parametrize(
    ("groups", "test", "val", "expected"),
    [  # train, val, test groups of each class; halves round up
        (10, 0.3, 0.2, (6, 1, 3)),
        (20, 0.4, 0.3, (8, 4, 8)),
        (5, 0.5, 0.25, (1, 1, 3)),
        (3, 0.01, 0.01, (1, 1, 1)),
        (3, 0.9, 0.9, (1, 1, 1)),
        (4, 0.25, 0.0, (3, 0, 1)),
        (4, 0.0, 0.25, (3, 1, 0)),
        (1, 0.0, 0.0, (1, 0, 0)),
    ],
)
def test_shares_of_whole_groups(groups: int, test: float, val: float, expected: tuple[int, int, int]) -> None:
    names = {name: [f"{name}{n}" for n in range(groups)] for name in ("b", "a")}
    index = split.assign(table(names), Split(test=test, val=val))
    counts = splits_of_groups(index).reindex(columns=["train", "val", "test"], fill_value=0)
    assert counts.loc["a"].tolist() == counts.loc["b"].tolist() == list(expected)
    assert index.groupby("class")["label"].unique().to_dict() == {"a": [0], "b": [1]}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 30), min_size=3), min_size=1, max_size=4),
    st.floats(0.05, 0.9),
    st.floats(0.05, 0.9),
    st.integers(0, 9),
)
def test_a_group_that_classes_share_stays_whole(own: list[set[int]], test: float, val: float, seed: int) -> None:
    clips = table({f"class {n}": [f"g{group}" for group in sorted(groups)] for n, groups in enumerate(own)})
    try:
        index = split.assign(clips, Split(test=test, val=val, seed=seed))
    except UserError as error:
        assert "class 'class" in str(error)
        return
    assert (splits_of_groups(index)[["train", "val", "test"]] > 0).all(axis=None)


@pytest.mark.parametrize("seed", range(20))
def test_a_split_that_exists_is_found(seed: int) -> None:
    """Of the groups below, b_c alone fills the test split of b and c, and then leaves no group for a."""
    clips = table({"a": ["a_b", "a_c"], "b": ["a_b", "b", "b_c"], "c": ["a_c", "c", "b_c"]})
    index = split.assign(clips, Split(test=0.3, val=0, seed=seed))
    assert (splits_of_groups(index)[["train", "test"]] > 0).all(axis=None)


def test_a_split_that_does_not_exist_names_the_class() -> None:
    clips = table({"a": ["a_b", "a_c"], "b": ["a_b", "b_c"], "c": ["a_c", "b_c"]})
    with pytest.raises(UserError, match=r"class '[abc]': all its groups also have clips of classes that have enough"):
        split.assign(clips, Split(test=0.3, val=0))


def test_groups_that_all_classes_have_go_to_the_same_part() -> None:
    index = split.assign(table({name: [f"g{n}" for n in range(10)] for name in "abcd"}), Split())
    assert splits_of_groups(index)[["val", "test", "train"]].to_numpy().tolist() == [[1, 3, 6]] * 4


def test_the_seed_decides() -> None:
    clips = table({name: [f"{name}{n}" for n in range(12)] for name in "ab"})
    first, again, other = (split.assign(clips, Split(seed=seed))["split"].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_too_few_groups_names_the_class() -> None:
    clips = table({"Archery": ["a", "b", "c"], "Surfing": ["d", "e"]})
    with pytest.raises(UserError, match="class 'Surfing' has 2 groups with usable clips, expected at least 3"):
        split.assign(clips, Split())
    split.assign(clips, Split(val=0))


def test_corrupt_clips_do_not_count_as_groups() -> None:
    clips = table({"a": ["a1", "a2", "a3", "a4"], "b": ["b1", "b2", "b3"]})
    clips.loc[clips["group"] == "a4", "status"] = "corrupt"
    index = split.assign(clips, Split(test=0.34, val=0.4))
    assert set(index[(index["class"] == "a") & (index["status"] == "ok")]["split"]) == {"train", "val", "test"}
    clips.loc[clips["class"] == "b", "status"] = "corrupt"
    with pytest.raises(UserError, match="class 'b': none of its 6 clips is usable"):
        split.assign(clips, Split())


def test_given_parts_are_kept_and_select_is_cut_from_train() -> None:
    clips = table({name: [f"{name}{n}" for n in range(6)] for name in "ab"})
    given_ = np.where(clips["group"].str[1].astype(int) < 2, "test", "train")
    index = split.assign(clips.assign(split=given_), Split(val=0.25))
    assert (index["split"][given_ == "test"] == "test").all()
    assert splits_of_groups(index)[["train", "val", "test"]].to_numpy().tolist() == [[3, 1, 2]] * 2
    all_given = np.where(clips["group"].str[1].astype(int) == 5, "val", given_)
    assert split.assign(clips.assign(split=all_given), Split())["split"].tolist() == all_given.tolist()
    with pytest.raises(UserError, match=r"clip 'a/a0/0': unknown split 'tset'; did you mean 'test'\?"):
        split.assign(clips.assign(split="tset"), Split())


def test_the_whole_stage(tmp_path: Path) -> None:
    folder_of_videos(tmp_path / "videos")
    origin = {"kind": "folder", "source": str(tmp_path / "videos")}
    from stages import download

    download.main(stage("download", "d", tmp_path, origin))
    split_stage = stage("split", "d", tmp_path, origin)
    split.main(split_stage)
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    assert len(index) == 12
    assert index.loc["class 0/it's_g0_é.mp4", ["audio", "status", "reason"]].tolist() == ["no", "ok", "no audio stream"]
    assert index.loc["class 1/it's_g0_é.mp4", "audio"] == "silent"
    assert index.loc["class 1/it's_g0_é.mp4", "reason"].startswith("digital silence")
    corrupt = index.loc["class 2/it's_g0_é.mp4"]
    assert corrupt["status"] == "corrupt"
    assert corrupt["reason"]
    fine = index.drop(corrupt.name)
    assert fine["seconds"].to_numpy() == pytest.approx(1.5, abs=0.01)
    assert (fine["end"] == fine["seconds"]).all()
    assert (index["audio"] == "yes").sum() == 9
    metrics = logged(split_stage)
    assert metrics["status.corrupt"] == 1 and metrics["audio.silent"] == 1
    assert not any(name.startswith("expected_clips") for name in metrics)


def test_segments_of_longer_files(tmp_path: Path) -> None:
    folder_of_videos(tmp_path, classes=1, groups=2)
    rows = [("a", 0.5, 1.0), ("b", 1.0, 9.0), ("c", 2.0, 3.0), ("d", float("nan"), 1.0)]
    clips = pd.DataFrame(rows, columns=["id", "start", "end"]).assign(file="class 0/it's_g1_é.mp4")
    found = split.probe_clips(clips, tmp_path).set_index("id")
    assert found.loc["a", ["start", "end", "seconds"]].tolist() == [0.5, 1.0, 0.5]
    assert found.loc["b", ["start", "end", "seconds"]].tolist() == pytest.approx([1.0, 1.5, 0.5], abs=0.01)
    assert found.loc["d", ["start", "end", "seconds"]].tolist() == [0.0, 1.0, 1.0]
    assert found["status"].to_dict() == {"a": "ok", "b": "ok", "c": "corrupt", "d": "ok"}
    assert found.loc["c", "reason"] == "nothing between 2 s and 1.5 s: the file is 1.5 s long"


def test_missing_files_are_rows(tmp_path: Path) -> None:
    clips = pd.DataFrame({"id": ["a"], "file": ["nowhere.mp4"]})
    row = split.probe_clips(clips, tmp_path).iloc[0]
    assert (row["status"], row["reason"]) == ("corrupt", "No such file or directory")
    assert datasets.locate(clips, tmp_path)[0].path == tmp_path / "nowhere.mp4"


def test_unavailable_clips_are_rows_and_not_probed(tmp_path: Path) -> None:
    folder_of_videos(tmp_path, classes=1, groups=2)
    rows = [("a", "class 0/it's_g1_é.mp4", "Private video"), ("b", "class 0/it's_g1_é.mp4", ""), ("c", "c.mp4", "NA")]
    clips = pd.DataFrame(rows, columns=["id", "file", "unavailable"]).assign(group=["g1", "g1", "g2"], split="test")
    found = split.probe_clips(clips, tmp_path)
    assert found["status"].tolist() == ["unavailable", "ok", "unavailable"]
    assert found["reason"].tolist() == ["Private video", "", "NA"]
    assert found["seconds"].tolist() == pytest.approx([0, 1.5, 0], abs=0.01)
    assert found["audio"].tolist() == ["no", "yes", "no"]
    assert "unavailable" not in found
    counts = split.summarise(found)
    assert counts["status"] == {"ok": 1, "corrupt": 0, "unavailable": 2, "excluded": 0}
    assert counts["groups"] == {"train": 0, "val": 0, "test": 1}
    assert counts["groups_unavailable"] == {"train": 0, "val": 0, "test": 1}


def test_real_clips(shared_data: Path) -> None:
    files = [
        "Archery/v_Archery_g03_c03.avi",
        "BasketballDunk/v_BasketballDunk_g15_c04.avi",
        "Surfing/v_Surfing_g01_c01.avi",
    ]
    found = split.probe_clips(pd.DataFrame({"id": files, "file": files}), shared_data / "ucf101")
    assert found["audio"].tolist() == ["silent", "no", "yes"]
    assert found["status"].tolist() == ["ok"] * 3


def test_wrong_labels_are_of_training_clips_and_of_other_classes() -> None:
    clips = table({name: [f"g{n}" for n in range(20)] for name in "abc"})
    plain = split.assign(clips, Split(seed=3))
    index = split.assign(clips, Split(seed=3, wrong_labels=0.3))
    pd.testing.assert_frame_equal(index.drop(columns="given"), plain)
    wrong = index["given"] != index["label"]
    train = index["split"] == "train"
    assert wrong.sum() == round(0.3 * train.sum())
    assert not wrong[~train].any()
    assert set(index["given"]) == {0, 1, 2}
    assert not split.assign(clips, Split(wrong_labels=0))["given"].ne(index["label"]).any()
