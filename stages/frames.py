"""Stage frames: decode the frames of every usable clip into a store."""

from __future__ import annotations

from functools import partial

import numpy as np

from avdistill.config.schema import Frames
from avdistill.data import datasets, media
from avdistill.data.jpeg import encode
from avdistill.data.packing import Damaged, pack, usable_clips
from avdistill.pipeline.stage import Stage


def main(stage: Stage) -> None:
    """Write a store of frames, uint8 (T, H, W, 3) by clip id, raw or as JPEGs, and problems.csv."""
    frames = stage.params.frames[str(stage.item)]
    _, clips, digest = usable_clips(stage, frames.dataset, "status", "ok")
    stage.run.log_params(frames.model_dump())
    with stage.output(key=f"{digest} {frames!r}") as folder:
        reader = partial(read, frames)
        counts = pack(folder, "uint8", clips, reader, lambda _, data: data, "read frames", frames.encoding)
        stage.run.log_artifact(folder / "problems.csv")
    stage.run.log_metrics(counts)


def read(frames: Frames, clip: datasets.Clip) -> np.ndarray | Damaged[np.ndarray]:
    """Read the frames of a clip, uint8 (T, H, W, 3), or uint8 (N,) if encoded as JPEGs."""
    damage = media.Damage()
    decoded = media.read_frames(clip.path, frames.fps, frames.short_side, clip.start, clip.end, frames.reader, damage)
    data = encode(decoded, frames.quality) if frames.encoding == "jpeg" else decoded
    return Damaged(data, damage.text("video")) if damage.packets else data
