from __future__ import annotations

import itertools
import os
from pathlib import Path
from unicodedata import normalize

import pandas as pd
import pytest

from avdistill.config.origins import Folder
from avdistill.data import datasets
from avdistill.data.datasets import folder
from avdistill.pipeline.errors import UserError

NAMES = ('a b\'s "c".mp4', "日本_g01.MOV", "x,y_g02.avi", "NA.webm")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("Archery", "naïve class, 2"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for file in NAMES:
            (tmp_path / "in" / name / file).write_bytes(b"video")
    return tmp_path / "in"


def listed(source: Path, tmp_path: Path, **changes: object) -> pd.DataFrame:
    origin = Folder.model_validate({"kind": "folder", "source": str(source)} | changes)
    folder.check(origin)
    (tmp_path / "out").mkdir(exist_ok=True)
    folder.download(origin, tmp_path / "out")
    return datasets.clips(tmp_path / "out")


def test_any_name_is_kept(source: Path, tmp_path: Path) -> None:
    table = listed(source, tmp_path)
    assert len(table) == 8
    assert set(table["class"]) == {"Archery", "naïve class, 2"}
    assert set(table["id"]) == {f"{name}/{file}" for name in ("Archery", "naïve class, 2") for file in NAMES}
    assert table["group"].tolist() == table["id"].tolist()
    assert "split" not in table
    clips = datasets.locate(table, source)
    assert all(clip.path.read_bytes() == b"video" for clip in clips)
    assert {(clip.start, clip.end) for clip in clips} == {(0.0, None)}


def test_what_is_no_video_is_left_out(source: Path, tmp_path: Path) -> None:
    for path in ("README.txt", "Archery/notes.txt", "Archery/.hidden.mp4", "Archery/._x.mp4", ".cache/x.mp4", "x.mp4"):
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).write_text("")
    assert len(listed(source, tmp_path)) == 8


def test_deeper_folders_belong_to_the_class(source: Path, tmp_path: Path) -> None:
    (source / "Archery/day 1").mkdir()
    (source / "Archery/day 1/x.mp4").write_text("")
    table = listed(source, tmp_path).set_index("id")
    assert table.loc["Archery/day 1/x.mp4", "class"] == "Archery"


def test_an_exchanged_file_changes_the_listing(source: Path, tmp_path: Path) -> None:
    listed(source, tmp_path)
    before = (tmp_path / "out/files.csv").read_bytes()
    (source / "Archery" / NAMES[0]).write_bytes(b"another video")
    listed(source, tmp_path)
    assert (tmp_path / "out/files.csv").read_bytes() != before


def test_groups_by_pattern_count_within_their_class(source: Path, tmp_path: Path) -> None:
    for name in ("Archery", "naïve class, 2"):
        for file in (NAMES[0], NAMES[3]):
            (source / name / file).unlink()
    table = listed(source, tmp_path, group_pattern=r"_g(\d+)")
    assert set(table["group"]) == {f"{name}/{n}" for name in ("Archery", "naïve class, 2") for n in ("01", "02")}


def test_a_name_without_a_group(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not match the file name"):
        listed(source, tmp_path, group_pattern=r"_g(\d+)")


def groups_csv(source: Path, **columns: list[str]) -> None:
    files = sorted(path.relative_to(source).as_posix() for path in source.glob("*/*"))
    pd.DataFrame({"file": files, "group": [f"g{n // 2}" for n in range(len(files))]} | columns).to_csv(
        source / "groups.csv", index=False
    )


def test_groups_and_parts_from_a_table(source: Path, tmp_path: Path) -> None:
    groups_csv(source, split=["train", "test"] * 4)
    table = listed(source, tmp_path)
    assert sorted(set(table["group"])) == ["g0", "g1", "g2", "g3"]
    assert table["split"].value_counts().to_dict() == {"train": 4, "test": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\nArchery/x.mp4\n", "expected a column 'group', found file"),
        ("", "not a CSV table"),
        ("file,group\nArchery/NA.web,g1\n", "there is no video 'Archery/NA.web' in .*did you mean 'Archery/NA.webm'"),
        ("file,group\nArchery/NA.webm,g1\n", "no row for 'Archery/a b's"),
    ],
)
def test_bad_group_tables(source: Path, tmp_path: Path, text: str, message: str) -> None:
    (source / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        listed(source, tmp_path)


def test_a_file_that_stands_twice(source: Path, tmp_path: Path) -> None:
    groups_csv(source)
    with (source / "groups.csv").open("a") as table:
        table.write("Archery/NA.webm,g9\n")
    with pytest.raises(UserError, match="occurs twice"):
        listed(source, tmp_path)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        listed(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match="found none"):
        listed(tmp_path, tmp_path)
    (tmp_path / "videos/Archery").mkdir(parents=True)
    (tmp_path / "videos/Archery/x.mp4").touch()
    with pytest.raises(UserError, match="two or more classes, found only 'Archery'"):
        listed(tmp_path / "videos", tmp_path)
    (tmp_path / "videos/Surfing").mkdir()
    (tmp_path / "videos/Surfing/x\udcff.mp4").touch()
    with pytest.raises(UserError, match="not valid UTF-8"):
        listed(tmp_path / "videos", tmp_path)


def test_nothing_is_left_out_in_silence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hidden and system folders at any depth, links to folders, other types: counted, with reasons."""
    for path in (
        "Archery/.ipynb_checkpoints/a.mp4", "Archery/@eaDir/a.mp4", "Archery/deep/__MACOSX/a.mp4",
        "$RECYCLE.BIN/x/a.mp4", "Archery/._a.mp4", "Archery/notes.txt", "readme.md",
    ):  # fmt: skip
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text("")
    os.mkfifo(source / "Archery/pipe.mp4")
    (source / "Archery/elsewhere").symlink_to(source / "naïve class, 2")
    assert len(listed(source, tmp_path)) == 8
    told = capsys.readouterr().out
    assert ": 17 listed or found, 8 clips of 2 classes used; left out: 5 hidden" in told
    for reason in (
        "5 hidden files or files of the system", "1 neither files nor folders", "1 links to folders",
        "1 files of type '.txt'", "1 files beside the folders of classes",
    ):  # fmt: skip
        assert reason in told, told


@pytest.mark.parametrize("place", ["", "Archery", "Archery/deep"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.mp4", r"broken\.mp4: a link to nowhere\.mp4, which does not exist; delete the link"),
        (".dvcignore", r"\.dvcignore: DVC does not watch a folder with such a file; delete or rename it"),
    ],
)
def test_what_dvc_fails_at_is_one_line(source: Path, tmp_path: Path, place: str, name: str, message: str) -> None:
    path = source / place / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("nowhere.mp4") if name == "broken.mp4" else path.write_text("*.avi\n")
    with pytest.raises(UserError, match=message):
        listed(source, tmp_path)


def test_a_class_that_is_a_link_is_one_line(source: Path, tmp_path: Path) -> None:
    """DVC watches nothing behind it, so a change there would go unnoticed. The source itself may be a link."""
    (tmp_path / "elsewhere").mkdir()
    (source / ".hidden").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(source)
    assert len(listed(tmp_path / "link", tmp_path)) == 8
    (source / "Diving").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"Diving: a link to a folder, in which DVC notices no change; put the folder"):
        listed(source, tmp_path)


# Besides those of phones and computers: streams without a container, recorders, discs, cameras, old programs.
@pytest.mark.parametrize(
    "ending",
    [
        *("264", "h264", "avc", "h265", "hevc", "m1v", "m2v", "m2t", "m2ts", "mts", "mpe", "mpeg", "mpg", "tp", "trp"),
        *("vob", "dvd", "dif", "dv", "mxf", "gxf", "mk3d", "ogx", "rm", "rv", "viv", "swf", "obu", "ivf", "y4m", "nut"),
        *("wtv", "3gpp", "3g2", "mp4v", "qt", "asf", "wm", "gif", "mjpg", "mj2", "amv", "f4v", "ismv", "vc1", "dav"),
    ],
)
def test_every_type_of_video_is_used(source: Path, tmp_path: Path, ending: str) -> None:
    (source / f"Archery/other.{ending.upper()}").write_bytes(b"video")
    (source / f"Archery/clip.{ending}").write_bytes(b"video")
    assert len(listed(source, tmp_path)) == 10


@pytest.mark.parametrize("layout", ["{split}/{name}/{file}", "{name}/{split}/{file}"])
def test_folders_may_give_the_splits(layout: str, tmp_path: Path) -> None:
    for split, name, file in itertools.product(("train", "Valid", "testing"), "ab", ("1.mp4", "2.mp4")):
        path = tmp_path / "in" / layout.format(split=split, name=name, file=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    table = listed(tmp_path / "in", tmp_path)
    assert set(table["class"]) == {"a", "b"}
    assert table["split"].value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}


def test_a_class_called_test_is_a_class(tmp_path: Path) -> None:
    for name in ("test", "other"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.mp4").write_bytes(b"video")
    table = listed(tmp_path / "in", tmp_path)
    assert set(table["class"]) == {"test", "other"} and "split" not in table


def test_letters_with_accents_match_however_they_are_spelt(tmp_path: Path) -> None:
    for name in ("café", "thé"):
        (tmp_path / "in" / normalize("NFD", name)).mkdir(parents=True)
        (tmp_path / "in" / normalize("NFD", name) / "1.mp4").write_bytes(b"video")
    rows = "".join(f"{normalize('NFC', name)}/1.mp4,g{name}\n" for name in ("café", "thé"))
    (tmp_path / "in/groups.csv").write_text(f"file,group\n{rows}")
    assert set(listed(tmp_path / "in", tmp_path)["group"]) == {"gcafé", "gthé"}
