"""What a file holds, and whether this environment can read video at all."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np

from avdistill.data.media.container import (
    Damage,
    MediaError,
    decode,
    frame_time,
    open_video,
    quarter_turns,
    restarts,
    video_stream,
)
from avdistill.data.media.frames import damage_between, has_decord, read_frames, timetable
from avdistill.data.media.headers import mislabelling, not_a_video, truncation
from avdistill.data.media.sound import NO_AUDIO, SAMPLE_RATE, SILENCE, read_audio
from avdistill.data.media.writing import write_video
from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

Audio = Literal["yes", "silent", "no"]


@dataclass(frozen=True)
class Probe:
    """What a file holds. `frames` is None where the file does not say; `no_sound` and `corrupt` give reasons.

    `remark` says what is odd about a file that can be read: truncated, or of another type than its name says."""

    seconds: float = 0.0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    frames: int | None = None
    has_video: bool = False
    audio: Audio = "no"
    no_sound: str | None = None
    corrupt: str | None = None
    remark: str | None = None

    @property
    def reason(self) -> str:
        """All that there is to say about the file in one line; empty where nothing is amiss."""
        return "; ".join(filter(None, (self.corrupt, self.no_sound, self.remark)))


def probe(path: Path, start: float = 0.0, end: float | None = None) -> Probe:
    """Look at a file: decode its frames and its sound from `start` to `end`. Never raises for a bad file.

    A file of a single frame is no video. Sound is "silent" if no sample of any channel exceeds SILENCE, and "no" where
    there is no stream or none of it can be decoded. `seconds` is the length of the whole file; `width` and `height`
    are those of upright frames.
    """
    try:
        with open_video(path) as container:
            stream = video_stream(container, path)
            damage = Damage()
            frames = decode(container, stream, damage)
            first = next(frames, None)
            if first is None:
                raise MediaError(f"{path}: no frame can be decoded")
            if next(frames, None) is None:
                raise MediaError(f"{path}: too short: a single frame")
            truncated = truncation(path)
            if truncated is not None:
                deque(frames, maxlen=0)  # can what is left be read?
            sides = stream.codec_context.width, stream.codec_context.height
            found = Probe(
                seconds=_seconds(container, stream, path),
                width=sides[quarter_turns(first) % 2],
                height=sides[1 - quarter_turns(first) % 2],
                fps=float(stream.average_rate or 0),
                frames=stream.frames or None,
                has_video=True,
            )
            remarks = truncated, mislabelling(container, path)
        lost_frames = damage_between(path, start, end) if truncated is None else damage
        audio, no_sound, lost = _audio(path, start, end)
        remark = _joined(remarks[0], lost_frames.text("video"), remarks[1], lost)
        return replace(found, audio=audio, no_sound=no_sound, remark=remark)
    except MediaError as error:
        reason = str(error).removeprefix(f"{path}: ")
        try:
            return Probe(corrupt=not_a_video(path) or truncation(path) or reason)
        except OSError:
            return Probe(corrupt=reason)


@cache
def check_readers() -> None:
    """Write a small video and read it back with each reader, before any user's file is blamed for a failure.

    Raises UserError with the exception's own words if this environment cannot read video at all. Looks once a process.
    """
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.full((1, 32, 32, 3), 60, dtype=np.uint8)
    for reader in ("pyav", "decord") if has_decord() else ("pyav",):
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


def _joined(*remarks: str | None) -> str | None:
    return "; ".join(filter(None, remarks)) or None


def _seconds(container: InputContainer, stream: VideoStream, path: Path) -> float:
    """Return the length of the video in seconds: what its header states, and no less than its packets reach.

    Headers that were never completed state less (IVF, AVI). Where recordings were joined, they know only one of them.
    """
    import av

    stated = 0.0
    if not restarts(container):
        if stream.duration and stream.time_base:
            stated = float(stream.duration * stream.time_base)
        elif container.duration:
            stated = container.duration / av.time_base
    with open_video(path) as again:
        stream = video_stream(again, path)
        times = timetable(again, stream)
        usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return max(stated, float(times[-1]) + max(usual, frame_time(stream)))  # read_frames shows the last one as long


def _audio(path: Path, start: float, end: float | None) -> tuple[Audio, str | None, str]:
    """Whether there is sound, why not, and what of it is damaged."""
    with open_video(path) as container:
        if not container.streams.audio:
            return "no", NO_AUDIO, ""
    damage = Damage()
    try:
        sound = read_audio(path, start=start, end=end, damage=damage)
    except MediaError as error:
        return "no", f"sound cannot be decoded: {str(error).removeprefix(f'{path}: ')}", ""
    if not np.any(np.abs(sound) > SILENCE):
        return "silent", f"digital silence: no sample above {SILENCE:g}", damage.text("audio")
    return "yes", None, damage.text("audio")
