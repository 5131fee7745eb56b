"""Damage that a decoder hides: it shows a frame all the same, with parts of another one in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from avdistill.config.schema import Frames
from avdistill.data import media
from avdistill.data.datasets import Clip
from avdistill.data.media import probe, read_frames
from avdistill.data.packing import Damaged
from stages import frames as stages
from tests.helpers.little import flip_bytes

CODECS = {"mp4": "libx264", "ts": "libx264", "mkv": "libx264", "avi": "mpeg4", "mpg": "mpeg2video", "flv": "flv"}


@pytest.fixture
def clip(tmp_path: Path, ending: str) -> Path:
    """60 frames, 25 a second, of a scene that moves, so that packets are more than headers."""
    path = tmp_path / f"clip.{ending}"
    scene = np.kron(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(CODECS[ending], rate=25, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 96, 128, "yuv420p", 800_000
        for number in range(60):
            picture = np.ascontiguousarray(scene[number : number + 96, number : number + 128])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("ending", CODECS)
def test_frames_with_hidden_errors_are_counted_and_kept(clip: Path) -> None:
    whole = read_frames(clip, 25, 96, reader="pyav")
    assert probe(clip).remark is None
    flip_bytes(clip, (10, 30))
    damage = media.Damage()
    frames = read_frames(clip, 25, 96, reader="pyav", damage=damage)
    assert frames.shape == whole.shape and not np.array_equal(frames, whole)
    assert (damage.packets, damage.frames) == (0, 2)
    assert probe(clip).remark == "damaged: 2 video frames have errors"
    stored = stages.read(Frames(dataset="d", reader="pyav"), Clip("clip", clip, 0.0, None))
    assert isinstance(stored, Damaged) and stored.reason == "damaged: 2 video frames have errors"
    assert probe(clip, 0.0, 0.3).remark is None, "behind the part that is used"


def test_both_kinds_of_damage_are_told() -> None:
    assert media.Damage(1, 3).text("video") == "damaged: 1 video packets cannot be decoded, 3 video frames have errors"
    assert media.Damage().text("video") == ""
