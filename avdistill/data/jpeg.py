"""Clips kept as JPEGs: a tenth of the bytes, at the price of decoding the frames that are asked for.

A clip of T frames is one array of bytes: T and the T + 1 places where its pictures begin and the last ends, as
little-endian int64, and the pictures one after the other.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def encode(frames: np.ndarray, quality: int) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 as bytes (N,) uint8; `quality` is libjpeg's, 1 to 95."""
    from PIL import Image

    pictures = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        pictures.append(buffer.getvalue())
    ends = np.cumsum([0, *map(len, pictures)])
    head = np.array([len(pictures), *(ends + 8 * (len(pictures) + 2))], dtype="<i8")
    return np.frombuffer(head.tobytes() + b"".join(pictures), dtype=np.uint8)


class JpegClip:
    """A clip that `encode` made: `clip[a:b]` and `clip[numbers]` decode these frames to (n, H, W, 3) uint8."""

    def __init__(self, data: np.ndarray) -> None:
        """Raises ValueError if the bytes are no such clip."""
        count = int(data[:8].view("<i8")[0]) if len(data) >= 24 else 0
        if count < 1 or len(data) < 8 * (count + 2):
            raise ValueError("not a clip of JPEGs")
        self._data, self._places = data, data[8 : 8 * (count + 2)].view("<i8")
        if (np.diff(self._places) <= 0).any() or self._places[0] != 8 * (count + 2) or self._places[-1] != len(data):
            raise ValueError("not a clip of JPEGs")

    def __len__(self) -> int:
        return len(self._places) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return len(self), *self._decode(0).shape

    def __getitem__(self, wanted: Any) -> np.ndarray:
        numbers = np.arange(len(self))[wanted]
        if np.ndim(numbers) == 0:
            return self._decode(int(numbers))
        return np.stack([self._decode(number) for number in numbers])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _decode(self, number: int) -> np.ndarray:
        from PIL import Image

        data = self._data[self._places[number] : self._places[number + 1]]
        return np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
