"""Container, codec, B-frames, frame rate (constant and variable), start offset, rotation and layout of sound together:
read, staged and served.

The kinds of files are those of test_readers; each gets the other properties from a fixed draw, so that all values of
each occur with every reader. The truth is known from the writing.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

from avdistill.config.schema import Frames
from avdistill.data import datasets
from avdistill.data.media import read_audio, read_frames
from avdistill.data.packing import Damaged
from avdistill.serving import reading, recognise
from avdistill.serving.limits import Limits
from stages import frames, split
from tests.avdistill.data.media.test_readers import KINDS, NO_VARIABLE_RATE, shown
from tests.helpers.little import RATE, flip_bytes, rotate, spoil_packet

COUNT = 40
STEP = 4  # grey levels between two frames
BEEP = 0.6  # s behind the first frame, at which a tone of 0.1 s begins
# Codec, layout and sampling rate of the sound, by container; "": those of the others.
SOUNDS: dict[str, list[tuple[str, str, int]]] = {
    "": [("aac", "mono", 44_100), ("aac", "stereo", 48_000), ("aac", "5.1", 48_000), ("mp3", "stereo", 44_100)],
    "webm": [("libopus", "mono", 48_000), ("libopus", "stereo", 48_000)],
    # FFmpeg writes an AVI whose sound has an encoder's delay with a hole behind the first frame.
    "avi": [("pcm_s16le", "mono", 22_050), ("pcm_s16le", "stereo", 48_000), ("pcm_s16le", "5.1", 48_000)],
    "ts": [("aac", "stereo", 48_000), ("ac3", "5.1", 48_000), ("mp2", "mono", 44_100)],
    "wmv": [("wmav2", "stereo", 44_100), ("wmav2", "mono", 22_050)],
    "flv": [("aac", "mono", 44_100), ("mp3", "stereo", 44_100)],
}
RATES = [Fraction(30_000, 1001), Fraction(15), Fraction(50), Fraction(24)]
OFFSETS = [(0.0, 0.0), (0.4, 0.0), (0.0, 0.3), (2.0, 2.0)]  # s at which frames and sound begin by the file's clock
MILLISECONDS = {"mkv", "webm", "flv", "wmv"}  # containers whose clock counts them


class Case(NamedTuple):
    """A file."""

    kind: str
    rate: Fraction
    offset: tuple[float, float]
    turns: int
    sound: tuple[str, str, int]
    variable: bool = False  # frames come on screen at irregular multiples of 1 / rate

    def ticks(self) -> list[int]:
        """When frames come on screen, in multiples of 1 / rate."""
        steps = np.random.default_rng(1).choice([1, 2, 6, 15], COUNT - 1) if self.variable else np.ones(COUNT - 1, int)
        return [0, *np.cumsum(steps).tolist()]


def cases() -> dict[str, Case]:
    """Each kind of file twice, with other properties; once more with a variable rate where the kind has one."""
    constant, variable = np.random.default_rng(0), np.random.default_rng(1)
    found = {}
    for kind, (ending, _, _) in KINDS.items():
        sounds = SOUNDS.get(ending, SOUNDS[""])
        for random in [constant] * 2 + [variable] * (not any(word in kind for word in (*NO_VARIABLE_RATE, "mpeg"))):
            rate, offset, sound = (values[random.integers(len(values))] for values in (RATES, OFFSETS, sounds))
            turns = int(random.integers(4)) if ending in {"mp4", "mov"} else 0
            offset = offset if ending != "avi" else OFFSETS[0]  # it has none
            case = Case(kind, rate if random is constant else Fraction(50), offset, turns, sound, random is variable)
            speed = f"{float(rate):.4g} fps" if random is constant else "variable rate"
            found[f"{kind}, {speed}, from {offset}, {turns} turns, {' '.join(map(str, sound))}"] = case
    return found


CASES = cases()


def write(path: Path, case: Case) -> None:
    """Frames of an own grey level, whose upper left quarter is white, and a beep BEEP seconds behind the first one."""
    _, codec, options = KINDS[case.kind]
    voice_codec, layout, rate = case.sound
    if {codec, voice_codec} - av.codecs_available:
        pytest.skip(f"no encoder {codec} or {voice_codec} here")
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=case.rate, options=options)
        video.height, video.width, video.pix_fmt, video.bit_rate = 48, 64, "yuv420p", 2_000_000
        voice: Any = container.add_stream(voice_codec, rate=rate, layout=layout)
        voice.bit_rate = 128_000
        packets: list[av.Packet] = []
        base = 1 / case.rate
        for number, tick in enumerate(case.ticks()):
            picture = np.full((48, 64, 3), 20 + STEP * number, dtype=np.uint8)
            picture[:24, :32] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick + round(case.offset[0] / base), base
            packets += video.encode(frame)
        packets += video.encode(None)
        begin = round(case.offset[0] / base) * float(base)  # of the first frame
        time = np.arange(round((begin - case.offset[1] + 1.5) * rate)) / rate + case.offset[1] - begin - BEEP
        tone = 0.5 * np.sin(2 * np.pi * 1000 * time) * ((time >= 0) & (time < 0.1))
        resampler = av.AudioResampler(voice.codec_context.format, layout, rate, voice.codec_context.frame_size or None)
        samples = np.repeat(tone[None].astype(np.float32), len(voice.codec_context.layout.channels), axis=0)
        sound = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        sound.sample_rate, sound.time_base, sound.pts = rate, Fraction(1, rate), round(case.offset[1] * rate)
        for piece in [*resampler.resample(sound), *resampler.resample(None)]:
            packets += voice.encode(piece)
        packets += voice.encode(None)
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            container.mux(packet)
    if case.turns:
        rotate(path, case.turns)


def numbers(pictures: np.ndarray, turns: int) -> list[int]:
    """The number that each frame carries, in its dark quarters; the white one has to be where it belongs."""
    upright = np.rot90(pictures, -turns, axes=(1, 2))
    height, width = (side // 2 for side in upright.shape[1:3])
    assert (upright[:, : height - 4, : width - 4].mean((1, 2, 3)) > 240).all()
    return [round((float(each) - 20) / STEP) for each in upright[:, height + 4 :, width + 4 :].mean((1, 2, 3))]


def staged_as_served(path: Path, fps: float, side: int) -> tuple[np.ndarray, dict[str, Any]]:
    """What stage frames stores of a file, and what split says of it. The server reads the same, sent in base64, too."""
    entry = Frames(dataset="d", fps=fps, short_side=side)
    found: dict[str, Any] = split.probe_clip(datasets.Clip("clip", path, 0.0, None))
    assert found["status"] == "ok"
    staged = frames.read(entry, datasets.Clip("clip", path, found["start"], found["end"]))
    pictures = staged.value if isinstance(staged, Damaged) else staged
    top, left = ((length - side) // 2 for length in pictures.shape[1:3])
    sent = base64.b64encode(path.read_bytes()).decode()
    for value in (str(path), sent):
        with recognise._file(value, Limits()) as file:
            served = reading.read(file, entry.model_dump(exclude={"dataset"}), Limits())
        np.testing.assert_array_equal(served, pictures[:, top : top + side, left : left + side])
    return pictures, found


@pytest.mark.parametrize("name", CASES)
def test_read_staged_and_served_alike(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = tmp_path / f"clip.{KINDS[case.kind][0]}"
    write(path, case)
    exact = [(round(case.offset[0] * case.rate) + tick) / case.rate for tick in case.ticks()]
    rounded = [Fraction(int(time * 1000 + Fraction(1, 2)), 1000) for time in exact]
    stored = [float(time) for time in (rounded if path.suffix[1:] in MILLISECONDS else exact)]
    times = [time - stored[0] for time in stored]
    for fps, start in ((10.0, 0.0), (7.0, 0.3)):
        for reader in ("pyav", "auto"):
            read = read_frames(path, fps, 48, start, reader=reader)  # type: ignore[arg-type]
            assert numbers(read, case.turns) == shown(times, fps, start, len(read)), (fps, start, reader)
            if not case.variable:  # else it is not known how long the last frame is shown
                assert len(read) == np.ceil((COUNT / case.rate - Fraction(start)) * Fraction(fps) - Fraction("0.01"))
            assert len(read) >= (times[-1] - start) * fps

    staged, found = staged_as_served(path, 10.0, 48)
    assert (found["audio"], found["reason"]) == ("yes", "")
    assert numbers(staged, case.turns) == shown(times, 10.0, 0.0, len(staged))

    sound = read_audio(path, start=found["start"], end=found["end"])  # type: ignore[arg-type]
    loud = np.flatnonzero(np.abs(sound) > 0.1) / RATE
    assert (loud[0], loud[-1]) == pytest.approx((BEEP, BEEP + 0.1), abs=0.02)


@pytest.mark.parametrize("ending", ["h264", "m2v"])
def test_part_of_a_stream_without_a_container(tmp_path: Path, ending: str) -> None:
    """It has no times and cannot be sought in."""
    path = tmp_path / f"clip.{ending}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream({"h264": "libx264", "m2v": "mpeg2video"}[ending], rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 48, 64, "yuv420p", 2_000_000
        for number in range(75):
            picture = np.full((48, 64, 3), 20 + 3 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    found = read_frames(path, 5, 48, 2.4).mean((1, 2, 3))
    assert [round((mean - 20) / 3) for mean in found] == [60, 65, 70]
    row = split.probe_clip(datasets.Clip("clip", path, 2.4, None))
    assert (row["status"], row["end"]) == ("ok", pytest.approx(3.0))


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
def test_frames_that_an_avi_leaves_out_show_the_one_before(tmp_path: Path, codec: str) -> None:
    """Recorders that drop frames write empty packets in their place."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"bf": "0"} if codec != "mjpeg" else {})
        stream.height, stream.width, stream.bit_rate = 48, 64, 2_000_000
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + STEP * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number if number < 8 else number + 10, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for reader in ("pyav", "auto"):
        means = read_frames(path, 25, 48, reader=reader).mean((1, 2, 3))  # type: ignore[arg-type]
        assert [round((mean - 20) / STEP) for mean in means] == [*range(8), *[7] * 10, *range(8, 20)], reader


@pytest.mark.parametrize(
    "spoil", [lambda path: spoil_packet(path, "video", 10), lambda path: flip_bytes(path, (10, 30))]
)
def test_what_is_left_of_a_damaged_file_is_served(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "clip.mp4"
    write(path, Case("mp4 h264 B", Fraction(25), (0.0, 0.0), 0, ("aac", "mono", 44_100)))
    spoil(path)
    staged, found = staged_as_served(path, 10.0, 48)
    assert len(staged) == 16 and "damaged: " in found["reason"]


def test_the_public_odd_files(shared_data: Path) -> None:
    """Each against a sequential decode: the frame that is shown at k/4 s, upright."""
    for path in sorted((shared_data / "odd_videos").glob("*.*[!d]")):
        staged, _ = staged_as_served(path, 4.0, 72)
        decoded: list[av.VideoFrame] = []
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for packet in container.demux(stream):
                with suppress(av.FFmpegError):
                    decoded += packet.decode()
            assert stream.time_base
            times = np.array([float((frame.pts or 0) * stream.time_base) for frame in decoded])
        joined = (np.diff(times) <= 0).any()
        times = np.arange(len(decoded)) / 25 if path.suffix == ".avi" or joined else times - times[0]
        for number, picture in enumerate(staged):
            frame = decoded[int(np.searchsorted(times - 1e-6, number / 4, side="right")) - 1]
            height, width = picture.shape[:2][:: -1 if frame.rotation % 180 else 1]
            upright = np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), frame.rotation // 90)
            assert np.abs(picture.astype(int) - upright).mean() < 4, (path.name, number)
