from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.origins import Ravdess
from avdistill.data import datasets
from avdistill.data.datasets import ravdess
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import stage
from tests.helpers.more_sites import RAVDESS_MISSING, ravdess_clips, ravdess_site
from tests.helpers.replicas import write_zip
from tests.helpers.serving import Server, serve


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return ravdess_site(tmp_path / "web")


def origin(web: Server, **changes: str | bool) -> dict[str, str | bool]:
    return {"kind": "ravdess", "source": "avdistill/data/datasets/unwatched", "mirror": web.url} | changes


def test_the_names_of_all_files() -> None:
    table = ravdess.listed()
    assert len(table) == 2880 and table["id"].is_unique
    used = table[table["excluded"] == ""]
    counts = used["class"].value_counts().to_dict()
    assert counts == {name: 96 if name == "neutral" else 192 for name in ravdess.EMOTIONS}
    assert set(used["group"].value_counts()) == {60} and used["group"].nunique() == 24
    real = ["01-01-01-01-01-01-01", "01-01-08-02-02-02-24", "02-01-06-01-02-01-12"]
    assert set(real) <= set(table["id"])
    assert set(table["id"][table["excluded"] != ""].str[:3]) == {"02-"}


def test_from_the_archives_to_the_index(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(site) as web:
        download.main(stage("download", "d", tmp_path, origin(web)))
        out = capsys.readouterr().out
        assert out == (
            "ravdess: 2880 listed or found, 40 clips of 8 classes used; left out: 1440 recording without sound; "
            "1400 not in the archive of its actor\n"
        )
        split.main(stage("split", "d", tmp_path, origin(web)))
    videos = tmp_path / "out/download/d/videos"
    assert not list(videos.rglob("*.zip"))
    assert not list(videos.rglob("02-*.mp4")), "the recordings without sound were unpacked"
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    ok = index[index["status"] == "ok"]
    assert set(ok.index) == set(ravdess_clips())
    assert set(ok["audio"]) == {"yes"} and set(ok["class"]) == set(ravdess.EMOTIONS)
    silent = index[index.index.str.startswith("02-")]
    assert set(silent["status"]) == {"excluded"} and set(silent["reason"]) == {"recording without sound"}
    missing = index.loc[RAVDESS_MISSING, ["status", "reason"]].tolist()
    assert missing == ["unavailable", "not in the archive of its actor"]
    assert index.groupby("group")["split"].nunique().max() == 1, "an actor is in two splits"
    assert set(index["split"]) == {"train", "val", "test"}
    assert split.summarise(index)["groups"] == {"train": 3, "val": 1, "test": 1}


def test_an_interrupted_download_goes_on_and_checksums_count(site: Path, tmp_path: Path) -> None:
    path = site / f"records/{ravdess.RECORD}/files/Video_Speech_Actor_03.zip"
    content = path.read_bytes()
    with serve(site) as web:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=r"Actor_03\.zip: expected md5 \w+, found \w+"):
            download.main(stage("download", "d", tmp_path, origin(web)))
        path.write_bytes(content)
        download.main(stage("download", "d", tmp_path, origin(web)))
        download.main(stage("download", "d", tmp_path, origin(web)))
        assert web.count(f"/records/{ravdess.RECORD}/files/Video_Speech_Actor_01.zip") == 1
        assert web.count(f"/records/{ravdess.RECORD}/files/Video_Speech_Actor_03.zip") == 2


def test_a_record_without_the_checksum(site: Path, tmp_path: Path) -> None:
    (site / f"api/records/{ravdess.RECORD}").write_text("<html>")
    with serve(site) as web, pytest.raises(UserError, match=r"records/1188976: no checksum of Video_Speech_Actor_01"):
        download.main(stage("download", "d", tmp_path, origin(web)))


def test_a_folder_or_archive_that_the_user_has_is_used(tmp_path: Path) -> None:
    names = [stem for stem in ravdess.listed()["id"] if stem.endswith("-01-01-07")]
    for name in names:
        path = tmp_path / f"own/Actor_07/{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    write_zip(tmp_path / "own.zip", {f"Actor_07/{name}.mp4": b"video" for name in names})
    tables = []
    for place in ("own", "own.zip"):
        own = Ravdess(kind="ravdess", source="x", videos=str(tmp_path / place))
        ravdess.check(own)
        out = tmp_path / f"out of {place}"
        out.mkdir()
        ravdess.download(own, out)
        table = datasets.clips(out)
        used = table[(table["unavailable"] == "") & (table["excluded"] == "")]
        assert all(clip.path.is_file() for clip in datasets.locate(used, ravdess.videos(own, out)))
        tables.append(used["id"].tolist())
    assert tables[0] == tables[1] == sorted(name for name in names if name.startswith("01"))


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a folder with videos, found none"):
        ravdess.check(Ravdess(kind="ravdess", source="x", videos=str(tmp_path)))
