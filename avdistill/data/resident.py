"""Training clips that lie on the device: windows, crops and flips of a whole batch there.

The random numbers are those of the loader, and so are the batches, up to one grey level: both interpolate along rows
first and round to whole grey levels after each axis, but a processor multiplies by weights of 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from avdistill.config.schema import Recipe
from avdistill.data.loader import Batch, Box, ClipSet, random_box, to_device
from avdistill.pipeline.errors import UserError

SPARE = 0.5  # share of the free memory of a GPU that clips may take; the rest is for training


class ResidentClips:
    """The batches that `keys`, lists of (epoch, row), ask for: clips (B, T, S, S, 3) uint8 on the device, labels (B,)
    and rows (B,) on the host.

    Raises UserError if the clips are not frames of one size, or do not fit."""

    def __init__(
        self,
        clips: ClipSet,
        recipe: Recipe,
        seed: int,
        keys: Iterable[list[tuple[int, int]]],
        device: torch.device,
    ) -> None:
        self.clips, self.recipe, self.seed, self.keys, self.device = clips, recipe, seed, keys, device
        shapes = {name: clips.store[name].shape for name in clips.ids}
        odd = next((name for name in clips.ids if len(shapes[name]) != 4), None)
        if odd is not None:
            raise UserError(f"data_on_device: clip {odd!r} is sound; expected frames")
        _, *first = shapes[clips.ids[0]]
        odd = next((name for name in clips.ids if list(shapes[name][1:]) != first), None)
        if odd is not None:
            height, width, _ = shapes[odd][1:]
            raise UserError(
                f"data_on_device: frames of {height} x {width} in clip {odd!r}, of {first[0]} x {first[1]} in "
                f"{clips.ids[0]!r}; expected one size"
            )
        self.lengths = [shapes[name][0] for name in clips.ids]
        self.starts = np.cumsum([0, *self.lengths]).tolist()
        room = torch.cuda.mem_get_info(device)[0] * SPARE if device.type == "cuda" else float("inf")
        needed = self.starts[-1] * int(np.prod(first))
        if needed > room:
            raise UserError(f"data_on_device: the clips take {needed / 2**30:.1f} GiB, room is for {room / 2**30:.1f}")
        self.frames = torch.empty((self.starts[-1], *first), dtype=torch.uint8, device=device)
        for name, start, length in zip(clips.ids, self.starts, self.lengths, strict=False):
            self.frames[start : start + length] = torch.from_numpy(np.array(clips.store[name][:])).to(device)

    def __len__(self) -> int:
        return len(self.keys)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        for keys in self.keys:
            yield self.batch(keys)

    def batch(self, keys: list[tuple[int, int]]) -> Batch:
        """Return the batch of these (epoch, row)."""
        height, width = self.frames.shape[1:3]
        frames: list[np.ndarray] = []
        boxes: list[Box] = []
        for epoch, row in keys:
            random = np.random.default_rng((self.seed, epoch, row))
            length = self.lengths[row]
            start = int(random.integers(max(0, length - self.recipe.frames) + 1))
            # A clip that is too short is repeated from its beginning.
            frames.append(self.starts[row] + np.arange(start, start + self.recipe.frames) % length)
            boxes.append(random_box(height, width, self.recipe, random))
        places, parts = to_device((torch.from_numpy(np.stack(frames)), torch.tensor(boxes)), self.device)
        rows = torch.tensor([row for _, row in keys])
        return Batch(crop(self.frames[places], parts, self.recipe.size), self.clips.given[rows], rows)


def crop(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Scale a part of each window to a square: frames (B, T, H, W, 3) uint8, boxes (B, 5) as `Box` has them.

    Returns (B, T, size, size, 3) uint8: antialiased bilinear interpolation as products with matrices of weights."""
    top, left, height, width, flip = boxes.unbind(1)
    rows, columns = _weights(top, height, size, frames.shape[2]), _weights(left, width, size, frames.shape[3])
    columns = torch.where(flip[:, None, None] > 0, columns.flip(1), columns)
    lines = frames.permute(0, 1, 2, 4, 3).float() @ columns[:, None, None].mT  # (B, T, H, 3, size)
    square = rows[:, None] @ _rounded(lines).flatten(3)  # (B, T, size, 3 * size)
    return _rounded(square).unflatten(3, (3, size)).permute(0, 1, 2, 4, 3).to(torch.uint8).contiguous()


def _rounded(levels: Tensor) -> Tensor:
    """Round to whole grey levels in place, halves upwards, as a processor's integers do."""
    return levels.add_(0.5).floor_()


def _weights(start: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """Return the weights (B, size, extent) with which `extent` pixels make `size`, of those from `start` (B,) that
    are `length` (B,): a triangle as wide as two pixels of the coarser grid, cut off at the edges."""
    scale = (length / size)[:, None, None]
    pixel = torch.arange(extent, device=start.device) + 0.5 - start[:, None, None]
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    weights = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixel > 0) & (pixel < length[:, None, None]))
    return weights / weights.sum(2, keepdim=True)
