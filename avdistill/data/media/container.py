"""Open a container, find its streams, decode them past damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Formats that are lists of other files or addresses, which FFmpeg would open.
LISTS = {"avisynth", "concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp", "vapoursynth", "webm_dash_manifest"}
REWIND = 0.1  # s by which the clock of a file goes back, at least, where recordings were joined
# What a file cannot be blamed for: a library that is missing, or has another interface than this module expects.
ENVIRONMENT = (ImportError, AttributeError, NameError, TypeError)


class MediaError(UserError):
    """A file that cannot be decoded. The message begins with its path."""


@dataclass
class Damage:
    """How many packets of a stream could not be decoded, and how many frames were decoded with errors."""

    packets: int = 0
    frames: int = 0

    def text(self, stream: str) -> str:
        """The damage in words; empty where there is none."""
        lost = f"{self.packets} {stream} packets cannot be decoded" if self.packets else ""
        hidden = f"{self.frames} {stream} frames have errors" if self.frames else ""
        return f"damaged: {', '.join(filter(None, (lost, hidden)))}" if lost or hidden else ""


def decode(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Frames of a stream in the order of display. Packets that cannot be decoded are left out and counted.

    So are frames in which the decoder hides errors, which are kept. What they damage in later frames is not counted.
    Raises what the last one raised if no packet at all can be decoded."""
    import av

    decoded, problem = False, None
    for packet in packets(container, stream):
        try:
            frames = packet.decode()
        except MemoryError:  # not the packet's fault
            raise
        except av.FFmpegError as error:
            damage.packets += 1
            problem = error
            continue
        decoded = decoded or bool(frames)
        for frame in frames:
            damage.frames += bool(frame.is_corrupt)
            yield frame
    if problem is not None and not decoded:
        raise problem


def restarts(container: InputContainer) -> bool:
    """Return whether the clock may begin anew within a file of this format: MPEG-TS, MPEG-PS, Ogg."""
    from av.format import Flags

    return Flags.ts_discont in Flags(container.format.flags)


def has_times(container: InputContainer) -> bool:
    """Return whether files of this format store times; streams without a container (.h264, .hevc) do not."""
    from av.format import Flags

    return Flags.no_timestamps not in Flags(container.format.flags)


def packets(container: InputContainer, stream: Any) -> Iterator[Packet]:
    """Yield the packets of a stream in the order of the file, the last one empty.

    Recordings that were joined follow each other. At a joint the clock begins anew; all streams go on from the end of
    the longest one, so they stay together. The last packets of one stream may come behind the first ones of another
    from the next recording."""
    if not restarts(container):
        yield from container.demux(stream)
        return
    shift = end = 0.0  # s: what is added to the times of the newest recording, and where that ends so far
    last: dict[int, float] = {}  # by stream: time of decoding of the last packet, and what is added to its times
    added: dict[int, float] = {}
    for packet in container.demux([*container.streams.video, *container.streams.audio]):
        step, place = float(packet.time_base or 0), packet.stream.index
        added.setdefault(place, shift)
        if packet.dts is not None:
            time, shown = packet.dts * step, (packet.dts if packet.pts is None else packet.pts) * step
            if time < last.get(place, time) - REWIND:
                if added[place] == shift:  # the first stream at this joint
                    shift, end = shift + end - shown, shown
                added[place] = shift
            last[place] = time
            if added[place] == shift:
                end = max(end, shown + (packet.duration * step if packet.duration else _usual(packet.stream)))
        if place != stream.index:
            continue
        if added[place]:
            ticks = round(added[place] / step)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
        yield packet


def _usual(stream: Any) -> float:
    """Return how long a packet lasts that has no duration of its own, in seconds."""
    return frame_time(stream) if stream.type == "video" else 0.0


def quarter_turns(frame: VideoFrame) -> int:
    """Quarter turns, counterclockwise, that bring a frame upright (the rotation flag of phones)."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


@contextmanager
def open_video(path: Path) -> Iterator[InputContainer]:
    """Open a file for reading, and no other file that it names.

    Whatever goes wrong inside the block is a MediaError that names the file."""
    import av

    # PyAV 19 reads any metadata; before, titles that are not UTF-8 were errors unless asked otherwise.
    lenient: Any = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    alone = {"format_whitelist": ",".join(sorted(av.formats_available - LISTS))}
    # "file:" because a name like "a:b.mp4" is a protocol to FFmpeg.
    with media_errors(path), av.open(f"file:{path}", options=alone, **lenient) as container:
        yield container


@contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Turn errors in the block into MediaErrors that name the file."""
    try:
        yield
    except (MediaError, *ENVIRONMENT):
        raise
    except Exception as error:  # noqa: BLE001 - FFmpeg's errors have many classes, decord's and NumPy's have others
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise MediaError(f"{path}: {reason[:200]}") from None


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first video stream, which one thread decodes; the cover of an album, a stream too, does not count.

    Raises MediaError if there is none."""
    from av.stream import Disposition

    kind = container.format.name
    if kind == "image2" or kind.endswith("_pipe"):
        raise MediaError(f"{path}: mislabelled: an image ({kind.removesuffix('_pipe')}), not a video")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if streams:
        one_thread(streams[0], path)
    if not streams or not streams[0].codec_context.width:
        what = f"mislabelled: sound only ({kind}), not a video" if container.streams.audio else "no video stream"
        raise MediaError(f"{path}: {what}")
    return streams[0]


def frame_size(path: Path) -> tuple[int, int]:
    """Return width and height of a video's frames, as its header states them. Raises MediaError."""
    with open_video(path) as container:
        codec = video_stream(container, path).codec_context
        return codec.width, codec.height


def one_thread(stream: VideoStream | AudioStream, path: Path) -> None:
    """Have one thread decode a stream. Raises MediaError if FFmpeg does not know its codec."""
    if stream.codec_context is None:
        raise MediaError(f"{path}: {stream.type} of an unknown codec")
    stream.codec_context.thread_count = 1


def origin_of(stream: VideoStream) -> float:
    """Return the timestamp of the first frame, in seconds."""
    return float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0


def frame_time(stream: VideoStream) -> float:
    """Return how long a frame is shown on average, in seconds; 0.04 if the file does not state it."""
    return float(1 / stream.average_rate) if stream.average_rate else 0.04
