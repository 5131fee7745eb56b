"""Read hostile videos: each in a process that the kernel ends when it takes too long, and that gets no more memory.

A reader's process is started with `subprocess`, not by a pool of multiprocessing: those start the program's main file
again in each process, which a script without `if __name__ == "__main__"` does not survive, and they are refused in
daemonic processes, such as those of Spark. It imports no PyTorch.
"""

from __future__ import annotations

import os
import queue
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.data.jpeg import JpegClip, encode
from avdistill.data.media import check_readers, frame_size, read_frames
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores
from avdistill.serving.limits import Limits

ROOT = Path(__file__).resolve().parents[2]
START = "from avdistill.serving.reading import main; main()"
STARTING = 60.0  # s for a process to start
GRACE = 1.0  # s for the kernel to end a process whose time is up
# Signatures of self-contained video files. All other files are rejected unread, because FFmpeg would treat some text
# files as playlists and open the files they list.
SIGNATURES = re.compile(
    rb".{4}(?:ftyp|styp|moov|moof|sidx|mdat|wide|free|skip|uuid|pnot)"  # MP4, MOV, 3GP
    rb"|.{4}jP  "  # Motion JPEG 2000
    rb"|\x1aE\xdf\xa3"  # Matroska, WebM
    rb"|RIFF.{4}(?:AVI |AMV )"
    rb"|0&\xb2u\x8ef\xcf\x11"  # ASF, WMV
    rb"|FLV\x01|OggS|GIF8[79]a|\x06\x0e\x2b\x34"  # the last: MXF
    rb"|\.RMF|DKIF|YUV4MPEG2|nut/multimedia"  # RealMedia, IVF, YUV4MPEG, NUT
    rb"|\xb7\xd8\x00\x20\x37\x49\xda\x11|\x1f\x07\x00|\xff\xd8\xff"  # WTV, DV, Motion JPEG
    rb"|\x00\x00\x01[\xba\xb3\xb0\xb6]"  # MPEG program stream, MPEG video
    rb"|\x00\x00(?:\x00)?\x01[\x06\x09\x27\x40\x42\x46\x47\x67]"  # H.264, HEVC
    rb"|G.{187}G|.{4}G.{191}G",  # MPEG transport stream, in packets of 188 and 192 bytes
    re.DOTALL,
)


class ReaderEndedError(UserError):
    """The process of a reader was killed after its time, or crashed."""


def read(path: Path, preprocessing: dict[str, Any], limits: Limits) -> np.ndarray:
    """Return the frames of a video as the student was trained on them, cropped to squares: uint8 (T, S, S, 3).

    Raises UserError if the file is not a video or exceeds a limit."""
    with path.open("rb") as file:
        if not SIGNATURES.match(file.read(256)):
            raise UserError("not a video file; expected MP4, MOV, Matroska, WebM, AVI, WMV, FLV, Ogg or MPEG")
    width, height = frame_size(path)
    if width * height > limits.megapixels * 10**6:
        raise UserError(
            f"frames of {width} x {height}; expected at most {limits.megapixels} megapixels (AV_SERVE_MEGAPIXELS)"
        )
    fps, short_side, reader = (preprocessing[name] for name in ("fps", "short_side", "reader"))
    # Reading one frame more than allowed detects a video that is too long without decoding the rest.
    frames = read_frames(path, fps, short_side, end=limits.seconds + 1 / fps, reader=reader)
    if len(frames) > limits.seconds * fps:
        raise UserError(f"longer than {limits.seconds} s (AV_SERVE_SECONDS)")
    if preprocessing["encoding"] == "jpeg":  # the student was trained on JPEG frames
        frames = JpegClip(encode(frames, preprocessing["quality"]))[:]
    side = min(frames.shape[1:3])
    top, left = ((length - side) // 2 for length in frames.shape[1:3])
    return np.ascontiguousarray(frames[:, top : top + side, left : left + side])


class Readers:
    """Processes that read videos, at most `count` at a time; each starts when it is needed and is used again."""

    def __init__(self, count: int | None = None) -> None:
        self._idle: queue.LifoQueue[ReaderProcess | None] = queue.LifoQueue()
        for _ in range(count or cores()):
            self._idle.put(None)

    def read(self, path: Path, preprocessing: dict[str, Any], limits: Limits, until: float) -> np.ndarray:
        """Do `read` in a process, by `until` (time.monotonic). Where reader `auto` hangs or crashes, PyAV reads.

        Raises UserError, as `read` does."""
        try:
            return self._read(path, preprocessing, limits, until)
        except ReaderEndedError:
            if preprocessing["reader"] != "auto":
                raise
        return self._read(path, preprocessing | {"reader": "pyav"}, limits, until)

    def _read(self, path: Path, preprocessing: dict[str, Any], limits: Limits, until: float) -> np.ndarray:
        try:
            process = self._idle.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise too_late(limits) from None
        try:
            if process is None or not process.alive:
                process = ReaderProcess()
            left = until - time.monotonic()
            if left <= 0:
                raise too_late(limits)
            return process.read(path, preprocessing, limits, min(left, limits.reader_seconds))
        finally:
            self._idle.put(process)


class ReaderProcess:
    """A process that reads one video at a time. It ends with this process."""

    def __init__(self) -> None:
        """Start the process. Raises UserError if it does not begin to work."""
        self._connection, other = Pipe()
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        # Our own code first: an exported model brings its own, and another may be in the current folder.
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(other.fileno())],
            pass_fds=[other.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | one_thread | {"PYTHONPATH": path},
        )
        other.close()
        if (problem := self._receive(STARTING)) is not True:
            self._process.kill()
            raise problem or UserError("no process can be started to read the video; the server's log has the reason")

    @property
    def alive(self) -> bool:
        """Whether it can read."""
        return self._process.poll() is None

    def read(self, path: Path, preprocessing: dict[str, Any], limits: Limits, seconds: float) -> np.ndarray:
        """Do `read` in the process. Raises UserError; ReaderEndedError if it took more than `seconds` or crashed."""
        try:
            self._connection.send((path, preprocessing, limits, seconds))
        except OSError:  # it has ended
            found = None
        else:
            found = self._receive(seconds + GRACE)
        if isinstance(found, np.ndarray):
            return found
        if isinstance(found, UserError):
            raise found
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        if self._process.returncode in (-signal.SIGALRM, None):
            raise ReaderEndedError(f"not read in {seconds:.0f} s; its reader was ended (AV_SERVE_READER_SECONDS)")
        raise ReaderEndedError("its reader crashed (damaged, or out of memory)")

    def _receive(self, seconds: float) -> Any:
        """Return what the process sends, or None if it ends or sends nothing for that time."""
        try:
            return self._connection.recv() if self._connection.poll(seconds) else None
        except (EOFError, OSError):
            return None


def too_late(limits: Limits) -> UserError:
    """Return the error for a video for which no time is left."""
    return UserError(f"the {limits.request_seconds} s of the request are over (AV_SERVE_REQUEST_SECONDS)")


def main() -> None:
    """Read the videos that the parent names, until it ends. The kernel ends this process when time is up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ends with the parent
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    parent = Connection(int(sys.argv[1]))
    with suppress(EOFError, OSError):
        try:
            check_readers()  # also loads the codecs, which the limits must not hit
        except UserError as error:
            parent.send(error)
            return
        parent.send(True)
        while True:
            path, preprocessing, limits, seconds = parent.recv()
            limit_memory(limits.reader_mb)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            found = attempt(path, preprocessing, limits)
            signal.setitimer(signal.ITIMER_REAL, 0)
            parent.send(found)


def attempt(path: Path, preprocessing: dict[str, Any], limits: Limits) -> np.ndarray | UserError:
    """Return what `read` returns, or the UserError that it raises."""
    try:
        return read(path, preprocessing, limits)
    except Exception as error:  # noqa: BLE001 - a request must not end the process
        if isinstance(error, MemoryError) or isinstance(error.__context__, MemoryError):
            return UserError(f"takes more than {limits.reader_mb} MB to read (AV_SERVE_READER_MB)")
        return UserError(" ".join(str(error).split()).removeprefix(f"{path}: ") or type(error).__name__)


def limit_memory(megabytes: int) -> None:
    """Have allocations beyond this fail in this process. Linux only: elsewhere the limit is not enforced."""
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, hard))
