"""Reading and writing video files: the only module that imports PyAV and decord.

Times are seconds from the first picture of the file. Rotation flags and non-square pixels are ignored: pictures come
as they are stored.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream
from avdistill.data.containers import mislabelling, not_a_video, truncation

SAMPLE_RATE = 32_000  # Hz, what PANNs hears
SILENCE = 1e-4  # -80 dB of full scale: below it 16-bit sound is three steps of dither or nothing
NO_AUDIO = "no audio stream"
# What a file cannot be blamed for: a library that is missing, or has another interface than this module expects.
ENVIRONMENT = (ImportError, AttributeError, NameError, TypeError)
TICK = 1e-6  # s, tolerance in comparing times
Audio = Literal["yes", "silent", "no"]
Reader = Literal["auto", "decord", "pyav"]


class MediaError(UserError):
    """A file that cannot be decoded. The message begins with its path."""


@dataclass(frozen=True)
class Probe:
    """What a file holds. `frames` is None where the file does not say; `no_sound` and `broken` give reasons.

    `remark` says what is odd about a file that can be read: truncated, or of another type than its name says."""

    seconds: float = 0.0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    frames: int | None = None
    has_video: bool = False
    audio: Audio = "no"
    no_sound: str | None = None
    broken: str | None = None
    remark: str | None = None

    @property
    def reason(self) -> str:
        """All that there is to say about the file in one line; empty where nothing is amiss."""
        return "; ".join(filter(None, (self.broken, self.no_sound, self.remark)))


def probe(path: Path, start: float = 0.0, end: float | None = None) -> Probe:
    """Look at a file: decode its first pictures and the sound from `start` to `end`. Never raises for a bad file.

    A file of a single picture is no video. Sound is "silent" where no sample exceeds SILENCE, and "no" where there is
    no stream or it cannot be decoded. `seconds` is the length of the whole file.
    """
    try:
        with _open(path) as container:
            stream = _video_stream(container, path)
            pictures = container.decode(stream)
            if next(pictures, None) is None:
                raise MediaError(f"{path}: no picture could be decoded")
            if next(pictures, None) is None:
                raise MediaError(f"{path}: too short: a single picture")
            truncated = truncation(path)
            if truncated is not None:
                deque(pictures, maxlen=0)  # can what is left be read?
            found = Probe(
                seconds=_seconds(container, stream, path),
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                fps=float(stream.average_rate or 0),
                frames=stream.frames or None,
                has_video=True,
                remark="; ".join(filter(None, (truncated, mislabelling(container, path)))) or None,
            )
        audio, no_sound = _audio(path, start, end)
        return replace(found, audio=audio, no_sound=no_sound)
    except MediaError as error:
        reason = str(error).removeprefix(f"{path}: ")
        try:
            return Probe(broken=not_a_video(path) or truncation(path) or reason)
        except OSError:
            return Probe(broken=reason)


def read_frames(
    path: Path,
    fps: float,
    short_side: int,
    start: float = 0.0,
    end: float | None = None,
    reader: Reader = "auto",
) -> np.ndarray:
    """The pictures on screen at start, start + 1/fps, … before `end`, as uint8 (T, H, W, 3), RGB, T >= 1.

    The shorter side is scaled (bilinear) to `short_side` pixels, the ratio of the sides is kept. Times come from the
    file's timestamps, so a variable frame rate is sampled evenly. `auto` is decord where it is installed, else PyAV.
    Raises MediaError if the file cannot be decoded or `start` lies behind its end.
    """
    if reader == "auto" and _has_decord():
        try:
            return _read_decord(path, fps, short_side, start, end)
        except MediaError:  # what decord cannot read, PyAV often can
            return _read_pyav(path, fps, short_side, start, end)
    return (_read_decord if reader == "decord" else _read_pyav)(path, fps, short_side, start, end)


def read_audio(path: Path, rate: int = SAMPLE_RATE, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """The sound from `start` to `end` as float32 (samples,): the mean of the channels, resampled to `rate` Hz.

    Ends with the stream if that is shorter. Raises MediaError if there is no audio stream or it cannot be decoded.
    """
    import av

    with _open(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: {NO_AUDIO}")
        stream = container.streams.audio[0]
        _one_thread(stream, path)
        origin = _origin(container.streams.video[0]) if container.streams.video else 0.0
        if start > 2:  # one second earlier, for codecs whose frames depend on earlier ones
            container.seek(int((start - 1 + origin) * av.time_base))
        resampler = av.AudioResampler(format="fltp", rate=rate)
        chunks: list[np.ndarray] = []
        first: float | None = None
        for frame in container.decode(stream):
            time = 0.0 if frame.time is None else frame.time - origin
            first = time if first is None else first
            if end is not None and time > end:
                break
            chunks += [_mono(piece) for piece in resampler.resample(frame)]
        if first is None:
            raise MediaError(f"{path}: no sound could be decoded")
        chunks += [_mono(piece) for piece in resampler.resample(None)]
    sound = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.float32)
    lead = round((first - start) * rate)
    sound = np.concatenate([np.zeros(lead, dtype=np.float32), sound]) if lead > 0 else sound[-lead:]
    return np.ascontiguousarray(sound if end is None else sound[: round((end - start) * rate)], dtype=np.float32)


def write_video(path: Path, frames: np.ndarray, fps: int, sound: np.ndarray | None, rate: int = SAMPLE_RATE) -> None:
    """Write an MP4 (H.264, AAC) from uint8 (T, H, W, 3), H and W even, and float (samples,) in -1..1 or None.

    The same input gives the same bytes on the same machine: one thread, no creation time, no version strings.
    """
    import av
    from av.codec.context import Flags

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # x264's macroblock tree reads memory that it has not written, where a picture is as small as avsynth's.
        options = {"preset": "veryfast", "crf": "20", "x264-params": "threads=1:mbtree=0"}
        picture = container.add_stream("libx264", rate=fps, options=options)
        picture.height, picture.width = frames.shape[1:3]
        picture.pix_fmt = "yuv420p"
        picture.codec_context.thread_count = 1
        picture.codec_context.flags |= Flags.bitexact
        voice = None
        if sound is not None:
            voice = container.add_stream("aac", rate=rate, layout="mono", options={"aac_coder": "fast"})
            voice.bit_rate = 64_000
            voice.codec_context.flags |= Flags.bitexact
        for image in frames:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(picture.encode(None))
        if voice is not None and sound is not None:
            samples = np.ascontiguousarray(np.clip(sound, -1, 1), dtype=np.float32)[np.newaxis]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            container.mux(voice.encode(frame))
            container.mux(voice.encode(None))
    partial.replace(path)


@cache
def check_readers() -> None:
    """Write a small video and read it back with each reader, before any user's file is blamed for a failure.

    Raises UserError with the exception's own words if this environment cannot read video at all. Looks once a process.
    """
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.full((1, 32, 32, 3), 60, dtype=np.uint8)
    for reader in ("pyav", "decord") if _has_decord() else ("pyav",):
        try:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "check.mp4"
                write_video(path, frames, 4, np.zeros(SAMPLE_RATE, dtype=np.float32))
                if not read_frames(path, 4, 32, reader=reader).shape == frames.shape:
                    raise RuntimeError("frames of another shape than were written")
                read_audio(path)
        except Exception as error:
            name = "av" if reader == "pyav" else reader
            raise UserError(
                f"this environment cannot read video: {name} {version(name)} on Python {sys.version.split()[0]}: "
                f"{type(error).__name__}: {error}; delete .venv and run make again, or install the version of "
                f"{name} that requirements.lock names"
            ) from error


def _mono(piece: AudioFrame) -> np.ndarray:
    """The mean of the channels (samples,)."""
    channels: np.ndarray = piece.to_ndarray()
    return channels[0] if len(channels) == 1 else channels.mean(axis=0)


@contextmanager
def _open(path: Path) -> Iterator[InputContainer]:
    """Open a file for reading; whatever goes wrong inside the block is a MediaError that names the file."""
    import av

    try:
        # PyAV 19 reads any metadata; before, titles that are not UTF-8 were errors unless asked otherwise.
        lenient: Any = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
        # "file:" because a name like "a:b.mp4" is a protocol to FFmpeg.
        with av.open(f"file:{path}", **lenient) as container:
            yield container
    except (MediaError, *ENVIRONMENT):
        raise
    except Exception as error:  # noqa: BLE001 - FFmpeg's errors have many classes, decord's and NumPy's have others
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise MediaError(f"{path}: {reason[:200]}") from None


def _has_decord() -> bool:
    from importlib.util import find_spec

    return find_spec("decord") is not None


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first stream of moving pictures (an album's cover is a stream, too). One thread decodes it."""
    from av.stream import Disposition

    kind = container.format.name
    if kind == "image2" or kind.endswith("_pipe"):
        raise MediaError(f"{path}: mislabelled: a picture ({kind.removesuffix('_pipe')}), not a video")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if streams:
        _one_thread(streams[0], path)
    if not streams or not streams[0].codec_context.width:
        what = f"mislabelled: sound only ({kind}), not a video" if container.streams.audio else "no video stream"
        raise MediaError(f"{path}: {what}")
    return streams[0]


def _one_thread(stream: VideoStream | AudioStream, path: Path) -> None:
    """Have one thread decode a stream. Raises MediaError if FFmpeg does not know its codec."""
    if stream.codec_context is None:
        raise MediaError(f"{path}: {stream.type} of an unknown codec")
    stream.codec_context.thread_count = 1


def _origin(stream: VideoStream) -> float:
    """The file's own time of the first picture, in seconds."""
    return float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0


def _frame_time(stream: VideoStream) -> float:
    """How long a picture is shown on average, in seconds."""
    return float(1 / stream.average_rate) if stream.average_rate else 0.04


def _seconds(container: InputContainer, stream: VideoStream, path: Path) -> float:
    """Length of the pictures, by the first of: stream, container, timestamps of all packets."""
    import av

    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    with _open(path) as again:
        stream = _video_stream(again, path)
        return float(_timetable(again, stream)[-1] + _frame_time(stream))


def _audio(path: Path, start: float, end: float | None) -> tuple[Audio, str | None]:
    """Whether there is sound, and why not."""
    with _open(path) as container:
        if not container.streams.audio:
            return "no", NO_AUDIO
    try:
        sound = read_audio(path, start=start, end=end)
    except MediaError as error:
        return "no", f"sound cannot be decoded: {str(error).removeprefix(f'{path}: ')}"
    if not np.any(np.abs(sound) > SILENCE):
        return "silent", f"digital silence: no sample above {SILENCE:g}"
    return "yes", None


def _evenly_spaced(container: InputContainer) -> bool:
    """AVI has no timestamps, only a rate; what FFmpeg makes up for B-frames is out of order."""
    return "avi" in container.format.name


def _timetable(container: InputContainer, stream: VideoStream) -> np.ndarray:
    """When each picture comes on screen, float64 (N,), ascending from 0: read from the packets without decoding."""
    stamps = [packet.pts for packet in container.demux(stream) if packet.size]
    if None in stamps or not stamps or _evenly_spaced(container):
        return np.arange(len(stamps)) * _frame_time(stream)
    times = np.sort(np.array(stamps, dtype=np.float64)) * float(stream.time_base or 0)
    return times - times[0]


def _scaled_size(stream: VideoStream, short_side: int) -> tuple[int, int]:
    """Width and height with the shorter side scaled to `short_side`."""
    width, height = stream.codec_context.width, stream.codec_context.height
    scale = short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _nothing_between(path: Path, start: float, end: float | None) -> MediaError:
    return MediaError(f"{path}: no picture between {start:g} s and {'the end' if end is None else f'{end:g} s'}")


def _read_decord(path: Path, fps: float, short_side: int, start: float, end: float | None) -> np.ndarray:
    """decord picks the pictures by number and scales while decoding; the numbers come from PyAV's timetable."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    with _open(path) as container:
        stream = _video_stream(container, path)
        times = _timetable(container, stream)
        last = times[-1] + _frame_time(stream) if len(times) else 0.0
        stop = last if end is None else min(end, last)
        count = int(np.ceil((stop - start - TICK) * fps))
        if count < 1:
            raise _nothing_between(path, start, end)
        wanted = start + np.arange(count) / fps
        width, height = _scaled_size(stream, short_side)
        video = decord.VideoReader(str(path), width=width, height=height, num_threads=1)
        if len(video) != len(times):
            raise MediaError(f"{path}: {len(times)} pictures in the file, {len(video)} by decord's count")
        return video.get_batch(np.searchsorted(times, wanted + TICK, side="right") - 1).asnumpy()


def _read_pyav(path: Path, fps: float, short_side: int, start: float, end: float | None) -> np.ndarray:
    """Walk through the pictures; each is taken once for every sample time until the next one comes on screen."""
    from av.video.reformatter import Interpolation, VideoReformatter

    scaler = VideoReformatter()
    taken: list[np.ndarray] = []

    def take(picture: VideoFrame, until: float) -> None:
        image: np.ndarray | None = None
        while start + len(taken) / fps < until - TICK:
            if image is None:
                image = scaler.reformat(
                    picture, width, height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
                ).to_ndarray()
            taken.append(image)

    with _open(path) as container:
        stream = _video_stream(container, path)
        width, height = _scaled_size(stream, short_side)
        shown: VideoFrame | None = None
        stop = 0.0
        for time, picture in _pictures(container, stream, start):
            if shown is not None:
                take(shown, time if end is None else min(time, end))
            shown, stop = picture, time + _frame_time(stream)
            if end is not None and time >= end:
                break
        if shown is not None:
            take(shown, stop if end is None else min(stop, end))
    if not taken:
        raise _nothing_between(path, start, end)
    return np.stack(taken)


def _pictures(container: InputContainer, stream: VideoStream, start: float) -> Iterator[tuple[float, VideoFrame]]:
    """Time and picture, from the one on screen at `start` or an earlier one."""
    step = float(stream.time_base or 0)
    evenly = _evenly_spaced(container)

    def decode() -> Iterator[tuple[float, VideoFrame]]:
        time = -_frame_time(stream)
        for picture in container.decode(stream):
            stamp = None if evenly else picture.pts
            time = time + _frame_time(stream) if stamp is None else stamp * step - _origin(stream)
            yield time, picture

    if start > 2 and not evenly:  # nearer to the beginning, seeking gains nothing
        container.seek(int((start + _origin(stream)) / step), stream=stream)
        pictures = decode()
        first = next(pictures, None)
        if first is not None and 0 <= first[0] <= start:
            yield first
            yield from pictures
            return
        container.seek(0)  # some formats have no index and land too late
    yield from decode()
