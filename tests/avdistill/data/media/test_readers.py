"""Whatever the container and codec: the frame that is shown at k/fps, and sound at the time at which it is heard.

Frames carry their own number as a grey level and beeps come at whole seconds, so the truth is known without a reader.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avdistill.data import media
from avdistill.data.media import frames as frames_module
from avdistill.data.media import probe, read_audio, read_frames
from avdistill.data.media import sound as sound_module
from avdistill.serving import reading
from avdistill.serving.limits import Limits
from tests.helpers.little import RATE, rotate, spoil_packet

FRAMES = 40
STEP = 5  # grey levels between two frames

OPEN = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}
# Container, codec, options of the encoder.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4 h264": ("mp4", "libx264", {"bf": "0"}),
    "mp4 h264 B": ("mp4", "libx264", {"bf": "3"}),
    "mov h264 B": ("mov", "libx264", {"bf": "2"}),
    "mp4 h264 open": ("mp4", "libx264", OPEN),
    "mkv h264 open": ("mkv", "libx264", OPEN),
    "mkv h264 B": ("mkv", "libx264", {"bf": "3"}),
    "ts h264": ("ts", "libx264", {"bf": "0"}),
    "ts h264 B": ("ts", "libx264", {"bf": "3", "g": "250"}),
    "avi h264": ("avi", "libx264", {"bf": "0"}),
    "avi h264 B": ("avi", "libx264", {"bf": "2"}),
    "avi mpeg4": ("avi", "mpeg4", {"bf": "0"}),
    "avi mpeg4 B": ("avi", "mpeg4", {"bf": "2"}),
    "mp4 mpeg4": ("mp4", "mpeg4", {"bf": "0"}),
    "mp4 mpeg4 B": ("mp4", "mpeg4", {"bf": "2"}),
    "mkv mpeg4 B": ("mkv", "mpeg4", {"bf": "2"}),
    "ts mpeg2 B": ("ts", "mpeg2video", {"bf": "2"}),
    "mp4 hevc": ("mp4", "libx265", {"x265-params": "log-level=none"}),
    "ts hevc": ("ts", "libx265", {"x265-params": "log-level=none"}),
    "webm vp8": ("webm", "libvpx", {}),
    "webm vp9": ("webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "wmv": ("wmv", "wmv2", {}),
    "flv": ("flv", "flv", {}),
}
NO_VARIABLE_RATE = {"avi", "flv", "wmv"}  # containers, or codecs, with a fixed rate


def write(path: Path, kind: str, times: list[float]) -> None:
    """A video of FRAMES grey frames that come on screen at `times` (s)."""
    _, codec, options = KINDS[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec} here")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.bit_rate = 2_000_000
        base = Fraction(1, 25) if path.suffix[1:] in NO_VARIABLE_RATE or "mpeg" in codec else Fraction(1, 1000)
        stream.codec_context.time_base = base
        for number, time in enumerate(times):
            picture = np.full((48, 64, 3), 20 + STEP * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def numbers(frames: np.ndarray) -> list[int]:
    """The number that each frame carries."""
    return [round((float(frame.mean()) - 20) / STEP) for frame in frames]


def shown(times: list[float], fps: float, start: float, count: int) -> list[int]:
    """The frames that a player shows at start, start + 1/fps, …"""
    moments = start + np.arange(count) / fps
    return [int(np.searchsorted(np.array(times) - 1e-6, moment, side="right") - 1) for moment in moments]


@pytest.mark.parametrize("reader", ["pyav", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_constant_rate(tmp_path: Path, kind: str, reader: media.Reader) -> None:
    path = tmp_path / f"clip.{KINDS[kind][0]}"
    times = [number / 25 for number in range(FRAMES)]
    write(path, kind, times)
    for fps, start in ((4.0, 0.0), (25.0, 0.0), (10.0, 0.52), (7.0, 0.3)):
        found = numbers(read_frames(path, fps, 48, start, reader=reader))
        expected = shown(times, fps, start, len(found))
        assert found == expected and len(found) >= int((FRAMES / 25 - start) * fps) - 1, (fps, start)
    assert probe(path).corrupt is None


@pytest.mark.parametrize("reader", ["pyav", "auto"])
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not any(word in kind for word in (*NO_VARIABLE_RATE, "mpeg"))]
)
def test_variable_rate(tmp_path: Path, kind: str, reader: media.Reader) -> None:
    path = tmp_path / f"clip.{KINDS[kind][0]}"
    times = np.cumsum([0.0, *np.random.default_rng(0).choice([0.02, 0.04, 0.12, 0.3], FRAMES - 1)]).round(3).tolist()
    write(path, kind, times)
    for fps, start in ((4.0, 0.0), (12.5, 0.0), (4.0, 1.3), (4.0, 3.1)):
        found = numbers(read_frames(path, fps, 48, start, reader=reader))
        assert found[:-1] == shown(times, fps, start, len(found))[:-1], (fps, start)


def test_a_file_that_decord_reads_is_opened_once_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To see whether decord reads it right, and for the times of its frames."""
    if not media.has_decord():
        pytest.skip("no decord here")
    path = tmp_path / "clip.mp4"
    write(path, "mp4 h264 B", [number / 25 for number in range(FRAMES)])
    opened: list[Path] = []
    real = frames_module.open_video
    monkeypatch.setattr(frames_module, "open_video", lambda path: (opened.append(path), real(path))[1])
    by_decord = read_frames(path, 4, 48, reader="decord")
    opened.clear()
    assert np.array_equal(read_frames(path, 4, 48), by_decord)
    assert opened == [path]


def copy(source: Path, target: Path, first: int, seconds: float) -> None:
    """Copy the packets from number `first` on, `seconds` earlier, without decoding: ffmpeg -ss … -c copy."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        video = old.streams.video[0]
        stream = new.add_stream_from_template(video)
        packets = [packet for packet in old.demux(video) if packet.size][first:]
        ticks = round(Fraction(seconds).limit_denominator(1000) / video.time_base)
        for packet in packets:
            assert packet.pts is not None and packet.dts is not None
            packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
            new.mux(packet)


@pytest.mark.parametrize("reader", ["pyav", "auto"])
@pytest.mark.parametrize("kind", ["mp4 h264", "mp4 h264 B", "mov h264 B", "mp4 mpeg4"])
def test_a_cut_between_key_frames_begins_at_the_cut(tmp_path: Path, kind: str, reader: media.Reader) -> None:
    """The file has what comes before it, from the key frame on, and an edit list: those packets show nothing."""
    whole, path = (tmp_path / f"{name}.{KINDS[kind][0]}" for name in ("whole", "cut"))
    write(whole, kind, [number / 25 for number in range(FRAMES)])
    with av.open(str(whole)) as container:  # MPEG-4 has a key frame every twelve
        packets = list(container.demux(container.streams.video[0]))
    first = max(place for place, packet in enumerate(packets) if packet.is_keyframe and (packet.pts or 0) <= 7000)
    copy(whole, path, first if "mpeg4" in kind else 0, 0.72)
    assert numbers(read_frames(path, 25, 48, reader=reader)) == list(range(18, FRAMES))
    assert probe(path).seconds == pytest.approx((FRAMES - 18) / 25, abs=0.01)
    serving = {"fps": 25, "short_side": 48, "reader": reader, "encoding": "raw", "quality": 90}
    assert numbers(reading.read(path, serving, Limits())) == list(range(18, FRAMES))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_that_need_what_was_cut_away_are_not_counted(tmp_path: Path, ending: str) -> None:
    """A group of pictures that is open begins with frames that refer to the one before it; decord counts them."""
    whole, path = (tmp_path / f"{name}.{ending}" for name in ("whole", "cut"))
    write(whole, f"{ending} h264 open", [number / 25 for number in range(FRAMES)])
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    first = next(place for place, packet in enumerate(packets) if place and packet.is_keyframe)
    copy(whole, path, first, float(packets[first].dts * packets[first].time_base))
    number = round(packets[first].pts * packets[first].time_base * 25)
    for reader in ("pyav", "auto"):
        assert numbers(read_frames(path, 25, 48, reader=reader)) == list(range(number, FRAMES)), reader


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("reader", ["pyav", "auto"])
def test_rotation_flags_are_followed(tmp_path: Path, turns: int, reader: media.Reader) -> None:
    path = tmp_path / "clip.mov"
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[:24, :32] = 255  # the upper left quarter is white
    media.write_video(path, np.repeat(picture[None], 8, axis=0), 4, None)
    rotate(path, turns)
    frames = read_frames(path, 4, 48, reader=reader)
    expected = np.rot90(picture, turns)
    assert frames.shape[1:] == expected.shape
    assert np.abs(frames[0].astype(int) - expected).mean() < 8
    assert (probe(path).width, probe(path).height) == (expected.shape[1], expected.shape[0])


def beeps(seconds: float, rate: int = RATE) -> np.ndarray:
    """A tone of 0.1 s at every whole second."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 1000 * time) * (time % 1 < 0.1)).astype(np.float32)


def heard(sound: np.ndarray) -> list[float]:
    """When beeps begin, in seconds."""
    loud = np.flatnonzero(np.abs(sound) > 0.1)
    return (loud[np.r_[True, np.diff(loud) > RATE // 4]] / RATE).round(1).tolist() if len(loud) else []


def write_sound(
    path: Path, channels: np.ndarray, layout: str, rate: int = RATE, skip: tuple[float, float] = (0, 0)
) -> None:
    """A video of 6 s with sound (channels, samples), whose packets between the times of `skip` are left out."""
    with av.open(str(path), "w") as container:
        picture: Any = container.add_stream("libx264", rate=4)
        picture.height, picture.width, picture.pix_fmt = 32, 32, "yuv420p"
        voice: Any = container.add_stream("aac", rate=rate, layout=layout)
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, dtype=np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
        samples.sample_rate, samples.time_base, samples.pts = rate, Fraction(1, rate), 0
        for packet in [*voice.encode(samples), *voice.encode(None)]:
            if not skip[0] <= float((packet.pts or 0) * packet.time_base) < skip[1]:
                container.mux(packet)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_gap_in_the_sound_is_silence(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"clip.{ending}"
    write_sound(path, beeps(6)[None], "mono", skip=(1.5, 3.5))
    sound = read_audio(path)
    assert heard(sound) == [0.0, 1.0, 4.0, 5.0] and len(sound) == pytest.approx(6 * RATE, abs=0.1 * RATE)


def test_sound_without_a_gap_has_no_silence_put_in(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    time = np.arange(6 * RATE) / RATE
    write_sound(path, (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None], "mono")
    sound = read_audio(path)[RATE : 5 * RATE].reshape(-1, 320)
    assert (np.abs(sound).max(axis=1) > 0.4).all()


@pytest.mark.parametrize(("layout", "rate"), [("mono", RATE), ("stereo", 48_000)])
def test_a_change_of_layout_or_rate_midway_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, rate: int
) -> None:
    monkeypatch.setattr(sound_module, "GAP", 9.0)  # the change alone, not the short gap at the joint
    parts = [tmp_path / "first.ts", tmp_path / "second.ts"]
    write_sound(parts[0], np.stack([beeps(6), beeps(6)]), "stereo")
    write_sound(parts[1], np.stack([beeps(6, rate)] * (2 if layout == "stereo" else 1)), layout, rate)
    path = joined(tmp_path / "both.ts", *parts)
    assert heard(read_audio(path)) == pytest.approx(list(range(12)), abs=0.11)
    assert probe(path).audio == "yes"


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("reader", ["pyav", "auto"])
@pytest.mark.parametrize("kind", ["ts h264", "ts h264 B", "ts mpeg2 B"])
def test_recordings_that_were_joined_follow_each_other(tmp_path: Path, kind: str, reader: media.Reader) -> None:
    """As cameras and recorders join them: the clock of the file begins anew at the joint."""
    write(tmp_path / "part.ts", kind, [number / 25 for number in range(FRAMES)])
    path = joined(tmp_path / "both.ts", tmp_path / "part.ts", tmp_path / "part.ts")
    both = [*range(FRAMES), *range(FRAMES)]
    assert numbers(read_frames(path, 25, 48, reader=reader)) == both
    assert numbers(read_frames(path, 25, 48, 2.4, 2.8, reader=reader)) == both[60:70]
    assert probe(path).seconds == pytest.approx(2 * FRAMES / 25, abs=0.1)


def test_sound_of_joined_recordings_is_at_its_time(tmp_path: Path) -> None:
    write_sound(tmp_path / "part.ts", beeps(6)[None], "mono")
    path = joined(tmp_path / "both.ts", tmp_path / "part.ts", tmp_path / "part.ts")
    assert heard(read_audio(path)) == pytest.approx(list(range(12)), abs=0.11)
    assert heard(read_audio(path, start=7.5, end=9.7)) == pytest.approx([0.5, 1.5], abs=0.11)
    assert probe(path).seconds == pytest.approx(12, abs=0.1)


def test_one_bad_packet_loses_that_packet(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_sound(path, beeps(6)[None], "mono")
    spoil_packet(path, "audio", 80)
    found = probe(path)
    assert found.audio == "yes" and found.corrupt is None
    assert found.remark is not None and "audio packets cannot be decoded" in found.remark
    assert heard(read_audio(path))[:3] == [0.0, 1.0, 2.0] and heard(read_audio(path))[-1] == 5.0


def test_bad_packets_of_pictures_are_counted_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, "mp4 h264", [number / 25 for number in range(FRAMES)])
    spoil_packet(path, "video", 20)
    damage = media.Damage()
    frames = read_frames(path, 25, 48, reader="pyav", damage=damage)
    assert damage.packets == 1 and len(frames) == FRAMES
    assert numbers(frames)[:20] == list(range(20))


def test_opposite_phases_are_not_silence(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_sound(path, np.stack([beeps(6), -beeps(6)]), "stereo")
    assert probe(path).audio == "yes" and heard(read_audio(path)) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_public_odd_files(shared_data: Path) -> None:
    """Read, and served. h264_in_avi.avi has 200 frames at 25 a second; the others last 3, 8 and 12 s."""
    folder = shared_data / "odd_videos"
    counts = {"h264_in_avi.avi": 32, "xvid_bframes.avi": 32, "shifted_h264_ts.mts": 12, "hang_gop250.mts": 48}
    counts |= {"three_bad_h264_packets.mp4": 48, "audio_gap.mp4": 48, "one_bad_aac_packet.mp4": 48}
    serving = {"fps": 4, "short_side": 72, "reader": "auto", "encoding": "raw", "quality": 90}
    for name, count in (counts | {"audio_layout_change.ts": 32, "rotate90.mov": 1}).items():
        by_reader = [read_frames(folder / name, 4, 72, reader=reader) for reader in ("auto", "pyav")]
        assert [len(frames) for frames in by_reader] == [count, count], name
        assert np.abs(by_reader[0].astype(float) - by_reader[1]).mean() < 4, name  # scaled differently
        assert probe(folder / name).seconds == pytest.approx(count / 4, abs=0.2), name
        served = reading.read(folder / name, serving, Limits())
        left = (max(by_reader[0].shape[1:3]) - 72) // 2
        square = by_reader[0][:, :, left : left + 72] if name != "rotate90.mov" else by_reader[0][:, left : left + 72]
        assert np.array_equal(served, square), name
    assert read_frames(folder / "rotate90.mov", 4, 72).shape == (1, 128, 72, 3)
    for name, seconds in (("audio_gap.mp4", 12.0), ("audio_layout_change.ts", 8.0), ("one_bad_aac_packet.mp4", 12.0)):
        assert len(read_audio(folder / name)) / RATE == pytest.approx(seconds, abs=0.05), name
        assert probe(folder / name).audio == "yes"
    for kind, name in (("audio", "one_bad_aac_packet.mp4"), ("video", "three_bad_h264_packets.mp4")):
        assert f"{kind} packets cannot be decoded" in probe(folder / name).reason
