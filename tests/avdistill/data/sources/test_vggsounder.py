from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from avdistill.config.origins import VGGSound
from avdistill.data import datasets
from avdistill.data.datasets import vggsound
from avdistill.data.sources import vggsounder
from avdistill.pipeline.errors import UserError
from tests.helpers.replicas import write_vggsound, write_vggsounder
from tests.helpers.serving import serve

CLIPS = [
    ("---g-f_I2yQ", 1, "people marching", "test"),
    ("0wP2F9pE_aQ", 10, "bird chirping, tweeting", "test"),
    ("NA_NULL-1e5", 2, "people marching", "train"),
    ("glLQrEijrKg", 3, "people marching", "test"),
]
MARCHING, CHIRPING, TRAINING, UNLABELLED = (f"{video}_{start:06}" for video, start, *_ in CLIPS)
ROWS = [  # music is with the whole clip; the last label is no class of the list
    (MARCHING, "people marching", "AV", True, False, False),
    (MARCHING, "bird chirping, tweeting", "A", True, False, False),
    (CHIRPING, "bird chirping, tweeting", "V", False, True, True),
    (CHIRPING, "male singing", "AV", False, True, True),
]
EXPECTED = {
    MARCHING: ["people marching|bird chirping, tweeting", "people marching", "yes", "no", "no"],
    CHIRPING: ["male singing", "bird chirping, tweeting|male singing", "no", "yes", "yes"],
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of two clips on a site, with its checksum."""
    (tmp_path / "web").mkdir()
    path = write_vggsounder(tmp_path / "web", ROWS)
    monkeypatch.setattr(vggsounder, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def origin(tmp_path: Path, url: str, **changes: object) -> VGGSound:
    """The clips' videos in a folder of the user."""
    (tmp_path / "own").mkdir(exist_ok=True)
    for name in (MARCHING, CHIRPING, TRAINING, UNLABELLED):
        (tmp_path / f"own/{name}.mp4").write_bytes(b"video")
    given = {"kind": "vggsound", "source": "x", "videos": str(tmp_path / "own"), "mirror": url}
    return VGGSound.model_validate(given | changes)


def test_one_row_per_clip(wheel: Path) -> None:
    table = vggsounder.read(wheel)
    assert list(table.columns) == ["id", *vggsounder.COLUMNS]
    assert table.set_index("id").T.to_dict("list") == EXPECTED


def test_the_list_of_clips_has_the_labels_when_asked_for(tmp_path: Path, wheel: Path) -> None:
    write_vggsound(tmp_path / "web/vggsound.csv", CLIPS)
    (tmp_path / "out").mkdir()
    with serve(tmp_path / "web") as web:
        vggsound.download(origin(tmp_path, web.url), tmp_path / "out")
        before = datasets.clips(tmp_path / "out")
        assert [path for path, _ in web.requests] == ["/vggsound.csv"] and "audible" not in before
        asked = origin(tmp_path, web.url, vggsounder=True)
        web.limits[f"/{wheel.name}"] = iter([100])
        vggsound.download(asked, tmp_path / "out")
        wanted = [ranges for path, ranges in web.requests if path == f"/{wheel.name}"]
        assert wanted == [None, "bytes=100-"], "the download did not go on where the connection had ended"
        table = datasets.clips(tmp_path / "out")
        first = (tmp_path / "out/clips.csv").read_bytes()
        vggsound.download(asked, tmp_path / "out")
        assert (tmp_path / "out/clips.csv").read_bytes() == first
        assert len([path for path, _ in web.requests if path == f"/{wheel.name}"]) == 2, "it was there already"
    pd.testing.assert_frame_equal(table[before.columns], before)
    labels = table.set_index("id")[list(vggsounder.COLUMNS)].T.to_dict("list")
    assert labels == {name: EXPECTED.get(name, [""] * 5) for name in table["id"]}


def test_labels_do_not_change_what_is_downloaded(tmp_path: Path) -> None:
    """The videos of weeks are kept when the labels are asked for: an equal repr is the same download."""
    assert repr(origin(tmp_path, "http://a")) == repr(origin(tmp_path, "http://a", vggsounder=True))


def test_another_file_is_refused(tmp_path: Path, wheel: Path) -> None:
    write_vggsounder(tmp_path / "web", ROWS[1:])
    with serve(tmp_path / "web") as web, pytest.raises(UserError, match=r"expected sha256 .*; the downloaded file was"):
        vggsounder.download(web.url, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "rows",
    [
        [(*ROWS[0][:2], "VA", *ROWS[0][3:])],
        [(*ROWS[0][:3], "maybe", False, False)],
        [ROWS[0], (*ROWS[1][:3], False, False, False)],
        [(MARCHING, "one|two", *ROWS[0][2:])],
    ],
)
def test_rows_that_are_not_understood(rows: list, tmp_path: Path) -> None:
    path = write_vggsounder(tmp_path, rows)
    with pytest.raises(UserError, match=r"vggsounder-1\.0.*cannot be read as a wheel of VGGSounder 1\.0"):
        vggsounder.read(path)


def test_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"<html>")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as file:
        file.writestr("other.csv", "a,b\n")
    for name in ("a.whl", "b.whl", "c.whl"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as a wheel of VGGSounder"):
            vggsounder.read(tmp_path / name)


def test_labels_of_training_clips_are_refused() -> None:
    clips = pd.DataFrame({"id": [TRAINING], "split": ["train"]})
    labels = pd.DataFrame([[TRAINING, "a", "", "no", "no", "no"]], columns=["id", *vggsounder.COLUMNS])
    with pytest.raises(UserError, match=f"clip '{TRAINING}' has labels of VGGSounder; expected it in the test split"):
        vggsounder.add(clips, labels)


def test_the_real_labels(shared_data: Path) -> None:
    path = shared_data / "annotations" / vggsounder.WHEEL
    if not path.exists():
        pytest.skip(f"no {vggsounder.WHEEL} at hand")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == vggsounder.SHA256
    with zipfile.ZipFile(path) as archive:
        assert hashlib.sha256(archive.read(vggsounder.TABLE)).hexdigest().startswith("6279875a")
    table = vggsounder.read(path)
    assert len(table) == 15_069 and table["id"].str[:11].nunique() == 14_504
    counts = [(table[flag] == "yes").sum() for flag in vggsounder.FLAGS]
    assert counts == [3_055, 1_622, 2_985]
    modality: Counter[str] = Counter()
    for heard, seen in zip(table["audible"].str.split("|"), table["visible"].str.split("|"), strict=True):
        heard, seen = set(heard) - {""}, set(seen) - {""}
        modality.update({"AV": len(heard & seen), "A": len(heard - seen), "V": len(seen - heard)})
    assert modality == {"AV": 21_914, "A": 14_236, "V": 1_245}
    names = pd.read_csv(shared_data / "annotations/vggsound_test.csv", header=None, names=["file", "class"])
    clips = pd.DataFrame({"id": names["file"].str.removesuffix(".mp4"), "class": names["class"], "split": "test"})
    joined = vggsounder.add(clips, table)
    assert (joined["audible"] + joined["visible"] != "").sum() == 15_069
    labels = {label for text in joined["audible"] + "|" + joined["visible"] for label in text.split("|")} - {""}
    assert labels == set(names["class"]) and len(labels) == 309
