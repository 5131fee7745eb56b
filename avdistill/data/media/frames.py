"""Frames by time, from PyAV's sequential decode, or from decord where that is proven to give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from avdistill.data.media.container import (
    Damage,
    MediaError,
    decode,
    frame_time,
    has_times,
    media_errors,
    open_video,
    origin_of,
    packets,
    quarter_turns,
    restarts,
    video_stream,
)

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Containers and codecs in which decord shows the frames of a sequential decode (see its tests).
DECORD_READS = {("mov", "h264"), ("matroska", "h264"), ("mov", "mpeg4"), ("avi", "mpeg4")}
NO_B_FRAMES = {"mpeg4"}  # codecs that decord reads in the wrong order where there are B-frames
TICK = 1e-6  # s, tolerance in comparing times
Reader = Literal["auto", "decord", "pyav"]


def read_frames(
    path: Path,
    fps: float,
    short_side: int,
    start: float = 0.0,
    end: float | None = None,
    reader: Reader = "auto",
    damage: Damage | None = None,
) -> np.ndarray:
    """The frames shown at start, start + 1/fps, … before `end`, as uint8 (T, H, W, 3), RGB, T >= 1, upright.

    The shorter side is scaled (bilinear) to `short_side` pixels, the ratio of the sides is kept. Times come from the
    file's timestamps, so a variable frame rate is sampled evenly. `auto` is decord where it is installed and reads the
    file's kind exactly (DECORD_READS), else PyAV. What PyAV finds damaged is counted in `damage`.
    Raises MediaError if nothing can be decoded or `start` is beyond the end of the file.
    """
    damage = damage if damage is not None else Damage()
    if reader == "decord" or (reader == "auto" and has_decord()):
        try:
            table = _table_for_decord(path, short_side, checked=reader == "auto")
            if table is not None:
                return _read_decord(path, table, fps, start, end)
        except MediaError:
            if reader == "decord":
                raise
    return _read_pyav(path, fps, short_side, start, end, damage)


def has_decord() -> bool:
    """Whether decord is installed: it has wheels for x86-64 Linux and Windows only."""
    from importlib.util import find_spec

    return find_spec("decord") is not None


def _lacks_timestamps(container: InputContainer) -> bool:
    """Return whether a container stores no frame times: AVI. FFmpeg's guesses for its B-frames are out of order."""
    return "avi" in container.format.name


def timetable(
    container: InputContainer, stream: VideoStream, look: Callable[[Packet], None] | None = None
) -> np.ndarray:
    """When each frame comes on screen, float64 (N,), ascending from 0: read from the packets without decoding.

    Packets that show nothing, empty or to be discarded, have no place in it. `look` is called with every packet."""
    stamps: list[int | None] = []
    for packet in packets(container, stream):
        if look is not None:
            look(packet)
        if packet.size and not packet.is_discard:
            stamps.append(packet.dts if _lacks_timestamps(container) else packet.pts)
    known = [stamp for stamp in stamps if stamp is not None]
    if not known or len(known) < len(stamps):
        return np.arange(len(stamps)) * frame_time(stream)
    times = np.sort(np.array(known, dtype=np.float64)) * float(stream.time_base or 0)
    return times - times[0]


class _Table(NamedTuple):
    """What decord has to be told about a file: times of its frames, how long one is shown, width and height."""

    times: np.ndarray
    frame_time: float
    size: tuple[int, int]


def _table_for_decord(path: Path, short_side: int, checked: bool) -> _Table | None:
    """Return the table of a file; with `checked`, None if decord does not show its right frames.

    It does if that is proven for container and codec, the frames are upright, the first one is a key frame, and no
    frame is shown before the key frame that it follows in the file (open groups of pictures, which decord mixes up)."""
    from av import FFmpegError

    with open_video(path) as container:
        stream = video_stream(container, path)
        codec = stream.codec_context
        if checked and (container.format.name.split(",")[0], codec.name) not in DECORD_READS:
            return None
        if checked and codec.name in NO_B_FRAMES and codec.has_b_frames:
            return None
        size = _scaled_size(stream, short_side)
        first: list[VideoFrame] = []
        key: int | None = None  # when the last key frame is shown
        closed = True

        def look(packet: Packet) -> None:
            nonlocal key, closed
            if not first:
                with suppress(FFmpegError):
                    first.extend(packet.decode())
            if packet.size and packet.is_keyframe:
                key = packet.pts
            elif packet.size and (key is None or packet.pts is None or packet.pts < key):
                closed = False

        times = timetable(container, stream, look if checked else None)
        if checked and not (closed and first and quarter_turns(first[0]) == 0):
            return None
        return _Table(times, frame_time(stream), size)


def _scaled_size(stream: VideoStream, short_side: int) -> tuple[int, int]:
    """Width and height with the shorter side scaled to `short_side`."""
    width, height = stream.codec_context.width, stream.codec_context.height
    scale = short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _nothing_between(path: Path, start: float, end: float | None) -> MediaError:
    return MediaError(f"{path}: no frame between {start:g} s and {'the end' if end is None else f'{end:g} s'}")


def _read_decord(path: Path, table: _Table, fps: float, start: float, end: float | None) -> np.ndarray:
    """Read with decord, which scales while it decodes; the numbers of the frames come from PyAV's timetable."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    times, (width, height) = table.times, table.size
    last = times[-1] + table.frame_time if len(times) else 0.0
    stop = last if end is None else min(end, last)
    count = int(np.ceil((stop - start - TICK) * fps))
    if count < 1:
        raise _nothing_between(path, start, end)
    wanted = start + np.arange(count) / fps
    with media_errors(path):
        video = decord.VideoReader(str(path), width=width, height=height, num_threads=1)
        if len(video) != len(times):
            raise MediaError(f"{path}: {len(times)} frames in the file, {len(video)} by decord's count")
        return video.get_batch(np.searchsorted(times, wanted + TICK, side="right") - 1).asnumpy()


def _read_pyav(path: Path, fps: float, short_side: int, start: float, end: float | None, damage: Damage) -> np.ndarray:
    """Walk through the frames; each is taken once for every sample time until the next one comes on screen."""
    from av.video.reformatter import Interpolation, VideoReformatter

    scaler = VideoReformatter()
    taken: list[np.ndarray] = []

    def take(frame: VideoFrame, until: float) -> None:
        image: np.ndarray | None = None
        while start + len(taken) / fps < until - TICK:
            if image is None:
                image = scaler.reformat(
                    frame, width, height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
                ).to_ndarray()
                image = np.ascontiguousarray(np.rot90(image, quarter_turns(frame)))
            taken.append(image)

    with open_video(path) as container:
        stream = video_stream(container, path)
        width, height = _scaled_size(stream, short_side)
        shown: VideoFrame | None = None
        stop = 0.0
        for time, frame in _frames(path, container, stream, start, damage):
            if shown is not None:
                take(shown, time if end is None else min(time, end))
            shown, stop = frame, time + frame_time(stream)
            if end is not None and time >= end:
                break
        if shown is not None:
            take(shown, stop if end is None else min(stop, end))
    if not taken:
        raise _nothing_between(path, start, end)
    return np.stack(taken)


def damage_between(path: Path, start: float = 0.0, end: float | None = None) -> Damage:
    """Decode the frames from `start` to `end`, and return what of them is damaged. Raises MediaError."""
    damage = Damage()
    with open_video(path) as container:
        for time, _ in _frames(path, container, video_stream(container, path), start, damage):
            if end is not None and time >= end:
                break
    return damage


def _frames(
    path: Path, container: InputContainer, stream: VideoStream, start: float, damage: Damage
) -> Iterator[tuple[float, VideoFrame]]:
    """Time and frame, from the one on screen at `start` or an earlier one."""
    step = float(stream.time_base or 0)
    times: np.ndarray | None = None
    stored = has_times(container)
    if _lacks_timestamps(container):
        with open_video(path) as again:
            times = timetable(again, video_stream(again, path))

    def timed() -> Iterator[tuple[float, VideoFrame]]:
        time = -frame_time(stream)
        for number, frame in enumerate(decode(container, stream, damage)):
            if times is not None and number < len(times):
                time = float(times[number])
            elif times is not None or frame.pts is None or not stored:
                time += frame_time(stream)
            else:
                time = frame.pts * step - origin_of(stream)
            yield time, frame

    # Nearer to the beginning, seeking gains nothing; where the clock begins anew, a time is not one place.
    if start > 2 and times is None and stored and not restarts(container):
        container.seek(int((start + origin_of(stream)) / step), stream=stream)
        frames = timed()
        first = next(frames, None)
        if first is not None and 0 <= first[0] <= start:
            yield first
            yield from frames
            return
        container.seek(0)  # some formats have no index and land too late
        damage.packets = damage.frames = 0
    yield from timed()
