from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from avdistill.config.origins import KineticsSounds
from avdistill.data import datasets, media
from avdistill.data.datasets import kinetics_sounds
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import ramp, stage, tone
from tests.helpers.replicas import kinetics_name as name
from tests.helpers.replicas import write_kinetics, write_kinetics_lists
from tests.helpers.serving import Server, serve

BOWLING, DANCING = "bowling", "tap dancing"
TRAIN = [  # label, video, start; one in no archive, one damaged and replaced, one of another class
    (BOWLING, "--4-0ihtnBU", 58),
    (BOWLING, "--6q_33gNew", 132),
    (BOWLING, "-00nar1nEPc", 33),
    (DANCING, "0wR5jVB-WPk", 417),
    (DANCING, "1e5-aaaaaaa", 0),
    (DANCING, "damaged-one", 7),
    (DANCING, "missing-one", 9),
    ("abseiling", "3caPS4FHFF8", 36),
]
VAL = [
    (BOWLING, "4_abcdefghi", 1),
    (BOWLING, "5-abcdefghi", 2),
    (DANCING, "NA-abcdefgh", 1200),
    ("zumba", "6-abcdefghi", 3),
]


def official_lists(folder: Path) -> None:
    write_kinetics_lists(folder, {"train": TRAIN, "val": VAL})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The archives as the Common Visual Data Foundation has them."""
    folder = tmp_path / "web"
    official_lists(folder / "annotations")
    media.write_video(tmp_path / "video.mp4", ramp(10), 5, tone(2))
    video = (tmp_path / "video.mp4").read_bytes()
    there = [row for row in TRAIN if row[1] != "missing-one"]
    files = {f"./{name(*row[1:])}.mp4": b"damaged" if row[1] == "damaged-one" else video for row in there}
    members = list(files.items())
    archives = {
        "train": [dict(members[:4]), dict(members[4:])],
        "val": [{f"{name(*row[1:])}.mp4": video for row in VAL}],
    }
    write_kinetics(folder, archives, {f"{name('damaged-one', 7)}.mp4": video})
    return folder


def origin(web: Server, **changes: str | bool) -> dict[str, str | bool]:
    return {
        "kind": "kinetics_sounds",
        "source": "avdistill/data/datasets/unwatched",
        "mirror": web.url,
    } | changes


def test_from_the_archives_to_the_index(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(site) as web:
        download.main(stage("download", "d", tmp_path, origin(web)))
        assert capsys.readouterr().out == (
            "kinetics_sounds: 10 listed or found, 9 clips of 2 classes used; left out: 1 in none of the archives\n"
        )
        split.main(stage("split", "d", tmp_path, origin(web)))
        assert not any("test" in path for path, _ in web.requests)
    videos = tmp_path / "out/download/d/videos"
    assert not list(videos.glob(".archives/*.gz")) + list(videos.glob(".archives/*.tgz"))
    expected = {name(*row[1:]): row[0] for row in [*TRAIN, *VAL] if row[0] in (BOWLING, DANCING)}
    missing = name("missing-one", 9)
    assert {path.stem for path in videos.glob("*.mp4")} == set(expected) - {missing}
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    assert index["class"].to_dict() == expected
    assert index.loc[missing, ["status", "reason"]].tolist() == ["unavailable", "in none of the archives"]
    assert (index.drop(missing)["status"] == "ok").all(), "the damaged file was not replaced"
    assert index.drop(missing)["seconds"].to_numpy() == pytest.approx(2, abs=0.01)
    assert set(index[index["split"] == "test"].index) == {name(*row[1:]) for row in VAL[:3]}
    assert index.loc[name("NA-abcdefgh", 1200), "group"] == "NA-abcdefgh"
    metrics = split.summarise(index)
    assert metrics["status"] == {"ok": 9, "corrupt": 0, "unavailable": 1, "excluded": 0}
    assert metrics["groups_unavailable"] == {"train": 1, "val": 0, "test": 0}


def test_an_interrupted_download_goes_on(site: Path, tmp_path: Path) -> None:
    away = site / "train/part_1.tar.gz"
    away.rename(tmp_path / "away")
    with serve(site) as web:
        with pytest.raises(UserError, match=r"train/part_1\.tar\.gz"):
            download.main(stage("download", "d", tmp_path, origin(web)))
        (tmp_path / "away").rename(away)
        download.main(stage("download", "d", tmp_path, origin(web)))
        assert web.count("/train/part_0.tar.gz") == 1
        assert web.count("/replacement_for_corrupted_k400.tgz") == 1
    clips = datasets.clips(tmp_path / "out/download/d")
    assert clips["id"][clips["unavailable"] != ""].tolist() == [name("missing-one", 9)]
    replaced = tmp_path / f"out/download/d/videos/{name('damaged-one', 7)}.mp4"
    assert replaced.read_bytes() == (tmp_path / "video.mp4").read_bytes()


@pytest.mark.parametrize("layout", ["{stem}.mp4", "{label}/{stem}.mp4", "{split}/{label}/{stem}.mkv"])
def test_a_folder_that_the_user_has_is_used_in_place(layout: str, tmp_path: Path) -> None:
    official_lists(tmp_path / "lists")
    for part, rows in {"train": TRAIN[:5], "val": VAL}.items():
        for label, video, start in rows:
            path = tmp_path / "own" / layout.format(split=part, label=label, stem=name(video, start))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"video")
    own = KineticsSounds(
        kind="kinetics_sounds", source="x", videos=str(tmp_path / "own"), annotation=str(tmp_path / "lists")
    )
    kinetics_sounds.check(own)
    (tmp_path / "out").mkdir()
    kinetics_sounds.download(own, tmp_path / "out")
    table = datasets.clips(tmp_path / "out")
    assert table["id"][table["unavailable"] != ""].tolist() == [name("damaged-one", 7), name("missing-one", 9)]
    clips = datasets.locate(table[table["unavailable"] == ""], kinetics_sounds.videos(own, tmp_path / "out"))
    assert len(clips) == 8
    assert all(clip.path.is_file() for clip in clips)


def test_what_is_lacking_is_filled_in(site: Path, tmp_path: Path) -> None:
    own = tmp_path / f"own/{BOWLING}/{name(*TRAIN[0][1:])}.mp4"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the user's own")
    with serve(site) as web:
        filled = KineticsSounds.model_validate(origin(web, videos=str(tmp_path / "own"), fill=True))
        (tmp_path / "out").mkdir()
        kinetics_sounds.download(filled, tmp_path / "out")
    assert own.read_bytes() == b"the user's own"
    assert not (tmp_path / "own" / own.name).exists()
    table = datasets.clips(tmp_path / "out").set_index("id")
    assert (table["unavailable"] == "").sum() == 9
    assert table.loc[own.stem, "file"] == f"{BOWLING}/{own.name}"


def test_an_annotation_that_lacks_a_list(tmp_path: Path) -> None:
    official_lists(tmp_path / "lists")
    (tmp_path / "lists/val.csv").unlink()
    lacking = KineticsSounds(kind="kinetics_sounds", source="x", annotation=str(tmp_path / "lists"))
    with pytest.raises(UserError, match=r"annotation: .*val\.csv: there is no such file"):
        kinetics_sounds.check(lacking)


@pytest.mark.parametrize(
    "text", ["", "label,youtube_id\nbowling,x\n", "label,youtube_id,time_start,time_end\nbowling,x,a,b\n"]
)
def test_bad_lists(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=r"train\.csv: expected the columns label, youtube_id, time_start, time_end"):
        kinetics_sounds.listed(tmp_path / "train.csv", "train")
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end\nzumba,x,1,11\n")
    with pytest.raises(UserError, match=r"train\.csv: expected an official list of clips, found none of this dataset"):
        kinetics_sounds.listed(tmp_path / "train.csv", "train")


def test_the_classes_are_those_of_kinetics_400(shared_data: Path) -> None:
    named = pd.read_csv(shared_data / "annotations/kinetics_sounds_classes.csv")["name"]
    assert list(kinetics_sounds.CLASSES) == named.tolist()
    path = shared_data / "annotations/kinetics-400_val.csv"
    table = kinetics_sounds.listed(path, "test")
    labels = pd.read_csv(path)["label"]
    assert set(table["class"]) == set(kinetics_sounds.CLASSES)
    assert len(set(kinetics_sounds.CLASSES)) == 31
    assert len(table) == labels.isin(named).sum() == 1_544
    assert table["id"].is_unique
    assert table["group"].is_unique
    assert table["id"].str.fullmatch(r"[\w-]{11}_\d{6}_\d{6}").all()
