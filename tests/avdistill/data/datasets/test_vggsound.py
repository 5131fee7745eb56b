from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from avdistill.config.origins import VGGSound
from avdistill.data import datasets, media
from avdistill.data.datasets import vggsound
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import ramp, stage, tone
from tests.helpers.replicas import write_vggsound
from tests.helpers.serving import serve

MARCHING, CHIRPING = "people marching", "bird chirping, tweeting"
ROWS = [  # as in the official list, quotes included; one video gave two clips, one is unavailable
    ("---g-f_I2yQ", 1, MARCHING, "train"),
    ("--0PQM4-hqg", 3, MARCHING, "train"),
    ("--0PQM4-hqg", 4, MARCHING, "train"),
    ("NA_NULL-1e5", 2, MARCHING, "train"),
    ("-00000000e5", 0, MARCHING, "test"),
    ("0wP2F9pE_aQ", 1, MARCHING, "test"),
    ("__p-fpGGG1U", 2, CHIRPING, "train"),
    ("_-gone-gone", 130, CHIRPING, "train"),
    ("12345678901", 4, CHIRPING, "train"),
    ("1e5-aaaaaaa", 3, CHIRPING, "train"),
    ("glLQrEijrKg", 1, CHIRPING, "test"),
    ("6jiO0tPLK7U", 0, CHIRPING, "test"),
]
NAMES = [f"{video}_{start:06d}" for video, start, _, _ in ROWS]
UNAVAILABLE = "_-gone-gone_000130"


def official(path: Path) -> Path:
    return write_vggsound(path, ROWS)


def test_from_the_official_list_to_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official(tmp_path / "web/vggsound.csv")
    media.write_video(tmp_path / "video.mp4", ramp(28), 2, tone(14))
    (tmp_path / "web/watch").mkdir()
    for video, *_ in ROWS:
        if "gone" not in video:
            shutil.copy(tmp_path / "video.mp4", tmp_path / f"web/watch/{video}.mp4")
    with serve(tmp_path / "web") as web:
        origin = {
            "kind": "vggsound",
            "source": "avdistill/data/datasets/unwatched",
            "mirror": f"{web.url}/",
            "pause": 0,
        }
        origin["video_url"] = f"{web.url}/watch/{{id}}.mp4"
        download.main(stage("download", "d", tmp_path, origin))
        assert capsys.readouterr().out == (
            "vggsound: 12 listed or found, 11 clips of 2 classes used; left out: 1 Unable to download webpage\n"
        )
        split.main(stage("split", "d", tmp_path, origin))
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    assert sorted(index.index) == sorted(NAMES)
    assert index.loc[UNAVAILABLE, ["status", "file"]].tolist() == ["unavailable", f"{UNAVAILABLE}.mp4"]
    assert index.loc[UNAVAILABLE, "reason"] == "Unable to download webpage: HTTP Error 404: Not Found"
    had = index.drop(UNAVAILABLE)
    assert (had["status"] == "ok").all()
    assert (had["audio"] == "yes").all()
    assert had["seconds"].to_numpy() == pytest.approx(10, abs=0.01)
    assert index.loc["--0PQM4-hqg_000004", ["class", "group"]].tolist() == [MARCHING, "--0PQM4-hqg"]
    expected = {f"{video}_{start:06d}": split for video, start, _, split in ROWS}
    assert {name: "train" if split == "val" else split for name, split in index["split"].items()} == expected
    assert (index.groupby("group")["split"].nunique() == 1).all()
    metrics = split.summarise(index)
    assert metrics["status"] == {"ok": 11, "corrupt": 0, "unavailable": 1, "excluded": 0}
    assert metrics["groups_unavailable"] == {"train": 1, "val": 0, "test": 0}
    assert metrics["groups"]["test"] == 4
    assert metrics["groups"]["train"] + metrics["groups"]["val"] == 6


@pytest.mark.parametrize("layout", ["{name}.mp4", "{split}/{name}.mp4", "{split}/{label}/{name}.webm"])
def test_a_folder_that_the_user_has_is_used_in_place(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for (_, _, label, part), name in zip(ROWS, NAMES, strict=True):
        if name != UNAVAILABLE:
            path = tmp_path / "own" / layout.format(name=name, split=part, label=label)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"video")
    (tmp_path / "own/another.mp4").write_bytes(b"video")
    before = sorted(tmp_path.joinpath("own").rglob("*"))
    own = VGGSound(
        kind="vggsound", source="x", videos=str(tmp_path / "own"), annotation=str(official(tmp_path / "v.csv"))
    )
    vggsound.check(own)
    (tmp_path / "out").mkdir()
    vggsound.download(own, tmp_path / "out")
    reasons = "1 files that are not in the official list; 1 not in the folder of videos"
    assert capsys.readouterr().out == (
        f"vggsound: 13 listed or found, 11 clips of 2 classes used; left out: {reasons}\n"
    )
    table = datasets.clips(tmp_path / "out").set_index("id")
    assert table["unavailable"].to_dict() == {
        name: "not in the folder of videos" if name == UNAVAILABLE else "" for name in NAMES
    }
    clips = datasets.locate(table.reset_index(), vggsound.videos(own, tmp_path / "out"))
    assert all(clip.path.is_file() for clip in clips if clip.id != UNAVAILABLE)
    assert sorted(tmp_path.joinpath("own").rglob("*")) == before


def test_what_is_lacking_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "own/train").mkdir(parents=True)
    for name in NAMES[1:]:
        (tmp_path / f"own/train/{name}.mp4").write_bytes(b"video")
    media.write_video(tmp_path / f"web/{ROWS[0][0]}.mp4", ramp(28), 2, None)
    with serve(tmp_path / "web") as web:
        own = VGGSound(
            kind="vggsound",
            source="x",
            videos=str(tmp_path / "own"),
            fill=True,
            annotation=str(official(tmp_path / "v.csv")),
            video_url=f"{web.url}/{{id}}.mp4",
            pause=0,
        )
        (tmp_path / "out").mkdir()
        vggsound.download(own, tmp_path / "out")
        assert {path for path, _ in web.requests} == {f"/{ROWS[0][0]}.mp4"}
    table = datasets.clips(tmp_path / "out")
    assert table["file"].tolist() == [f"{NAMES[0]}.mp4", *(f"train/{name}.mp4" for name in NAMES[1:])]
    assert (table["unavailable"] == "").all()
    assert media.probe(tmp_path / f"own/{NAMES[0]}.mp4").seconds == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,1,x,training\n", r"v\.csv: unknown split 'training'; did you mean 'train'\?"),
        ("a,one,x,train\n", r"v\.csv: expected rows of video, start in seconds, class and split"),
        ("a_000001.mp4,x\n", r"v\.csv: expected rows of video"),
        ("", r"v\.csv: expected "),
        ("a,1,x,train\na,1,y,train\n", "clip 'a_000001' occurs twice"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        vggsound.listed(tmp_path / "v.csv")


def test_the_real_test_list(shared_data: Path, tmp_path: Path) -> None:
    names = pd.read_csv(shared_data / "annotations/vggsound_test.csv", header=None, names=["file", "class"])
    counts = pd.read_csv(shared_data / "annotations/vggsound_stat.csv", header=None, names=["class", "clips", "kind"])
    start = names["file"].str[12:18].astype(int)
    table = pd.DataFrame({"video": names["file"].str[:11], "start": start, "class": names["class"], "split": "test"})
    table.to_csv(tmp_path / "v.csv", header=False, index=False)
    listed = vggsound.listed(tmp_path / "v.csv")
    assert (listed["stem"] + ".mp4").tolist() == names["file"].tolist()
    assert len(listed) == 15_446
    assert counts["clips"].sum() - len(listed) == 183_730
    assert set(listed["class"]) == set(counts["class"])
    assert len(counts) == 309
