from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.origins import Ave
from avdistill.data import datasets
from avdistill.data.datasets import ave
from avdistill.data.index import read_index
from avdistill.data.sources import google_drive
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import logged, stage
from tests.helpers.more_sites import AVE_LISTS, AVE_MISSING, AVE_VIDEOS, BELL, SPEECH, ave_archive, ave_site
from tests.helpers.serving import Server, serve


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return ave_site(tmp_path / "web")


def origin(web: Server, **changes: str | bool) -> dict[str, str | bool]:
    return {"kind": "ave", "source": "avdistill/data/datasets/unwatched", "mirror": web.url} | changes


def test_from_the_archive_to_the_index(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(site) as web:
        download.main(stage("download", "d", tmp_path, origin(web)))
        printed = capsys.readouterr()
        reasons = "2 another label of its video; 1 event without length; 1 its video is in the test split; "
        reasons += "1 its video is in the val split; 1 not in the folder of videos"
        assert printed.out == f"ave: 18 listed or found, 12 clips of 2 classes used; left out: {reasons}\n"
        assert "warning" not in printed.err
        split.main(stage("split", "d", tmp_path, origin(web)))
    assert not list((tmp_path / "out/download").rglob("*.zip"))
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    ok = index[index["status"] == "ok"]
    assert ok["group"].is_unique and set(ok["group"]) == AVE_VIDEOS - {AVE_MISSING, "VWi2ENBuTbw"}
    assert index.loc["VWi2ENBuTbw", ["status", "reason"]].tolist() == ["excluded", "event without length"]
    assert index.loc[AVE_MISSING, "status"] == "unavailable"
    shared = index[index["group"] == "-J2WJaG1Dd4"]
    assert shared["status"].tolist().count("ok") == 1
    assert shared[shared["status"] == "ok"]["class"].tolist() == [SPEECH], "the first label in the test list"
    assert ok.loc["gjCew0Kp0iM", ["class", "split"]].tolist() == [SPEECH, "val"]
    assert ok.loc["RUhOCu3LNXM", ["class", "split", "event_start", "event_end"]].tolist() == [BELL, "train", 0, 10]
    assert ok["seconds"].to_numpy() == pytest.approx(2, abs=0.01)
    assert split.summarise(index)["status"] == {"ok": 12, "corrupt": 0, "unavailable": 1, "excluded": 5}


def test_the_published_split_warns_and_downloads_nothing_again(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(site) as web:
        download.main(stage("download", "d", tmp_path, origin(web)))
        capsys.readouterr()
        download.main(stage("download", "d", tmp_path, origin(web, split="published")))
        warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert [line.partition(", so")[0] for line in warnings] == [
            "ave: warning: in the published split, 1 of the 3 videos of val are also among the 8 of train",
            "ave: warning: in the published split, 1 of the 4 videos of test are also among the 8 of train",
        ]
        assert web.count(f"/{ave.ARCHIVE}") == 1
        made = stage("split", "d", tmp_path, origin(web, split="published"))
        split.main(made)
    index = read_index(tmp_path / "out/split/d/index.csv")
    assert index["split"].value_counts().to_dict() == {name: len(rows) for name, rows in AVE_LISTS.items()}
    assert index["id"].is_unique
    assert logged(made)["expected_clips.train"] == 3741 and logged(made)["expected_clips.test"] == 402
    assert (index["status"] == "excluded").sum() == 1


def test_an_interrupted_download_goes_on(site: Path, tmp_path: Path) -> None:
    half = (site / ave.ARCHIVE).stat().st_size // 2
    with serve(site) as web:
        web.limits[f"/{ave.ARCHIVE}"] = iter([half])
        download.main(stage("download", "d", tmp_path, origin(web)))
        assert [wanted for _, wanted in web.requests] == [None, f"bytes={half}-"]


@pytest.mark.parametrize("page", [False, True])
def test_google_drive(page: bool, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = (site / ave.ARCHIVE).read_bytes()
    first, confirmed = (f"download?id={ave.DRIVE_FILE}&export=download&confirm=t{more}" for more in ("", "&uuid=6-f"))
    form = f"""<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
        <form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
        <input type="submit" value="Download anyway"/><input type="hidden" name="id" value="{ave.DRIVE_FILE}">
        <input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
        <input type="hidden" name="uuid" value="6-f"></form></body></html>"""
    (site / first).write_bytes(form.encode() if page else archive)
    (site / confirmed).write_bytes(archive)
    with serve(site) as web:
        monkeypatch.setattr(google_drive, "SITE", web.url)
        unmirrored = {name: value for name, value in origin(web).items() if name != "mirror"}
        download.main(stage("download", "d", tmp_path, unmirrored))
        assert [path for path, _ in web.requests] == [f"/{first}", f"/{confirmed}"][: 1 + page]
    assert len(datasets.clips(tmp_path / "out/download/d")) == 18


@pytest.mark.parametrize("answer", [b"<html>Sorry, too many users have viewed or downloaded this file recently", None])
def test_google_drive_refuses(answer: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web").mkdir()
    if answer:
        (tmp_path / f"web/download?id={ave.DRIVE_FILE}&export=download&confirm=t").write_bytes(answer)
    with serve(tmp_path / "web") as web:
        monkeypatch.setattr(google_drive, "SITE", web.url)
        reason = "sent a page, not the file; it may be over its quota" if answer else "HTTP status 404"
        message = (
            rf"{reason}.*; or download https://drive\.google\.com/file/d/{ave.DRIVE_FILE}/view in a browser and set"
        )
        (tmp_path / "out").mkdir()
        with pytest.raises(UserError, match=message):
            ave.download(Ave(kind="ave", source="x"), tmp_path / "out")


def test_an_archive_that_was_brought_by_hand(site: Path, tmp_path: Path) -> None:
    own = Ave(kind="ave", source=str(site / ave.ARCHIVE), videos=str(site / ave.ARCHIVE))
    ave.check(own)
    (tmp_path / "out").mkdir()
    ave.download(own, tmp_path / "out")
    ave.download(own, tmp_path / "out")
    assert len(datasets.clips(tmp_path / "out")) == 18
    assert (site / ave.ARCHIVE).exists()


@pytest.mark.parametrize("videos", ["AVE_Dataset", "AVE_Dataset/AVE"])
def test_a_folder_that_the_user_has_is_used_in_place(videos: str, tmp_path: Path) -> None:
    for name, content in ave_archive(tmp_path).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    own = Ave(kind="ave", source="x", videos=str(tmp_path / videos))
    ave.check(own)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "out").mkdir()
    ave.download(own, tmp_path / "out")
    table = datasets.clips(tmp_path / "out")
    clips = datasets.locate(table[table["unavailable"] == ""], ave.videos(own, tmp_path / "out"))
    assert all(clip.path.is_file() for clip in clips)
    (tmp_path / "AVE_Dataset/valSet.txt").unlink()
    with pytest.raises(UserError, match=r"no valSet\.txt in it or beside it; set `annotation` to the folder"):
        ave.check(own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Church bell&RUhOCu3LNXM&good&0\n", r"t\.txt: line 1: expected Category&VideoID&Quality&Start&End"),
        ("Church bell&RUhOCu3LNXM&good&0&10\nBark&../../x&good&0&10\n", r"t\.txt: line 2: expected Category"),
        ("Church bell&RUhOCu3LNXM&good&a&b\n", r"t\.txt: line 1: expected"),
        ("Category&VideoID&Quality&StartTime&EndTime\n", r"t\.txt: expected an official list of clips, found no row"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        ave.listed(tmp_path / "t.txt", "train")


def test_the_published_lists(shared_data: Path) -> None:
    folder = shared_data / "annotations/ave"
    if not folder.is_dir():
        pytest.skip("no published lists of AVE at hand")
    tables = {part: ave.listed(folder / file, part) for file, part in ave.LISTS.items()}
    assert {part: len(table) for part, table in tables.items()} == ave.PUBLISHED
    videos = {part: set(table["group"]) for part, table in tables.items()}
    assert len(set().union(*videos.values())) == 4097
    assert [len(videos["train"] & videos[part]) for part in ("test", "val")] == [8, 10]
    assert len(set().union(*(table["class"] for table in tables.values()))) == 28
