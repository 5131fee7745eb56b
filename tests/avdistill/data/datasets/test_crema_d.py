from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.origins import CremaD
from avdistill.data import datasets
from avdistill.data.datasets import crema_d
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import logged, stage
from tests.helpers.more_sites import CREMA_D_ACTORS, CREMA_D_CLIPS, CREMA_D_PUBLISHED, CREMA_D_SILENT, crema_d_site
from tests.helpers.replicas import lfs_pointer, write_zip
from tests.helpers.serving import Server, serve


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return crema_d_site(tmp_path / "web")


def origin(web: Server, **changes: str | bool) -> dict[str, str | bool]:
    return {"kind": "crema_d", "source": "avdistill/data/datasets/unwatched", "mirror": web.url} | changes


def test_from_the_repository_to_the_index(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(site) as web:
        download.main(stage("download", "d", tmp_path, origin(web)))
        printed = capsys.readouterr()
        assert printed.out == ("crema_d: 32 listed or found, 28 clips of 6 classes used; left out: 4 known to be bad\n")
        assert "crema_d: found 32 of 7442 clips" in printed.err and "warning" not in printed.err
        split.main(stage("split", "d", tmp_path, origin(web)))
        assert not any("csv" in path or "Audio" in path for path, _ in web.requests)
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    assert set(index.index) == set(CREMA_D_CLIPS)
    bad = index[index["status"] != "ok"]
    assert bad["reason"].to_dict() == crema_d.BAD
    assert set(bad["status"]) == {"excluded"}
    assert index.loc[CREMA_D_SILENT, ["status", "audio", "reason"]].tolist() == ["ok", "no", "no audio stream"]
    assert index.drop(bad.index)["seconds"].to_numpy() == pytest.approx(2, abs=0.3)
    assert index.groupby("group")["split"].nunique().max() == 1, "an actor is in two splits"
    assert set(index["split"]) == {"train", "val", "test"}
    assert set(index["group"]) == set(CREMA_D_ACTORS)
    assert set(index["class"]) == set(crema_d.EMOTIONS.values())
    assert index.loc["1091_MTI_NEU_XX", "class"] == "neutral"
    assert split.summarise(index)["status"] == {"ok": 28, "corrupt": 0, "unavailable": 0, "excluded": 4}


def test_the_published_split_warns_and_downloads_nothing_again(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(site) as web:
        download.main(stage("download", "d", tmp_path, origin(web)))
        capsys.readouterr()
        download.main(stage("download", "d", tmp_path, origin(web, split="published")))
        assert (
            "crema_d: warning: in the published split, 5 of the 5 actors of test are also among the 5 of train, so its "
            "accuracy is not that on new actors\n"
        ) in capsys.readouterr().err
        assert web.count(f"/VideoFlash/{CREMA_D_SILENT}.flv") == 1
        made = stage("split", "d", tmp_path, origin(web, split="published"))
        split.main(made)
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    assert set(index.index[index["split"] == "test"]) == set(CREMA_D_PUBLISHED["test.csv"])
    assert logged(made)["expected_clips.train"] == 6698 and logged(made)["expected_clips.test"] == 744


def test_an_interrupted_download_goes_on(site: Path, tmp_path: Path) -> None:
    path = site / f"VideoFlash/{CREMA_D_CLIPS[-1]}.flv"
    content = path.read_bytes()
    with serve(site) as web:
        path.write_bytes(b"other bytes")
        with pytest.raises(UserError, match=r"1064_TIE_SAD_XX\.flv: expected sha256 \w+, found \w+"):
            download.main(stage("download", "d", tmp_path, origin(web)))
        path.unlink()
        with pytest.raises(UserError, match=r"404 .*; or clone https://github\.com/.*CREMA-D with Git LFS and set"):
            download.main(stage("download", "d", tmp_path, origin(web)))
        path.write_bytes(content)
        download.main(stage("download", "d", tmp_path, origin(web)))
        assert web.count(f"/VideoFlash/{CREMA_D_CLIPS[0]}.flv") == 1
        assert web.count("/master.zip") == 1
    assert len(datasets.clips(tmp_path / "out/download/d")) == len(CREMA_D_CLIPS)


@pytest.mark.parametrize("layout", ["VideoFlash/{name}.flv", "{name}.mp4"])
def test_a_folder_that_the_user_has_is_used_in_place(layout: str, site: Path, tmp_path: Path) -> None:
    for name in CREMA_D_CLIPS[:-1]:
        path = tmp_path / "own" / layout.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    (tmp_path / "own/1001_QQQ_ANG_XX.flv").write_bytes(b"another sentence")
    own = CremaD(kind="crema_d", source="x", videos=str(tmp_path / "own"), annotation=str(site), split="published")
    crema_d.check(own)
    (tmp_path / "out").mkdir()
    crema_d.download(own, tmp_path / "out")
    table = datasets.clips(tmp_path / "out").set_index("id")
    assert set(table.index) == set(CREMA_D_CLIPS)
    assert (table["unavailable"] == "").all(), "the missing clip is excluded, so it is not needed"
    assert table.loc["1001_MTI_ANG_XX", "file"] == layout.format(name="1001_MTI_ANG_XX")


def test_an_archive_that_the_user_has_is_unpacked(tmp_path: Path) -> None:
    members = {f"C/VideoFlash/{name}.flv": b"video" for name in CREMA_D_CLIPS} | {"C/a.txt": b""}
    own = write_zip(tmp_path / "c.zip", members)
    archive = CremaD(kind="crema_d", source=str(own), videos=str(own))
    crema_d.check(archive)
    (tmp_path / "out").mkdir()
    crema_d.download(archive, tmp_path / "out")
    clips = datasets.locate(datasets.clips(tmp_path / "out"), crema_d.videos(archive, tmp_path / "out"))
    assert len(clips) == len(CREMA_D_CLIPS) and all(clip.path.read_bytes() == b"video" for clip in clips)
    assert own.exists()


def test_pointers_in_place_of_videos_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own/VideoFlash/1001_MTI_ANG_XX.flv"
    path.parent.mkdir(parents=True)
    path.write_bytes(lfs_pointer(b"video"))
    with pytest.raises(UserError, match=r"1001_MTI_ANG_XX\.flv: a Git LFS pointer, not a video; run `git lfs pull`"):
        crema_d.check(CremaD(kind="crema_d", source="x", videos=str(tmp_path / "own")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1001_MTI_ANG_XX,SAD\n", r"train\.csv: line 1: expected a row like 1001_DFA_ANG_XX,ANG, found '1001_MTI"),
        ("1001_MTI_ANG_XX,ANG\n1001_MTI_JOY_XX,JOY\n", r"train\.csv: line 2: expected a row"),
        ("../1001_MTI_ANG_XX,ANG\n", r"train\.csv: line 1: expected a row"),
        ("version https://git-lfs.github.com/spec/v1\n", r"train\.csv: line 1: expected a row"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        crema_d.read_list(tmp_path / "train.csv")


def test_an_archive_without_pointers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected pointers such as CREMA-D-master/VideoFlash"):
        crema_d.pointers(write_zip(tmp_path / "a.zip", {"CREMA-D-master/README.md": b""}))
    with pytest.raises(UserError, match=r"1001_MTI_ANG_XX\.flv: expected a Git LFS pointer"):
        crema_d.pointers(write_zip(tmp_path / "b.zip", {"VideoFlash/1001_MTI_ANG_XX.flv": b"FLV"}))
    (tmp_path / "c.zip").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"c\.zip: no zip archive"):
        crema_d.pointers(tmp_path / "c.zip")


def test_a_real_pointer_is_read(tmp_path: Path) -> None:
    oid = "10dc3fd1f2bc8203657431598bd7dc9312462008f93d08fda786043ae6a8d2f4"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 265922\n".encode()
    archive = write_zip(tmp_path / "a.zip", {"CREMA-D-master/VideoFlash/1001_DFA_ANG_XX.flv": pointer})
    assert crema_d.pointers(archive) == {"1001_DFA_ANG_XX": (oid, 265_922)}


REAL = "1041_TIE_NEU_XX 1071_MTI_SAD_XX 1028_WSI_DIS_XX 1016_IEO_HAP_LO 1087_IEO_FEA_LO 1082_ITH_HAP_XX 1089_IEO_DIS_MD"
REAL += " 1011_IWL_ANG_XX 1050_IOM_ANG_XX 1024_IEO_ANG_HI"


def test_real_names() -> None:
    table = crema_d.listed(REAL.split()).set_index("id")
    assert len(table) == 10
    assert table.loc["1041_TIE_NEU_XX", ["class", "group"]].tolist() == ["neutral", "1041"]
    assert table.loc["1087_IEO_FEA_LO", ["class", "group"]].tolist() == ["fear", "1087"]
    for name in ("1041_TIE_NEU", "1041_TIE_JOY_XX", "1041_ABC_NEU_XX", "2041_TIE_NEU_XX", "1041_TIE_NEU_XXL"):
        assert crema_d.NAME.fullmatch(name) is None


def test_the_published_lists(shared_data: Path) -> None:
    folder = shared_data / "annotations/crema_d"
    if not folder.is_dir():
        pytest.skip("no published lists of CREMA-D at hand")
    names = {part: crema_d.read_list(folder / file) for file, part in crema_d.LISTS.items()}
    assert {part: len(own) for part, own in names.items()} == crema_d.PUBLISHED
    train, test = ({name[:4] for name in names[part]} for part in ("train", "test"))
    assert train == test and len(train) == 91
    assert crema_d.BAD.keys() <= set(names["train"])
