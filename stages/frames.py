"""Stage frames: decode the frames of every usable clip into a store."""

from __future__ import annotations

from functools import partial

import numpy as np

from avdistill.config.schema import Frames
from avdistill.data import datasets, media
from avdistill.data.jpeg import encode
from avdistill.data.packing import Damaged, pack, usable_clips
from avdistill.pipeline.stage import Stage
from avdistill.pipeline.workers import Fallback

PATIENCE = 30.0  # s that a clip may take beside its own length, before PyAV reads it


def main(stage: Stage) -> None:
    """Write a store of frames, uint8 (T, H, W, 3) by clip id, raw or as JPEGs, and problems.csv."""
    frames = stage.params.frames[str(stage.item)]
    _, clips, digest = usable_clips(stage, frames.dataset, "status", "ok")
    stage.run.log_params(frames.model_dump())
    with stage.output(key=f"{digest} {frames!r}") as folder:
        reader = partial(read, frames)
        instead = Fallback(partial(read_by_pyav, frames), patience) if frames.reader == "auto" else None
        counts = pack(folder, "uint8", clips, reader, lambda _, data: data, "read frames", frames.encoding, instead)
        stage.run.log_artifact(folder / "problems.csv")
    stage.run.log_metrics(counts)


def read(frames: Frames, clip: datasets.Clip) -> np.ndarray | Damaged[np.ndarray]:
    """Read the frames of a clip, uint8 (T, H, W, 3), or uint8 (N,) if encoded as JPEGs."""
    damage = media.Damage()
    decoded = media.read_frames(clip.path, frames.fps, frames.short_side, clip.start, clip.end, frames.reader, damage)
    data = encode(decoded, frames.quality) if frames.encoding == "jpeg" else decoded
    reason = damage.text("video")
    return Damaged(data, reason) if reason else data


def patience(clip: datasets.Clip) -> float:
    """Return the seconds after which a reader is taken to hang; it decodes faster than the clip plays."""
    return PATIENCE + (clip.end - clip.start if clip.end is not None else 0.0)


def read_by_pyav(frames: Frames, clip: datasets.Clip) -> Damaged[np.ndarray]:
    """Read the frames of a clip on which reader `auto`, which uses decord for some files, hung or crashed."""
    found = read(frames.model_copy(update={"reader": "pyav"}), clip)
    value, more = found if isinstance(found, Damaged) else (found, None)
    return Damaged(value, "; ".join(filter(None, ["decord hung or crashed, read by PyAV", more])))
