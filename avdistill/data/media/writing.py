"""Write MP4 files, the same bytes for the same input."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from avdistill.data.media.sound import SAMPLE_RATE


def write_video(path: Path, frames: np.ndarray, fps: int, sound: np.ndarray | None, rate: int = SAMPLE_RATE) -> None:
    """Write an MP4 (H.264, AAC) from uint8 (T, H, W, 3), H and W even, and float (samples,) in -1..1 or None.

    The same input gives the same bytes on the same machine: one thread, no creation time, no version strings.
    """
    import av
    from av.codec.context import Flags

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # x264's macroblock tree reads memory that it has not written, where a frame is as small as avsynth's.
        options = {"preset": "veryfast", "crf": "20", "x264-params": "threads=1:mbtree=0"}
        video = container.add_stream("libx264", rate=fps, options=options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= Flags.bitexact
        audio = None
        if sound is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = 64_000
            audio.codec_context.flags |= Flags.bitexact
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            samples = np.ascontiguousarray(np.clip(sound, -1, 1), dtype=np.float32)[np.newaxis]
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    partial.replace(path)
