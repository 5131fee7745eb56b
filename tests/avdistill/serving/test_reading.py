"""Videos that are made to harm: each costs at most what the limits say, ends in one line, and the next one is read."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avdistill.data.datasets.folder import VIDEO_TYPES
from avdistill.data.media import Damage, write_video
from avdistill.data.media.container import decode, media_errors
from avdistill.pipeline.errors import UserError
from avdistill.serving import reading
from avdistill.serving.limits import Limits
from avdistill.serving.reading import Readers

SETTINGS: dict[str, Any] = {"fps": 4, "short_side": 16, "reader": "auto", "encoding": "raw", "quality": 90}
STARTS = 60.0  # s for a process to start and read, on a busy machine


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s, wider than high."""
    frames = np.random.default_rng(0).integers(0, 256, (24, 32, 48, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("reading") / "clip.mp4"
    write_video(path, frames, 12, None)
    return path


def read(readers: Readers, path: Path, seconds: float = STARTS, **limits: Any) -> np.ndarray:
    return readers.read(path, SETTINGS, Limits(**limits), time.monotonic() + seconds)


@pytest.fixture
def trick(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have the processes of readers run a line of Python before they read."""

    def do(line: str) -> None:
        monkeypatch.setattr(reading, "START", f"import avdistill.serving.reading as r; {line}; r.main()")

    return do


OLD = "old = r.read_frames; r.read_frames = lambda p, *a, **k: "  # in place of it: …
# Holds the interpreter's lock for ages, as a loop in a codec does: no thread and no signal handler of Python runs.
HANG = "import re; hang = lambda: re.match('(a+)+$', 'a' * 60 + 'b')"


def test_a_video_is_read_as_a_square(clip: Path) -> None:
    frames = read(Readers(1), clip)
    assert frames.shape == (8, 16, 16, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, reading.read(clip, SETTINGS, Limits()))


# Ending, codec, frame size: each a format that a folder of videos may have.
FORMATS: dict[str, tuple[str, int, int]] = {
    "mp4": ("libx264", 64, 48), "mov": ("libx264", 64, 48), "mkv": ("libx264", 64, 48), "ts": ("libx264", 64, 48),
    "m2ts": ("libx264", 64, 48), "avi": ("mpeg4", 64, 48), "wmv": ("wmv2", 64, 48), "flv": ("flv", 64, 48),
    "mpg": ("mpeg2video", 64, 48), "vob": ("mpeg2video", 64, 48), "m2v": ("mpeg2video", 64, 48),
    "h264": ("libx264", 64, 48), "mjpeg": ("mjpeg", 64, 48), "webm": ("libvpx", 64, 48), "ivf": ("libvpx", 64, 48),
    "nut": ("mpeg4", 64, 48), "3gp": ("mpeg4", 64, 48), "gif": ("gif", 64, 48), "rm": ("rv10", 64, 48),
    "dv": ("dvvideo", 720, 576), "mxf": ("mpeg2video", 64, 48), "ogv": ("libtheora", 64, 48), "amv": ("amv", 64, 48),
    "y4m": ("wrapped_avframe", 64, 48), "hevc": ("libx265", 64, 48),
}  # fmt: skip


@pytest.mark.parametrize("ending", FORMATS)
def test_what_a_suite_trains_on_is_served(tmp_path: Path, ending: str) -> None:
    codec, width, height = FORMATS[ending]
    path = tmp_path / f"clip.{ending}"
    assert VIDEO_TYPES.fullmatch(path.suffix)
    try:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = {"mjpeg": "yuvj420p", "amv": "yuvj420p", "gif": "rgb8"}.get(codec, "yuv420p")
            for level in range(50):
                grey = np.full((height, width, 3), 4 * level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"not written here: {error}")
    frames = reading.read(path, SETTINGS, Limits())
    assert len(frames) in (8, 9) and frames.mean((1, 2, 3)).argsort().tolist() == list(range(len(frames)))


def test_where_a_reader_hangs_pyav_reads(clip: Path, trick: Any) -> None:
    trick(f"{HANG}; {OLD} (k['reader'] == 'auto' and hang(), old(p, *a, **k))[1]")
    readers = Readers(1)
    before = time.monotonic()
    frames = read(readers, clip, reader_seconds=5)
    assert 5 <= time.monotonic() - before < STARTS
    np.testing.assert_array_equal(frames, reading.read(clip, SETTINGS | {"reader": "pyav"}, Limits()))


def test_a_reader_that_hangs_is_ended_and_the_next_video_read(clip: Path, trick: Any, tmp_path: Path) -> None:
    """Its process is ended even where this process is not there to end it."""
    trick(f"{HANG}; {OLD} (p.name == 'bad.mp4' and hang(), old(p, *a, **k))[1]")
    (tmp_path / "bad.mp4").write_bytes(clip.read_bytes())
    readers = Readers(1)
    read(readers, clip)
    with pytest.raises(UserError, match=r"^not read in 2 s; its reader was ended \(AV_SERVE_READER_SECONDS\)$"):
        read(readers, tmp_path / "bad.mp4", reader_seconds=2)
    assert len(read(readers, clip)) == 8


def test_a_crash_costs_one_video(clip: Path, trick: Any, tmp_path: Path) -> None:
    trick(f"import os; {OLD} (p.name == 'bad.mp4' and os.abort(), old(p, *a, **k))[1]")
    (tmp_path / "bad.mp4").write_bytes(clip.read_bytes())
    readers = Readers(1)
    with pytest.raises(UserError, match=r"^its reader crashed"):
        read(readers, tmp_path / "bad.mp4")
    assert len(read(readers, clip)) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_is_bounded(clip: Path, trick: Any) -> None:
    trick(f"import numpy as np; {OLD} np.ones((4, 16, 10**7, 1), np.uint8)")
    readers = Readers(1)
    with pytest.raises(UserError, match=r"^takes more than 500 MB to read \(AV_SERVE_READER_MB\)$"):
        read(readers, clip, reader_mb=500)


def test_a_codec_without_memory(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's own error: not damage of a packet, which would be left out."""

    class Packet:
        def decode(self) -> None:
            raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    class Container:
        format = av.ContainerFormat("mp4", "r")

        def demux(self, stream: object) -> list[Packet]:
            return [Packet(), Packet()]

    damage = Damage()

    def read_frames(path: Path, *_: object, **__: object) -> None:
        with media_errors(path):
            list(decode(Container(), None, damage))  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read_frames", read_frames)
    assert str(reading.attempt(clip, SETTINGS, Limits())) == "takes more than 2048 MB to read (AV_SERVE_READER_MB)"
    assert damage.packets == 0


def test_a_process_that_cannot_start(clip: Path, trick: Any) -> None:
    trick("import sys; sys.exit(1)")
    with pytest.raises(
        UserError, match=r"^no process can be started to read the video; the server's log has the reason$"
    ):
        read(Readers(1), clip)


def test_no_time_left(clip: Path) -> None:
    with pytest.raises(UserError, match=r"^the 50 s of the request are over \(AV_SERVE_REQUEST_SECONDS\)$"):
        read(Readers(1), clip, seconds=0)


def test_a_script_without_a_guard_and_a_daemon(clip: Path, tmp_path: Path, root: Path) -> None:
    """Pools of multiprocessing run the script again in each process, and are refused in daemonic processes."""
    (tmp_path / "script.py").write_text(
        "import sys, time; from pathlib import Path; from multiprocessing import get_context\n"
        "from avdistill.serving.reading import Readers; from avdistill.serving.limits import Limits\n"
        "def ask():\n"
        f"    frames = Readers(1).read(Path(sys.argv[1]), {SETTINGS}, Limits(), time.monotonic() + 60)\n"
        "    print(len(frames), flush=True)\n"
        "ask()\n"
        "child = get_context('fork').Process(target=ask, daemon=True); child.start(); child.join()\n"
    )
    command = [sys.executable, str(tmp_path / "script.py"), str(clip)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["8", "8"], done.stderr


def huge(folder: Path) -> Path:
    """A GIF of a hundred bytes whose frames have 49 megapixels."""
    path = folder / "huge.gif"
    small = b"GIF89a" + struct.pack("<HHBBB", 7000, 7000, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, 7000, 7000, 0) + b"\x02\x02\x4c\x01\x00"
    path.write_bytes(small + image * 3 + b";")
    return path


def grows(folder: Path) -> Path:
    """Motion JPEG whose second frame has 900 megapixels; the header knows of the first one only."""
    path = folder / "grows.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    at = content.find(b"\xff\xc0\x00\x11", content.find(b"\xff\xc0\x00\x11") + 1)
    content[at + 5 : at + 9] = struct.pack(">HH", 30000, 30000)
    path.write_bytes(content)
    return path


def streams(folder: Path, count: int = 5000) -> Path:
    """An AVI with thousands of streams."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    head = struct.pack("<4s4sIHHIIIIIIIIHHHH", b"vids", b"MJPG", 0, 0, 0, 0, 1, 4, 0, 9, 0, 0, 0, 0, 0, 16, 16)
    shape = struct.pack("<IiiHH4sIiiII", 40, 16, 16, 1, 24, b"MJPG", 768, 0, 0, 0, 0)
    one = chunk(b"LIST", b"strl" + chunk(b"strh", head) + chunk(b"strf", shape))
    main = chunk(b"avih", struct.pack("<14I", 250000, 0, 0, 0x10, 9, 0, count, 0, 16, 16, 0, 0, 0, 0))
    body = b"AVI " + chunk(b"LIST", b"hdrl" + main + one * count) + chunk(b"LIST", b"movi" + chunk(b"00dc", b"x" * 50))
    path = folder / "streams.avi"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def table(folder: Path, clip: Path) -> Path:
    """An MP4 whose table of samples claims two billion."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"stsz") + 8
    content[at : at + 8] = struct.pack(">II", 1, 0x7FFFFFFF)
    path = folder / "table.mp4"
    path.write_bytes(content)
    return path


def weeks(folder: Path, clip: Path) -> Path:
    """An MP4 whose frames are shown for hours each."""
    content = bytearray(clip.read_bytes())
    at = content.index(b"stts") + 8
    content[at + 8 : at + 12] = struct.pack(">I", 0x0FFFFFFF)
    path = folder / "weeks.mp4"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["huge", "grows", "streams", "table", "weeks"])
def test_small_files_that_claim_a_lot(name: str, clip: Path, tmp_path: Path) -> None:
    """One line or a video, within memory and time; nothing of it is left for the next."""
    made = {"huge": huge, "grows": grows, "streams": streams}
    path = made[name](tmp_path) if name in made else {"table": table, "weeks": weeks}[name](tmp_path, clip)
    assert path.stat().st_size < 2 << 20
    readers = Readers(1)
    read(readers, clip)
    before = time.monotonic()
    try:
        found: object = read(readers, path, reader_mb=1000, reader_seconds=10)
    except UserError as error:
        found = str(error)
    assert time.monotonic() - before < 30
    wanted = {
        "huge": "frames of 7000 x 7000; expected at most 40 megapixels (AV_SERVE_MEGAPIXELS)",
        "weeks": "longer than 600 s (AV_SERVE_SECONDS)",
    }
    assert found == wanted[name] if name in wanted else isinstance(found, str | np.ndarray)
    if isinstance(found, str):
        assert "\n" not in found and str(tmp_path) not in found
    assert len(read(readers, clip)) == 8


def test_long_sound_is_not_decoded(tmp_path: Path) -> None:
    """10 kB that decode into ten minutes of silence beside 2 s of frames."""
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=4)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound: Any = container.add_stream("flac", rate=8000, layout="mono")
        for _ in range(8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
        for minute in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 480_000), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, minute * 480_000, Fraction(1, 8000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert path.stat().st_size < 1 << 20
    assert len(read(Readers(1), path, reader_seconds=10)) == 8


def bomb(path: Path) -> Path:
    """A few MB that decode into 100 GB: fifteen large frames, shown again and again."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4096, 2304, "yuv420p"
        black = av.VideoFrame(4096, 2304, "yuv420p")
        for plane, value in zip(black.planes, (16, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        packets = []
        for number in range(15):
            black.pts = number
            packets += stream.encode(black)
        packets += stream.encode(None)
        for number in range(7500):
            packet = av.Packet(bytes(packets[number % len(packets)]))
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 30), stream
            container.mux(packet)
    assert path.stat().st_size < 32 << 20
    return path


def test_gigabytes_of_frames_cost_their_time_and_others_go_on(tmp_path: Path, clip: Path) -> None:
    path, readers = bomb(tmp_path / "bomb.mp4"), Readers(2)
    problems: list[str] = []

    def harm() -> None:
        try:
            read(readers, path, reader_seconds=3)
        except UserError as error:
            problems.append(str(error))

    thread = threading.Thread(target=harm)
    before = time.monotonic()
    thread.start()
    assert len(read(readers, clip)) == 8
    thread.join()
    assert time.monotonic() - before < 2 * STARTS
    assert problems == ["not read in 3 s; its reader was ended (AV_SERVE_READER_SECONDS)"]
