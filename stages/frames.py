"""Stage frames: decode the frames of every usable clip into a store."""

from __future__ import annotations

from functools import partial

import numpy as np

from avdistill.config.schema import Frames
from avdistill.data import datasets, media
from avdistill.data.jpeg import encode
from avdistill.data.packing import Damaged, pack
from avdistill.pipeline.stage import Stage


def main(stage: Stage) -> None:
    """Write a store of frames, uint8 (T, H, W, 3) by clip id, raw or as JPEGs, and problems.csv."""
    from avdistill.data.files import digest
    from avdistill.data.index import read_index

    frames = stage.params.frames[str(stage.item)]
    origin = stage.params.datasets[frames.dataset].origin
    source = stage.input("split", frames.dataset) / "index.csv"
    index = read_index(source)
    videos = datasets.of(origin).videos(origin, stage.input("download", frames.dataset))
    clips = datasets.locate(index[index["status"] == "ok"], videos)
    stage.run.log_params(frames.model_dump())
    stage.run.log_dataset(name=frames.dataset, path=source, digest=digest(source), context="frames")
    with stage.output(key=f"{digest(source)} {frames!r}") as folder:
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
