from __future__ import annotations

import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avdistill.data import media
from avdistill.data.media import MediaError, probe, read_audio, read_frames, write_video
from avdistill.pipeline.errors import UserError
from tests.helpers.little import RATE, levels, ramp, tone

READERS = ["pyav", "decord"] if media.has_decord() else ["pyav"]
each_reader = pytest.mark.parametrize("reader", READERS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s, 12 pictures a second, a tone."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_video(path, ramp(36), 12, tone(3))
    return path


def write_at(path: Path, times: list[float], pictures: np.ndarray) -> None:
    """A video whose pictures come on screen at the given times, in ms."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_sound(path: Path, channels: np.ndarray, rate: int) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(channels.T.reshape(1, -1).astype(np.float32), format="flt", layout="stereo")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@each_reader
@pytest.mark.parametrize(
    ("fps", "start", "end", "expected"),
    [
        (4, 0.0, None, list(range(0, 36, 3))),
        (4, 0.25, 1.0, [3, 6, 9]),
        (4, 0.3, 1.05, [3, 6, 9]),  # the picture on screen at 0.3, 0.55 and 0.8 s
        (12, 0.0, 0.5, [0, 1, 2, 3, 4, 5]),
        (24, 0.0, 0.25, [0, 0, 1, 1, 2, 2]),
        (4, 2.5, 9.0, [30, 33]),
        (4, 2.75, None, [33]),
        (1 / 60, 0.0, None, [0]),
    ],
)
def test_pictures_are_those_on_screen(
    clip: Path, reader: media.Reader, fps: float, start: float, end: float | None, expected: list[int]
) -> None:
    assert levels(read_frames(clip, fps, 32, start, end, reader)) == expected


@each_reader
def test_a_variable_rate_is_sampled_by_time(tmp_path: Path, reader: media.Reader) -> None:
    times = [0.0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2, 1.3, 2.0]
    write_at(tmp_path / "v.mp4", times, ramp(9))
    expected = [max(k for k in range(9) if times[k] <= 0.25 * n + 1e-9) for n in range(9)]
    assert levels(read_frames(tmp_path / "v.mp4", 4, 32, reader=reader)[:9]) == expected


@each_reader
def test_seeking_into_a_long_video_finds_the_right_picture(tmp_path: Path, reader: media.Reader) -> None:
    pictures = ramp(36)[np.arange(360) // 10]
    write_at(tmp_path / "v.mp4", [k / 25 for k in range(360)], pictures)
    whole = levels(read_frames(tmp_path / "v.mp4", 25, 32, reader=reader))
    assert whole == [k // 10 for k in range(360)]
    assert levels(read_frames(tmp_path / "v.mp4", 25, 32, 10.4, 12.0, reader)) == whole[260:300]


@each_reader
def test_nothing_behind_the_end(clip: Path, reader: media.Reader) -> None:
    with pytest.raises(MediaError, match=r"clip\.mp4: no frame between 3 s and the end"):
        read_frames(clip, 4, 32, 3.0, None, reader)


@each_reader
@pytest.mark.parametrize(("height", "width", "expected"), [(32, 48, (20, 30)), (48, 32, (30, 20)), (42, 56, (20, 27))])
def test_the_shorter_side_is_scaled(
    tmp_path: Path, reader: media.Reader, height: int, width: int, expected: tuple[int, int]
) -> None:
    write_video(tmp_path / "v.mp4", ramp(4, height, width), 4, None)
    pictures = read_frames(tmp_path / "v.mp4", 4, 20, reader=reader)
    assert pictures.dtype == np.uint8
    assert pictures.shape == (4, *expected, 3)


def test_auto_reads_what_decord_refuses(tmp_path: Path) -> None:
    # decord 0.6 fails at a width of 48.
    write_video(tmp_path / "v.mp4", ramp(4, 32, 48), 4, None)
    assert levels(read_frames(tmp_path / "v.mp4", 4, 32)) == [0, 1, 2, 3]


@pytest.mark.skipif(len(READERS) < 2, reason="decord is not installed")
def test_readers_agree_on_real_clips(shared_data: Path) -> None:
    for path in sorted((shared_data / "ucf101").glob("*/*.avi"))[::20]:
        for start, end in ((0.0, None), (0.5, 2.2)):
            both = [read_frames(path, 4, 128, start, end, reader).astype(float) for reader in ("pyav", "decord")]
            assert both[0].shape == both[1].shape
            assert np.abs(both[0] - both[1]).mean() < 1, path


def test_written_colours_and_sound_come_back(tmp_path: Path) -> None:
    pictures = np.zeros((6, 32, 48, 3), dtype=np.uint8)
    pictures[:, :, :24] = (200, 40, 60)
    pictures[:, :, 24:] = (30, 160, 220)
    sound = tone(0.5) + tone(0.5, 3000, 0.1)
    write_video(tmp_path / "v.mp4", pictures, 12, sound)
    back = read_frames(tmp_path / "v.mp4", 12, 32)
    assert np.abs(back[:, :, 2:20].astype(int) - pictures[:, :, 2:20]).max() < 12
    assert np.abs(back[:, :, 28:-2].astype(int) - pictures[:, :, 28:-2]).max() < 12
    heard = read_audio(tmp_path / "v.mp4")[: len(sound)]
    assert heard.dtype == np.float32
    assert np.corrcoef(heard[1000:-1000], sound[1000 : len(heard) - 1000])[0, 1] > 0.99


def test_writing_is_deterministic_whatever_memory_held_before(tmp_path: Path, root: Path) -> None:
    program = """
import sys, numpy as np
from pathlib import Path
from avdistill.data.media import write_video
for number in range(6):
    random = np.random.default_rng(number)
    scene = random.integers(0, 255, (42, 60, 3))
    pictures = np.stack([np.roll(scene, k, 1)[:, :56] for k in range(12)]) // 2
    pictures += random.integers(0, 20, (12, 42, 56, 1))
    write_video(Path(sys.argv[1]) / f"{number}.mp4", pictures.astype(np.uint8), 12, random.normal(0, 0.1, 32000))
"""
    made = []
    for filling in ("0", "85", "170"):  # glibc fills fresh memory with this byte
        folder = tmp_path / filling
        environment = os.environ | {"MALLOC_PERTURB_": filling, "PYTHONPATH": str(root)}
        subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=environment)
        made.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert len(made[0]) == 6
    assert made[0] == made[1] == made[2]


def test_a_segment_of_sound_is_a_slice_of_the_whole(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 8 * RATE)
    write_video(tmp_path / "v.mp4", ramp(32), 4, sound)
    whole = read_audio(tmp_path / "v.mp4")
    for start, end in ((0.5, 1.25), (4.3, 6.0)):
        part = read_audio(tmp_path / "v.mp4", start=start, end=end)
        assert len(part) == round((end - start) * RATE)
        np.testing.assert_allclose(part, whole[round(start * RATE) :][: len(part)], atol=1e-4)
    assert len(read_audio(tmp_path / "v.mp4", start=7.5, end=20.0)) == pytest.approx(0.5 * RATE, abs=1100)


def test_channels_are_averaged_and_resampled(tmp_path: Path) -> None:
    time = np.arange(44_100) / 44_100
    left, right = 0.4 * np.sin(2 * np.pi * 500 * time), 0.2 * np.cos(2 * np.pi * 900 * time)
    write_sound(tmp_path / "s.wav", np.stack([left, right]), 44_100)
    heard = read_audio(tmp_path / "s.wav")
    at = np.arange(len(heard)) / RATE
    expected = (0.4 * np.sin(2 * np.pi * 500 * at) + 0.2 * np.cos(2 * np.pi * 900 * at)) / 2
    assert len(heard) == pytest.approx(RATE, abs=2)
    np.testing.assert_allclose(heard[500:-500], expected[500:-500], atol=2e-3)


def test_probe(clip: Path, tmp_path: Path) -> None:
    found = probe(clip)
    assert (found.width, found.height, found.fps, found.frames) == (64, 32, 12, 36)
    assert found.seconds == pytest.approx(3, abs=0.01)
    assert (found.has_video, found.audio, found.corrupt, found.no_sound) == (True, "yes", None, None)
    write_video(tmp_path / "silent.mp4", ramp(4), 4, np.zeros(RATE, dtype=np.float32))
    assert probe(tmp_path / "silent.mp4").audio == "silent"
    assert "no sample above 0.0001" in str(probe(tmp_path / "silent.mp4").no_sound)
    write_video(tmp_path / "mute.mp4", ramp(4), 4, None)
    assert (probe(tmp_path / "mute.mp4").audio, probe(tmp_path / "mute.mp4").no_sound) == ("no", "no audio stream")
    write_video(tmp_path / "half.mp4", ramp(8), 4, np.concatenate([np.zeros(RATE, dtype=np.float32), tone(1)]))
    assert probe(tmp_path / "half.mp4", 0.0, 0.9).audio == "silent"
    assert probe(tmp_path / "half.mp4", 1.1, 2.0).audio == "yes"


@pytest.mark.parametrize(
    ("ending", "codec", "field"),
    [("ivf", "libvpx", 24), ("avi", "mpeg4", None)],  # where the number of frames stands; AVI: behind a name
)
def test_a_header_that_states_too_few_frames_is_not_believed(
    tmp_path: Path, ending: str, codec: str, field: int | None
) -> None:
    path = tmp_path / f"short.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    for at in [field] if field else [data.index(b"avih") + 24, data.index(b"strh") + 40]:
        data[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    end = probe(path).seconds
    assert end == pytest.approx(4, abs=0.15)
    assert len(read_frames(path, 10, 48, end=end)) == pytest.approx(40, abs=1)


def test_bad_files_get_a_reason(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:3000])
    (tmp_path / "folder.mp4").mkdir()
    write_sound(tmp_path / "sound.wav", np.zeros((2, 1000)), 32_000)
    for name in ("empty.mp4", "text.mp4", "noise.avi", "cut.mp4", "folder.mp4", "sound.wav", "missing.mp4"):
        path = tmp_path / name
        found = probe(path)
        assert found.corrupt, name
        assert "\n" not in found.corrupt
        assert str(tmp_path) not in found.corrupt
        for reader in ("auto", *READERS):
            with pytest.raises(MediaError) as error:
                read_frames(path, 4, 32, reader=reader)  # type: ignore[arg-type]
            assert str(error.value).startswith(f"{path}: ")
    with pytest.raises(MediaError, match="no audio stream"):
        write_video(tmp_path / "mute.mp4", ramp(4), 4, None)
        read_audio(tmp_path / "mute.mp4")


@pytest.mark.parametrize(
    "name", ["http:clip.mp4", 'a b\'s "c" é 日本.mp4', "concat|x.mp4", "%d.mp4", "-i.mp4", "#;.mp4"]
)
def test_any_name_is_a_file(clip: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(clip.read_bytes())
    assert probe(path).corrupt is None
    assert len(read_frames(path, 4, 32)) == 12


def test_a_playlist_reaches_no_host(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n")
        assert probe(tmp_path / "list.mp4").corrupt
        with pytest.raises(MediaError):
            read_frames(tmp_path / "list.mp4", 4, 32)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile clip.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n",
        "G\nv=0\nc=IN IP4 127.0.0.1\nm=video 5006 RTP/AVP 96\n".ljust(188) + "G\n",
    ],
    ids=["concat", "hls", "sdp that begins like MPEG-TS"],
)
def test_a_list_of_files_is_no_video(clip: Path, tmp_path: Path, text: str) -> None:
    """FFmpeg would open the files and addresses in it, wherever they are."""
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "list.mp4").write_text(text)
    for reader in ("auto", "pyav", "decord"):
        with pytest.raises(MediaError, match=r"list.mp4: (Invalid argument|Invalid data)"):
            read_frames(tmp_path / "list.mp4", 4, 32, reader=reader)  # type: ignore[arg-type]


def test_real_silence_and_missing_sound(shared_data: Path) -> None:
    videos = shared_data / "ucf101"
    assert probe(videos / "Archery/v_Archery_g03_c03.avi").audio == "silent"
    assert probe(videos / "BasketballDunk/v_BasketballDunk_g15_c04.avi").audio == "no"
    assert probe(videos / "Surfing/v_Surfing_g01_c01.avi").audio == "yes"


def test_a_title_that_is_not_utf8_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "T" * 8
        stream = container.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for picture in ramp(4, 32, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"T" * 8, b"\xff\xfe\xe9\xe8\xff\xfe\xe9\xe8"))
    assert len(read_frames(path, 4, 32, reader="pyav")) == 4


def test_a_library_that_fails_for_every_file_is_not_the_files_fault(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_interface(*_: object, **__: object) -> None:
        raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")

    monkeypatch.setattr(av, "open", other_interface)
    with pytest.raises(TypeError):
        probe(clip)
    media.check_readers.cache_clear()
    with pytest.raises(UserError, match=r"cannot read video: av [\d.]+ on Python [\d.]+: TypeError: open\(\) got"):
        media.check_readers()


def test_readers_that_work_pass_the_check() -> None:
    media.check_readers.cache_clear()
    media.check_readers()
