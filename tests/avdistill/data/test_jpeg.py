"""Clips kept as JPEGs."""

from __future__ import annotations

import numpy as np
import pytest

from avdistill.data.jpeg import JpegClip, encode


def smooth(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    y, x, t = np.mgrid[:height, :width, :frames].astype(float)
    channels = [127 + 100 * np.sin(x / 9 + t / 3), 127 + 100 * np.cos(y / 7 - t / 5), 60 + 4 * t]
    return np.stack(channels, axis=-1).transpose(2, 0, 1, 3).clip(0, 255).astype(np.uint8)


def test_frames_come_back_nearly_as_they_were() -> None:
    frames = smooth(7)
    data = encode(frames, 95)
    clip = JpegClip(data)
    assert data.dtype == np.uint8 and data.ndim == 1 and len(data) < frames.size / 3
    assert len(clip) == 7 and clip.shape == frames.shape
    assert np.abs(np.asarray(clip).astype(int) - frames).mean() < 2


def test_parts_are_those_of_the_whole() -> None:
    clip = JpegClip(encode(smooth(6), 90))
    whole = clip[:]
    assert np.array_equal(clip[2:5], whole[2:5])
    assert np.array_equal(clip[np.array([5, 0, 5])], whole[[5, 0, 5]])
    assert np.array_equal(clip[3], whole[3])


def test_higher_quality_is_nearer() -> None:
    frames = smooth(3)
    distance = [np.abs(JpegClip(encode(frames, q))[:].astype(int) - frames).mean() for q in (20, 60, 95)]
    assert distance[0] > distance[1] > distance[2]


@pytest.mark.parametrize("change", [lambda d: d[:20], lambda d: d[:-3], lambda d: np.roll(d, 1), lambda d: d[:0]])
def test_bytes_that_are_no_clip_are_refused(change) -> None:
    with pytest.raises(ValueError, match="not a clip of JPEGs"):
        JpegClip(change(encode(smooth(4), 90)).copy())
