from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from avdistill.config.origins import ActivityNet
from avdistill.data import datasets, media
from avdistill.data.datasets import activitynet
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import ramp, stage, tone
from tests.helpers.replicas import activitynet_video as entry
from tests.helpers.replicas import write_activitynet as official
from tests.helpers.serving import serve

SHAVING, CREAM = "Shaving", "Having an ice cream"
DATABASE = {
    "---9CpRcKoU": entry("training", (0.5, 2.0, SHAVING), (0.5, 2.0, SHAVING)),  # twice the same, as in the real one
    "--0edUL8zmA": entry("training", (0.0, 1.5, SHAVING), (2.0, 99.0, SHAVING)),  # ends after its video
    "--1DO2V4K74": entry("training", (1, 2, SHAVING)),
    "--6bJUbfpnQ": entry("training", (0.25, 2.5, CREAM)),
    "NA_b-K9bdXe": entry("training", (0.0, 3.5, CREAM)),
    "_gone-video": entry("training", (0.0, 3.5, CREAM), (4.0, 5.0, CREAM)),
    "--8jMm4nwLU": entry("training", (0.0, 2.0, CREAM), (9.0, 10.0, CREAM)),  # begins after its video
    "1e10-aaaaaa": entry("validation", (0.0, 2.0, SHAVING)),
    "v_bWquUXC2T": entry("validation", (1.0, 2.0, CREAM), (2.0, 3.0, CREAM)),
    "--testing--": entry("testing"),
}
UNAVAILABLE = "_gone-video"


def test_from_the_official_annotation_to_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official(tmp_path / "web/files/activity_net.v1-3.min.json", DATABASE)
    media.write_video(tmp_path / "video.mp4", ramp(20), 5, tone(4))
    (tmp_path / "web/watch").mkdir()
    for name in DATABASE:
        if name not in (UNAVAILABLE, "--testing--"):
            shutil.copy(tmp_path / "video.mp4", tmp_path / f"web/watch/{name}.mp4")
    with serve(tmp_path / "web") as web:
        origin = {
            "kind": "activitynet",
            "source": "avdistill/data/datasets/unwatched",
            "mirror": f"{web.url}/files",
        }
        origin |= {"video_url": f"{web.url}/watch/{{id}}.mp4", "pause": 0}
        download.main(stage("download", "d", tmp_path, origin))
        assert capsys.readouterr().out == (
            "activitynet: 14 listed or found, 12 clips of 2 classes used; left out: 2 Unable to download webpage\n"
        )
        split.main(stage("split", "d", tmp_path, origin))
        assert web.count("/watch/--testing--.mp4") == 0
        assert web.count("/watch/---9CpRcKoU.mp4") == 2, "one look at the page and one download a video"
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    expected = {f"{name}_{n}" for name, video in DATABASE.items() for n in range(len(video["annotations"]))}
    assert set(index.index) == expected
    assert index.loc["---9CpRcKoU_1", ["file", "class", "group"]].tolist() == [
        "v_---9CpRcKoU.mp4",
        SHAVING,
        "---9CpRcKoU",
    ]
    assert index.loc["---9CpRcKoU_0", ["start", "end", "seconds"]].tolist() == [0.5, 2.0, 1.5]
    assert index.loc["--0edUL8zmA_1", ["start", "end", "seconds"]].tolist() == pytest.approx([2.0, 4.0, 2.0])
    assert index.loc["--8jMm4nwLU_1", "status"] == "corrupt"
    assert index.loc["--8jMm4nwLU_1", "reason"] == "nothing between 9 s and 4 s: the file is 4 s long"
    lost = index[index["group"] == UNAVAILABLE]
    assert lost["status"].tolist() == ["unavailable"] * 2
    assert lost["reason"].str.endswith("HTTP Error 404: Not Found").all()
    tests = index["group"].isin(["1e10-aaaaaa", "v_bWquUXC2T"])
    assert (index["split"][tests] == "test").all()
    assert set(index["split"][~tests]) == {"train", "val"}
    metrics = split.summarise(index)
    assert metrics["status"] == {"ok": 11, "corrupt": 1, "unavailable": 2, "excluded": 0}
    assert metrics["groups"]["train"] + metrics["groups"]["val"] == 6
    assert metrics["groups"]["test"] == 2
    assert metrics["groups_unavailable"] == {"train": 1, "val": 0, "test": 0}


def test_a_folder_that_the_user_has_is_used_in_place(tmp_path: Path) -> None:
    files = {"---9CpRcKoU": "train/v_---9CpRcKoU.mkv", "1e10-aaaaaa": "v_1e10-aaaaaa.webm"}
    for file in files.values():
        (tmp_path / "own" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / file).write_bytes(b"video")
    list_of_clips = official(tmp_path / "lists/activity_net.v1-3.min.json", DATABASE)
    own = ActivityNet(
        kind="activitynet", source="x", videos=str(tmp_path / "own"), annotation=str(list_of_clips.parent)
    )
    activitynet.check(own)
    (tmp_path / "out").mkdir()
    activitynet.download(own, tmp_path / "out")
    table = datasets.clips(tmp_path / "out")
    there = table[table["unavailable"] == ""].set_index("id")
    assert there["file"].to_dict() == {
        "---9CpRcKoU_0": files["---9CpRcKoU"],
        "---9CpRcKoU_1": files["---9CpRcKoU"],
        "1e10-aaaaaa_0": files["1e10-aaaaaa"],
    }
    assert len(table) == 14
    assert activitynet.videos(own, tmp_path / "out") == tmp_path / "own"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": "train"}, r"a\.json: x: expected a subset \(training, validation, testing\)"),
        ({"annotations": [{"label": "Shaving"}]}, r"a\.json: x: expected"),
        ({"annotations": [{"label": "Shaving", "segment": [1.0]}]}, r"a\.json: x: expected"),
        ({"annotations": [{"label": "Shaving", "segment": ["a", "b"]}]}, r"a\.json: x: expected"),
        ({"annotations": None}, r"a\.json: x: expected"),
    ],
)
def test_bad_entries(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = official(tmp_path / "a.json", {"x": entry("training", (0, 1, SHAVING)) | change})
    with pytest.raises(UserError, match=message):
        activitynet.segments(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"database": []}', '{"database": {}}'])
def test_bad_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: expected (JSON with a 'database'|an official list of clips)"):
        activitynet.segments(tmp_path / "a.json")


def test_the_segments_that_xia_read(shared_data: Path, tmp_path: Path) -> None:
    """Their program's list, written in the official form: the same segments under the same numbers."""
    read = json.loads((shared_data / "annotations/activitynet_segments.json").read_text())
    database: dict[str, Any] = {}
    for key, one in read["database"].items():
        name, _, number = key.removeprefix("v_").rpartition("_")
        segments = database.setdefault(name, entry(one["subset"]))["annotations"]
        # Their list has holes: segments that they had no use for.
        segments += [{"segment": [0, 0], "label": "hole"}] * (int(number) + 1 - len(segments))
        segments[int(number)] = {"segment": one["segment"], "label": one["label"]}
    table = activitynet.segments(official(tmp_path / "a.json", database))
    table = table[table["class"] != "hole"]
    assert table["split"].value_counts().to_dict() == {"train": 15_232, "test": 7_555}
    assert set(table["class"]) == set(read["labels"])
    assert table["class"].nunique() == 200
    assert table["group"].nunique() == 14_844
    expected = pd.DataFrame.from_dict(read["database"], orient="index")
    found = table.assign(key="v_" + table["id"]).set_index("key").loc[expected.index]
    assert found["class"].tolist() == expected["label"].tolist()
    assert list(zip(found["start"], found["end"], strict=True)) == [tuple(pair) for pair in expected["segment"]]
