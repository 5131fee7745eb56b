from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from avdistill.data import media
from avdistill.data.index import write_index
from avdistill.pipeline.errors import UserError
from avdistill.reporting.check_videos import check_videos, describe, kinds
from tests.helpers.little import ramp, stage, tone


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same little video in several containers."""
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), dtype=np.uint8)
    media.write_video(folder / "v.mp4", random, 12, tone(2))
    for name, kind, options in (
        ("v.mkv", "matroska", {}),
        ("v.webm", "matroska", {}),
        ("live.mkv", "matroska", {"live": "1"}),
        ("v.mov", "mov", {}),
        ("fast.mp4", "mp4", {"movflags": "faststart"}),
        ("fragments.mp4", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("v.ts", "mpegts", {}),
    ):
        remux(folder / "v.mp4", folder / name, kind, options)
    write_avi(folder / "v.avi", random)
    return folder


def remux(source: Path, target: Path, kind: str, options: dict[str, str]) -> None:
    with av.open(str(source)) as old, av.open(str(target), "w", format=kind, options=options) as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def write_avi(path: Path, pictures: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def reason(path: Path) -> str:
    found = media.probe(path)
    assert "\n" not in found.reason
    return found.reason


def test_nothing_is_said_of_whole_files(made: Path) -> None:
    for path in sorted(made.iterdir()):
        assert reason(path) == ("no audio stream" if path.suffix == ".avi" else ""), path


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm", "v.mov", "fast.mp4", "v.avi"])
def test_truncated_files(name: str, made: Path, tmp_path: Path) -> None:
    content = (made / name).read_bytes()
    for share in (0.3, 0.6, 0.9, 0.999):
        path = tmp_path / name
        path.write_bytes(content[: int(share * len(content))])
        found = media.probe(path)
        assert f"truncated: {path.stat().st_size} of " in found.reason, share
        if found.corrupt is None:
            assert len(media.read_frames(path, 4, 32)) >= 1


def test_reasons_of_broken_files(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.avi").write_text("<!DOCTYPE html>\r\n<p>Désolé, this video is gone.")
    media.write_video(tmp_path / "one.mp4", ramp(1), 4, tone(1))
    with av.open(str(tmp_path / "sound.mp4"), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ones((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with av.open(str(tmp_path / "picture.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(ramp(1)[0], format="rgb24")))
    (tmp_path / "picture.png").rename(tmp_path / "picture.mp4")
    assert {path.name: media.probe(path).corrupt for path in tmp_path.iterdir()} == {
        "empty.mp4": "empty file",
        "page.avi": "mislabelled: text, not a video",
        "one.mp4": "too short: a single frame",
        "sound.mp4": "mislabelled: sound only (wav), not a video",
        "picture.mp4": "mislabelled: an image (png), not a video",
    }


def test_codecs_that_nobody_knows(made: Path, tmp_path: Path) -> None:
    pictures = (made / "v.avi").read_bytes()
    assert pictures.count(b"FMP4") == 2  # in the stream's head and in its format
    (tmp_path / "pictures.avi").write_bytes(pictures.replace(b"FMP4", b"FMZZ"))
    assert media.probe(tmp_path / "pictures.avi").corrupt == "video of an unknown codec"
    sound = (made / "v.mkv").read_bytes()
    assert sound.count(b"A_AAC") == 1
    (tmp_path / "sound.mkv").write_bytes(sound.replace(b"A_AAC", b"A_ZZZ"))
    found = media.probe(tmp_path / "sound.mkv")
    assert (found.corrupt, found.audio) == (None, "no")
    assert found.reason == "sound cannot be decoded: audio of an unknown codec"


def test_a_video_under_the_name_of_another_type(made: Path, tmp_path: Path) -> None:
    for source, name, expected in (
        ("v.mp4", "v.AVI", "mislabelled: the extension is .AVI, the content is mov"),
        ("v.mkv", "v.mp4", "mislabelled: the extension is .mp4, the content is matroska"),
        ("v.mkv", "v.webm", ""),
        ("v.mp4", "v.unknown", ""),
    ):
        (tmp_path / name).write_bytes((made / source).read_bytes())
        assert reason(tmp_path / name) == expected
        assert len(media.read_frames(tmp_path / name, 4, 32)) >= 8


def test_any_beginning_of_a_file(made: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for content in [path.read_bytes() for path in sorted(made.iterdir())]:
        for _ in range(5):
            damaged = np.frombuffer(content, dtype=np.uint8).copy()
            damaged[random.integers(0, 128, 10)] = random.integers(0, 256, 10)
            (tmp_path / "v.mp4").write_bytes(damaged.tobytes())
            reason(tmp_path / "v.mp4")


def index_of(rows: list[tuple[str, str]]) -> pd.DataFrame:
    ids = [f"clip{number:02}" for number in range(len(rows))]
    index = pd.DataFrame({"id": ids, "file": [f"a/{name}.mp4" for name in ids], "label": 0, "class": "a", "group": ids})
    index = index.assign(split="train", start=0.0, end=1.0, seconds=1.0, audio="yes")
    return index.assign(status=[status for status, _ in rows], reason=[reason for _, reason in rows])


ROWS = [
    ("ok", ""),
    ("corrupt", "truncated: 10 of 300 bytes"),
    *[("ok", "digital silence: no sample above 0.0001")] * 12,
    ("corrupt", "truncated: 7 of 8 bytes"),
    ("ok", "no audio stream; truncated: 5 of 8 bytes"),
    ("corrupt", "nothing between 3 s and 2.5 s: the file is 2.5 s long"),
]


def test_kinds() -> None:
    found = kinds(index_of(ROWS))
    assert found.groupby(["status", "kind"])["id"].apply(len).to_dict() == {
        ("corrupt", "nothing between … s and … s"): 1,
        ("corrupt", "truncated"): 2,
        ("ok", "digital silence"): 12,
        ("ok", "no audio stream"): 1,
        ("ok", "truncated"): 1,
    }
    assert found["reason"][found["id"] == "clip15"].tolist() == ["no audio stream", "truncated: 5 of 8 bytes"]


def test_the_description() -> None:
    lines = describe("d", index_of(ROWS)).splitlines()
    assert lines[:7] == [
        "d: 17 clips: 14 ok, 3 corrupt",
        "       1  corrupt      nothing between … s and … s",
        "       2  corrupt      truncated",
        "      12  ok           digital silence",
        "       1  ok           no audio stream",
        "       1  ok           truncated",
        "",
    ]
    start = lines.index("ok, digital silence:")
    assert lines[start + 1] == "  a/clip02.mp4: digital silence: no sample above 0.0001"
    assert lines[start + 10] == "  a/clip11.mp4: digital silence: no sample above 0.0001"
    assert lines[start + 11] == "  … and 2 more"
    assert "  a/clip14.mp4: truncated: 7 of 8 bytes" in lines
    assert describe("d", index_of([("ok", "")])) == "d: 1 clips: 1 ok"


def test_which_dataset(tmp_path: Path) -> None:
    params = stage("split", "d", tmp_path, {"kind": "folder", "source": "x"}).params
    with pytest.raises(UserError, match=r"there is no dataset 'dd'; did you mean 'd'\?"):
        check_videos(params, "dd")
    with pytest.raises(UserError, match=r"out/split/d/index\.csv: missing; run `dvc repro split@d` first"):
        check_videos(params)
    write_index(params.index("d"), index_of(ROWS))
    assert check_videos(params) == check_videos(params, "d")


def test_the_command(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-m", "avdistill.reporting.check_videos"]
    for arguments, message in (
        ([], "usage: "),
        (["nothing.yaml"], "error: nothing.yaml: there is no such params file"),
    ):
        done = subprocess.run([*command, *arguments], cwd=root, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(message)
