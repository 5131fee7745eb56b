"""With the real yt-dlp, whose extractor of plain files takes the place of YouTube's."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from avdistill.config.loading import load
from avdistill.config.origins import VGGSound
from avdistill.data import datasets, media
from avdistill.data.sources import youtube
from avdistill.data.sources.youtube import Wanted
from avdistill.pipeline.errors import UserError
from tests.helpers.little import levels, ramp, tone
from tests.helpers.serving import Server, serve

IDS = ["---g-f_I2yQ", "_4bvZkGV3Mw", "0-bbH9f0QzI"]


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 s, 2 pictures a second, each brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    media.write_video(path, ramp(28), 2, tone(14))
    return path


@pytest.fixture
def web(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(youtube, "BACK_OFF", 0.01)
    (tmp_path / "web").mkdir()
    for name in IDS:
        shutil.copy(video, tmp_path / f"web/{name}.mp4")
    with serve(tmp_path / "web") as server:
        yield server


def origin(web: Server, **changes: object) -> VGGSound:
    given = {"kind": "vggsound", "source": "x", "video_url": f"{web.url}/{{id}}.mp4", "pause": 0, "retries": 2}
    return VGGSound.model_validate(given | changes)


def whole(*names: str) -> list[Wanted]:
    return [Wanted(f"v_{name}", name) for name in names]


def test_videos_come_once(web: Server, tmp_path: Path, video: Path) -> None:
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web)) == {}
    assert sorted(path.name for path in (tmp_path / "videos").glob("*.mp4")) == sorted(f"v_{n}.mp4" for n in IDS)
    assert all(path.read_bytes() == video.read_bytes() for path in (tmp_path / "videos").glob("*.mp4"))
    assert not (tmp_path / "videos" / youtube.INCOMING).exists()
    asked = len(web.requests)
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web)) == {}
    assert len(web.requests) == asked


def test_an_unavailable_video_is_remembered(web: Server, tmp_path: Path) -> None:
    (tmp_path / f"web/{IDS[1]}.mp4").rename(tmp_path / "away.mp4")
    unavailable = youtube.get(whole(*IDS), tmp_path / "videos", origin(web))
    assert unavailable == {f"v_{IDS[1]}": "Unable to download webpage: HTTP Error 404: Not Found"}
    assert web.count(f"/{IDS[1]}.mp4") == 1, "an unavailable video was requested again"
    (tmp_path / "away.mp4").rename(tmp_path / f"web/{IDS[1]}.mp4")
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web)) == unavailable
    assert web.count(f"/{IDS[1]}.mp4") == 1
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web, retry_unavailable=True)) == {}
    assert len(youtube.find_videos(tmp_path / "videos")) == 3
    assert web.count(f"/{IDS[0]}.mp4") == 2, "a look and a download"


def test_a_clip_is_cut_out_of_its_video(web: Server, tmp_path: Path) -> None:
    wanted = [Wanted("a", IDS[0], 3.0, 10.0), Wanted("b", IDS[1], 9.0, 10.0), Wanted("c", IDS[2], 20.0, 10.0)]
    unavailable = youtube.get(wanted, tmp_path / "videos", origin(web))
    assert list(unavailable) == ["c"]
    assert unavailable["c"].startswith("cannot be cut out of its video: no frame between 20 s and 30 s")
    pictures = media.read_frames(tmp_path / "videos/a.mp4", 2, 32)
    assert levels(pictures) == list(range(6, 26))
    assert media.read_audio(tmp_path / "videos/a.mp4").shape[0] == pytest.approx(320_000, abs=2000)
    assert media.probe(tmp_path / "videos/b.mp4").seconds == pytest.approx(5, abs=0.01)
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == ["a.mp4", "b.mp4", "unavailable.csv"]


def test_whole_videos_do_not_pile_up(web: Server, tmp_path: Path) -> None:
    web.answers[f"/{IDS[1]}.mp4"] = itertools.repeat(503)
    with pytest.raises(UserError, match="1 of 2 videos"):
        youtube.get([Wanted("a", IDS[0], 3, 2), Wanted("b", IDS[1], 3, 2)], tmp_path / "videos", origin(web))
    assert list((tmp_path / "videos" / youtube.INCOMING).iterdir()) == []


def test_a_clip_without_sound(web: Server, tmp_path: Path) -> None:
    media.write_video(tmp_path / f"web/{IDS[0]}.mp4", ramp(8, height=34, width=62), 2, None)
    youtube.get([Wanted("a", IDS[0], 1.0, 2.0)], tmp_path / "videos", origin(web))
    found = media.probe(tmp_path / "videos/a.mp4")
    assert (found.audio, found.width, found.height, found.seconds) == ("no", 62, 34, 2.0)


def test_a_broken_connection_goes_on_where_it_ended(web: Server, tmp_path: Path, video: Path) -> None:
    path = f"/{IDS[0]}.mp4"
    web.limits[path] = iter([None, 20_000, 50, 30_000])  # yt-dlp looks at the page, then downloads
    assert youtube.get(whole(IDS[0]), tmp_path / "videos", origin(web)) == {}
    assert (tmp_path / f"videos/v_{IDS[0]}.mp4").read_bytes() == video.read_bytes()
    ranges = [asked for _, asked in web.requests if asked is not None]
    assert ranges, "every try began at the beginning"


def test_a_server_that_recovers(web: Server, tmp_path: Path) -> None:
    web.answers[f"/{IDS[0]}.mp4"] = iter([503, 429])
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web)) == {}
    assert len(youtube.find_videos(tmp_path / "videos")) == 3


def test_a_transient_failure_is_an_error_and_not_recorded_as_unavailable(web: Server, tmp_path: Path) -> None:
    web.answers[f"/{IDS[1]}.mp4"] = itertools.repeat(503)
    with pytest.raises(UserError, match=rf"1 of 3 videos .* v_{IDS[1]}: Unable .*HTTP Error 503.*run again to resume$"):
        youtube.get(whole(*IDS), tmp_path / "videos", origin(web))
    assert web.count(f"/{IDS[1]}.mp4") == 3
    assert youtube.ledger(tmp_path / "videos") == {}
    del web.answers[f"/{IDS[1]}.mp4"]
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web)) == {}
    assert web.count(f"/{IDS[0]}.mp4") == 2


def test_few_failures_are_tolerated_and_tried_the_next_time(web: Server, tmp_path: Path) -> None:
    web.answers[f"/{IDS[1]}.mp4"] = iter([503] * 3)
    failed = youtube.get(whole(*IDS), tmp_path / "videos", origin(web, tolerated=0.4))
    assert list(failed) == [f"v_{IDS[1]}"]
    assert youtube.ledger(tmp_path / "videos") == {}
    assert youtube.get(whole(*IDS), tmp_path / "videos", origin(web)) == {}


def test_no_network_ends_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(youtube, "BACK_OFF", 0.001)
    monkeypatch.setattr(youtube, "IN_A_ROW", 5)
    with serve(tmp_path) as server:
        nobody = origin(server, retries=0, workers=2, tolerated=1)
    with pytest.raises(UserError, match=r"5 of 1000 videos could not be downloaded.*refused"):
        youtube.get(whole(*(f"{n:011d}" for n in range(1000))), tmp_path / "videos", nobody)


def test_workers_are_bounded(web: Server, tmp_path: Path, video: Path) -> None:
    names = [f"{n:011d}" for n in range(6)]
    for name in names:
        shutil.copy(video, tmp_path / f"web/{name}.mp4")
    web.delay = 0.03
    youtube.get(whole(*names), tmp_path / "videos", origin(web, workers=2, rate_limit=1.0))
    assert web.most_at_once <= 3, "a worker may open a file before the server has closed the page"
    assert len(youtube.find_videos(tmp_path / "videos")) == 6
    shutil.rmtree(tmp_path / "videos")
    web.delay = 1.5  # slow enough that a busy machine has started the workers meanwhile
    youtube.get(whole(*names), tmp_path / "videos", origin(web, workers=6))
    assert web.most_at_once > 3


@pytest.mark.parametrize(
    ("said", "unavailable"),
    [
        ("Video unavailable", True),
        ("Private video. Sign in if you've been granted access to this video. Use --cookies", True),
        ("Video unavailable. This video has been removed by the uploader", True),
        ("Video unavailable. The uploader has not made this video available in your country", True),
        ("Video unavailable. This video is no longer available because the YouTube account associated with this "
         "video has been terminated.", True),
        ("Video unavailable. This video contains content from X, who has blocked it on copyright grounds", True),
        ("This video has been removed for violating YouTube's Terms of Service", True),
        ("This video is not available", True),
        ("Join this channel to get access to members-only content like this video", True),
        ("Sign in to confirm your age. This video may be inappropriate for some users.", True),
        ("Sign in to confirm you\u2019re not a bot. Use --cookies-from-browser or --cookies", False),
        ("Video unavailable. This content isn't available, try again later. The current session has been rate-limited "
         "by YouTube for up to an hour.", False),
        ("Video unavailable. This content isn\u2019t available.", False),
        ("Unable to download webpage: HTTP Error 429: Too Many Requests", False),
        ("unable to download video data: HTTP Error 403: Forbidden", False),
        ("Failed to extract any player response", False),
        ("Requested format is not available. Use --list-formats for a list of available formats", False),
        ("Unable to download API page: [Errno -3] Temporary failure in name resolution", False),
    ],
)  # fmt: skip
def test_what_youtube_says(said: str, unavailable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yt_dlp

    def extract_info(*_: object) -> None:
        raise yt_dlp.utils.DownloadError(f"ERROR: [youtube] {IDS[0]}: {said}")

    monkeypatch.setattr(yt_dlp.YoutubeDL, "extract_info", lambda *_: extract_info())
    asked = VGGSound(kind="vggsound", source="x", pause=0, retries=0, tolerated=1)
    assert youtube.get(whole(IDS[0]), tmp_path, asked) == {f"v_{IDS[0]}": said}
    assert youtube.ledger(tmp_path) == ({f"v_{IDS[0]}": said} if unavailable else {})


def test_a_ledger_that_was_torn(tmp_path: Path) -> None:
    (tmp_path / "unavailable.csv").write_text('stem,reason\na,"Gone, with a ""comma"""\nb,Priv')
    assert youtube.ledger(tmp_path) == {"a": 'Gone, with a "comma"'}
    assert youtube.ledger(tmp_path / "nowhere") == {}


def test_files_are_found_by_their_stems(tmp_path: Path) -> None:
    for name in ("b.webm", "train/x y/a.mp4", "val/a.MKV", "c.mp4.part", ".hidden/d.mp4", "e.txt", ".f.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert youtube.find_videos(tmp_path) == {"b": "b.webm", "a": "train/x y/a.mp4"}
    assert youtube.find_videos(tmp_path / "nowhere") == {}


def test_clips_of_the_users_own_folder(tmp_path: Path) -> None:
    (tmp_path / "own/NA").mkdir(parents=True)
    (tmp_path / "own/NA/a.avi").write_bytes(b"12345")
    own = VGGSound(kind="vggsound", source="x", videos=str(tmp_path / "own"))
    clips = pd.DataFrame({"id": ["1", "2", "3"], "class": "NA", "group": "g", "stem": ["b", "a", "c"]})
    (tmp_path / "out").mkdir()
    youtube.save(clips, own, tmp_path / "out", {"b": "Private, sadly", "a": "private once"})
    found = datasets.clips(tmp_path / "out")
    assert found["file"].tolist() == ["b.mp4", "NA/a.avi", "c.mp4"]
    assert found["unavailable"].tolist() == ["Private, sadly", "", youtube.NOT_THERE]
    assert (tmp_path / "out/files.csv").read_text() == "file,size\nNA/a.avi,5\n"
    with pytest.raises(UserError, match=r"own: expected videos named like x.mp4, found none of 3 clips"):
        youtube.save(clips.assign(stem="x"), own, tmp_path / "out", {})


def test_ids_are_unique(tmp_path: Path) -> None:
    clips = pd.DataFrame({"id": ["a", "b", "a"], "class": ["x", "y", "x"]})
    assert youtube.unique(clips, tmp_path)["id"].tolist() == ["a", "b"]
    with pytest.raises(UserError, match="clip 'a' occurs twice, with different values"):
        youtube.unique(clips.assign(**{"class": ["x", "y", "z"]}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"videos": "nowhere"}, "videos: nowhere: expected a folder with videos, found none"),
        ({"annotation": "nowhere.csv"}, r"annotation: nowhere.csv: there is no such file"),
        ({"annotation": "."}, r"annotation: vggsound.csv: there is no such file"),
        ({"cookies": "cookies.txt"}, "cookies: cookies.txt: there is no such file"),
    ],
)
def test_what_the_user_names_must_be_there(
    changes: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        youtube.check(VGGSound.model_validate({"kind": "vggsound", "source": "x"} | changes), ["vggsound.csv"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fill": True}, "origin: fill needs videos"),
        ({"video_url": "http://x"}, r"origin: video_url needs \{id\}"),
        ({"worker": 2}, r"origin\.worker: unknown key; did you mean 'workers'\?"),
        ({"kind": "kinetics_sounds", "mirrors": ""}, r"origin\.mirrors: unknown key; did you mean 'mirror'\?"),
        ({"kind": "vgsound"}, r"did you mean 'vggsound'\?"),
        ({"workers": 0}, r"origin\.workers: "),
        ({"mirror": "ftp://x"}, r"origin\.mirror: "),
    ],
)
def test_mistakes_in_params(changes: dict[str, object], message: str, root: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["datasets"]["avsynth"]["origin"] = {"kind": "vggsound", "source": "x"} | changes
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "params.yaml")


def test_how_to_download_does_not_change_what(web: Server) -> None:
    changed = origin(
        web, workers=9, rate_limit=3.0, pause=1, retries=0, retry_unavailable=True, cookies="c", tolerated=0.5
    )
    assert repr(changed) == repr(origin(web))
    assert repr(origin(web, format="b")) != repr(origin(web))
