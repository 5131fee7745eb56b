from __future__ import annotations

import functools
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from avdistill.config.origins import Ucf51
from avdistill.data import datasets, media
from avdistill.data.datasets import ucf51
from avdistill.data.index import read_index
from avdistill.data.sources import http
from avdistill.pipeline import workers
from avdistill.pipeline.errors import UserError
from stages import download, split
from tests.helpers.little import RATE, logged, ramp, stage, tone
from tests.helpers.replicas import ucf101_name as name
from tests.helpers.replicas import write_ucf101

# Two of the 51 classes, one of them spelt in two ways as in the real archive, and one that has no sound.
FOLDERS = {"Archery": "Archery", "HandStandPushups": "HandstandPushups", "BenchPress": "BenchPress"}
TEST_GROUPS, TRAIN_GROUPS = (1, 2), (8, 9, 10)
MUTE, SILENT, UNLISTED = "v_Archery_g08_c01", "v_Archery_g09_c01", "v_Archery_g09_c09"


@pytest.fixture(autouse=True)
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes for a dozen clips takes longer than all the rest."""

    def each(function: Callable[[object], object], items: Sequence[object], _: str) -> Iterator[tuple[object, object]]:
        return ((item, function(item)) for item in items)

    monkeypatch.setattr(workers, "each", each)


def video(number: int, sound: np.ndarray | None, path: Path) -> bytes:
    media.write_video(path, ramp(8) + np.uint8(number), 8, sound)  # an MP4; no test here looks at the type
    return path.read_bytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the official site has: the archive (here stored) and the lists; real names, folders and line ends."""
    folder = tmp_path_factory.mktemp("site")
    members: dict[str, bytes] = {}
    for number, (action, place) in enumerate(FOLDERS.items()):
        for group in TEST_GROUPS + TRAIN_GROUPS:
            for clip in (1, 2):
                stem = name(action, group, clip)
                sound = {MUTE: None, SILENT: np.zeros(RATE, dtype=np.float32)}.get(stem, tone(1, 300 + 10 * group))
                members[f"UCF-101/{place}/{stem}.avi"] = video(number, sound, folder / "made.mp4")
    members[f"UCF-101/Archery/{UNLISTED}.avi"] = members[f"UCF-101/Archery/{name('Archery', 9, 2)}.avi"]
    (folder / "made.mp4").unlink()
    write_ucf101(folder, members, UNLISTED)
    return folder


@pytest.fixture
def url(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(http, "PAUSE", 0.001)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def listed(tmp_path: Path, **settings: object) -> pd.DataFrame:
    origin = Ucf51.model_validate({"kind": "ucf51", "source": "avdistill/data/datasets/unwatched"} | settings)
    ucf51.check(origin)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    ucf51.download(origin, out)
    table = datasets.clips(out)
    for clip in datasets.locate(table, ucf51.videos(origin, out)):
        assert clip.path.is_file()
        assert clip.path.stem == clip.id
    return table.set_index("id")


def check_table(table: pd.DataFrame) -> None:
    assert len(table) == 20
    assert table["class"].value_counts().to_dict() == {"Archery": 10, "HandStandPushups": 10}
    assert table.groupby("split")["group"].unique().map(sorted).to_dict() == {
        "test": [f"{action}/g0{n}" for action in ("Archery", "HandStandPushups") for n in (1, 2)],
        "train": [f"{action}/g{n}" for action in ("Archery", "HandStandPushups") for n in ("08", "09", "10")],
    }
    assert table["excluded"][table["excluded"] != ""].to_dict() == {MUTE: "no audio stream"}


def test_from_the_site(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_table(listed(tmp_path, mirror=url))
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "UCF101TrainTestSplits-RecognitionTask.zip",
        "clips.csv",
        "sizes.csv",
        "ucfTrainTestlist",
        "videos",
    ]
    assert not [*out.rglob("*BenchPress*")], "classes without sound stay in the archive"
    assert "ucf51: found 11 train clips with sound, published: 4892" in capsys.readouterr().err


def test_the_archive_is_kept_if_wanted(url: str, site: Path, tmp_path: Path) -> None:
    listed(tmp_path, mirror=url, keep_archive=True)
    assert (tmp_path / "out" / ucf51.ARCHIVE).read_bytes() == (site / ucf51.ARCHIVE).read_bytes()


def test_an_interrupted_download_goes_on(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    asked: list[str] = []
    real = ucf51.fetch

    def counted(url: str, path: Path) -> Path:
        if not path.exists():
            asked.append(path.name)
        return real(url, path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ucf51, "fetch", counted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ucf51, "unpack", interrupted)
        listed(tmp_path, mirror=url)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ucf51, "_listing", interrupted)
        listed(tmp_path, mirror=url)
    check_table(listed(tmp_path, mirror=url))
    assert asked == [ucf51.ARCHIVE, ucf51.LISTS]


def test_an_archive_that_the_user_has(url: str, site: Path, tmp_path: Path) -> None:
    before = (site / ucf51.ARCHIVE).stat()
    check_table(listed(tmp_path, mirror=url, videos=str(site / ucf51.ARCHIVE)))
    assert (site / ucf51.ARCHIVE).stat() == before
    assert not (tmp_path / "out" / ucf51.ARCHIVE).exists()


@pytest.mark.parametrize("lists", ["below", "beside", "site"])
def test_a_folder_that_the_user_has_is_used_in_place(lists: str, url: str, site: Path, tmp_path: Path) -> None:
    have = tmp_path / "have"
    ucf51.unpack(site / ucf51.ARCHIVE, have)
    if lists != "site":
        ucf51.unpack(site / ucf51.LISTS, have if lists == "below" else tmp_path)
    mirror = url if lists == "site" else "http://127.0.0.1:9"  # nobody listens there
    table = listed(tmp_path, mirror=mirror, videos=str(have))
    check_table(table)
    assert table["file"][MUTE] == f"UCF-101/Archery/{MUTE}.avi"
    assert not [*(tmp_path / "out").rglob("*.avi")]


def test_an_exchanged_file_changes_the_output(site: Path, url: str, tmp_path: Path) -> None:
    have = tmp_path / "have"
    ucf51.unpack(site / ucf51.ARCHIVE, have)
    listed(tmp_path, mirror=url, videos=str(have))
    before = (tmp_path / "out/sizes.csv").read_bytes()
    with next(have.rglob(f"{MUTE}.avi")).open("ab") as file:
        file.write(b"more")
    listed(tmp_path, mirror=url, videos=str(have))
    assert (tmp_path / "out/sizes.csv").read_bytes() != before


def test_missing_clips_are_told(site: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    have = tmp_path / "have"
    ucf51.unpack(site / ucf51.ARCHIVE, have)
    next(have.rglob("v_Archery_g10_c02.avi")).unlink()
    table = listed(tmp_path, mirror=url, videos=str(have))
    assert len(table) == 19
    told = capsys.readouterr()
    assert "ucf51: 1 of 20 listed clips are missing: v_Archery_g10_c02, …" in told.err
    assert told.out == (
        "ucf51: 31 listed or found, 18 clips of 2 classes used; left out: 10 clips of other classes of UCF101; "
        "1 clips that are not in the lists of split 1; 1 listed clips that are missing; 1 no audio stream\n"
    )


def test_other_splits_have_other_lists(url: str, tmp_path: Path) -> None:
    assert len(listed(tmp_path, mirror=url, split=2)) == 16


def test_the_stages(url: str, tmp_path: Path) -> None:
    origin = {"kind": "ucf51", "source": "avdistill/data/datasets/unwatched", "mirror": url}
    download.main(stage("download", "d", tmp_path, origin))
    made = stage("split", "d", tmp_path, origin)
    split.main(made)
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    assert len(index) == 20
    assert (index["status"] == "ok").sum() == 19
    assert index.loc[MUTE, "status"] == "excluded"
    assert index.loc[MUTE, "reason"] == "no audio stream"
    assert index.loc[SILENT, ["status", "audio"]].tolist() == ["ok", "silent"]
    assert set(index["split"][index["group"].str[-2:].isin(["01", "02"])]) == {"test"}
    assert logged(made)["expected_clips.train"] == 4892 and logged(made)["expected_clips.test"] == 1944


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"videos": "nowhere"}, "videos: nowhere: there is no such folder or archive"),
        ({"videos": "empty"}, "videos: empty: expected clips named like v_Archery_g01_c01.avi, found none"),
        ({"videos": "other.zip"}, r"other\.zip: expected clips such as UCF-101/Archery/v_Archery_g01_c01.avi"),
        ({"videos": "page.rar"}, r"page\.rar: the archive is damaged"),
        ({"videos": "twice"}, r"another file has the same name: twice/a/v_Archery_g01_c01\.avi"),
        ({"mirror": "http://127.0.0.1:9"}, r"http://127\.0\.0\.1:9/UCF101\.rar: .*refused"),
    ],
)
def test_what_cannot_be_used(
    settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.001)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in ("twice/a", "twice/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "v_Archery_g01_c01.avi").touch()
    (tmp_path / "twice/ucfTrainTestlist").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"twice/ucfTrainTestlist/{part}list01.txt").touch()
    (tmp_path / "page.rar").write_text("<html>Please log in")
    with zipfile.ZipFile("other.zip", "w") as file:
        file.writestr("README", "nothing")
    with pytest.raises(UserError, match=message):
        listed(tmp_path, **settings)


def test_the_classes_are_those_of_the_published_features(shared_data: Path) -> None:
    with np.load(shared_data / "features/ucf51_cnn14_emb512.npz") as published:
        names, labels, subsets = (published[key].astype(str) for key in ("video", "label", "subset"))
    assert set(labels) == ucf51.CLASSES
    assert {"train": (subsets == "training").sum(), "test": (subsets == "validation").sum()} == ucf51.PUBLISHED
    assert all(ucf51.NAME.fullmatch(name)["class"] == label for name, label in zip(names, labels, strict=True))  # type: ignore[index]


def test_real_clips(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "UCF-101").symlink_to(shared_data / "ucf101")
    (tmp_path / "ucfTrainTestlist").symlink_to(shared_data / "annotations/ucf101")
    files = {path.stem: path for path in (shared_data / "ucf101").glob("*/*.avi")}
    official = {}
    for part in ("train", "test"):
        for line in (shared_data / f"annotations/ucf101/{part}list01.txt").read_text().split():
            if line.endswith(".avi"):
                official[Path(line).stem] = part
    table = listed(tmp_path, videos=str(tmp_path / "UCF-101"))
    assert table["split"].to_dict() == {name: official[name] for name in files if name in official}
    index = split.probe_clips(table.reset_index(), tmp_path / "UCF-101").set_index("id")
    used = index[index["status"] == "ok"]
    with np.load(shared_data / "features/ucf51_cnn14_emb512.npz") as published:
        assert set(used.index) == set(published["video"].astype(str)) & set(files)
    assert set(index.index) - set(used.index) == {f"v_BasketballDunk_g15_c0{n}" for n in (4, 5, 6, 7)}
    assert set(used.index[used["audio"] == "silent"]) == {f"v_Archery_g03_c0{n}" for n in (3, 4, 5)}
