"""Store clips as JPEG frames: a tenth of the bytes, but frames are decoded on access.

A clip of T frames is one array of bytes: T, then T + 1 offsets (the start of each frame and the end of the last one),
all little-endian int64, then the JPEG frames, concatenated.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def encode(frames: np.ndarray, quality: int) -> np.ndarray:
    """Encode frames (T, H, W, 3) uint8 as bytes (N,) uint8, with libjpeg's `quality` of 1 to 95."""
    from PIL import Image

    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
        encoded.append(buffer.getvalue())
    ends = np.cumsum([0, *map(len, encoded)])
    head = np.array([len(encoded), *(ends + 8 * (len(encoded) + 2))], dtype="<i8")
    return np.frombuffer(head.tobytes() + b"".join(encoded), dtype=np.uint8)


class JpegClip:
    """A clip encoded by `encode`: `clip[a:b]` and `clip[indices]` decode these frames to (n, H, W, 3) uint8."""

    def __init__(self, data: np.ndarray) -> None:
        """Parse the offsets. Raises ValueError if they do not fit the data."""
        count = int(data[:8].view("<i8")[0]) if len(data) >= 24 else 0
        if count < 1 or len(data) < 8 * (count + 2):
            raise ValueError("not a clip of JPEGs")
        self._data, self._offsets = data, data[8 : 8 * (count + 2)].view("<i8")
        if (np.diff(self._offsets) <= 0).any() or self._offsets[0] != 8 * (count + 2) or self._offsets[-1] != len(data):
            raise ValueError("not a clip of JPEGs")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (T, H, W, 3)."""
        return len(self), *self._decode(0).shape

    def __getitem__(self, key: Any) -> np.ndarray:
        indices = np.arange(len(self))[key]
        if np.ndim(indices) == 0:
            return self._decode(int(indices))
        return np.stack([self._decode(index) for index in indices])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _decode(self, index: int) -> np.ndarray:
        from PIL import Image

        data = self._data[self._offsets[index] : self._offsets[index + 1]]
        return np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
