"""From packed stores to batches: windows, crops, and an order that any number of workers keeps.

Every random choice is a pure function of (seed, epoch, clip), and the order of clips one of (seed, epoch). So a
resumed run sees what an uninterrupted one would have seen, and the number of loader workers changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, Sampler

from avdistill.config.schema import Recipe
from avdistill.data.files import read_arrays
from avdistill.data.index import given_labels, read_index
from avdistill.data.jpeg import JpegClip
from avdistill.data.packed import Store
from avdistill.pipeline.errors import UserError
from models.outputs import TeacherBatch

# Means and standard deviations of RGB in 0..1: ImageNet as torchvision documents them, Kinetics as Chen's program.
NORMALISATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}
T = TypeVar("T")
Sent = TypeVar("Sent")

# Log-mel in decibels is brought to about zero mean and unit spread.
LOG_MEL_MEAN, LOG_MEL_STD = -30.0, 20.0


class Batch(NamedTuple):
    """Clips (B, T, H, W, 3) uint8 or (B, T, 64) float32, their labels (B,), and their rows (B,) in the training set."""

    clips: Tensor
    labels: Tensor
    rows: Tensor


class ClipSet:
    """Clips of some splits that can be fed to a student: whole, and present in the store of its input."""

    def __init__(
        self,
        index_file: Path,
        store: Path,
        splits: tuple[str, ...],
        groups: int | None = None,
        sample: int | None = None,
    ) -> None:
        """`groups` keeps that many groups of each class: the first by name, or a random sample with seed `sample`."""
        index = read_index(index_file)
        self.store = Store(store)
        self.classes = int(index["label"].max()) + 1
        usable = index["split"].isin(splits) & (index["status"] == "ok") & index["id"].isin(set(self.store))
        rows = index[usable]
        if groups is not None:
            names = sorted(set(rows["group"]))
            if sample is not None:
                names = np.random.default_rng((sample, 0, 0, 3)).permutation(names).tolist()
            rank = rows["group"].map({name: place for place, name in enumerate(names)})
            kept = rank.groupby(rows["label"]).transform(lambda own: own.isin(sorted(set(own))[:groups]))
            rows = rows[kept.astype(bool)]
        self.index_file = index_file
        self.rows: pd.DataFrame = rows.reset_index(drop=True)
        self.rows_in(*splits)
        self.ids: list[str] = self.rows["id"].tolist()
        self.labels = torch.tensor(self.rows["label"].to_numpy(), dtype=torch.int64)
        self.given = torch.tensor(given_labels(self.rows).to_numpy(), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def rows_in(self, *splits: str) -> Tensor:
        """Return the rows of the clips of some splits (n,). Raises UserError if there are none."""
        rows = torch.tensor(np.flatnonzero(self.rows["split"].isin(splits)))
        if not len(rows):
            raise UserError(f"{self.index_file}: no usable clip in split {' + '.join(splits)}")
        return rows


class TrainingWindows(Dataset[tuple[Tensor, int, int]]):
    """One random window a clip, randomly cropped. Items are asked for as (epoch, row)."""

    def __init__(self, clips: ClipSet, recipe: Recipe, seed: int) -> None:
        self.clips, self.recipe, self.seed = clips, recipe, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, row = key
        random = np.random.default_rng((self.seed, epoch, row))
        data = self.clips.store[self.clips.ids[row]]
        start = int(random.integers(max(0, len(data) - self.recipe.frames) + 1))
        window = take_window(data, start, self.recipe.frames)
        if window.ndim == 4:
            window = random_crop(window, self.recipe, random)
        return torch.from_numpy(np.array(window)), int(self.clips.given[row]), row


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, row) in an order that depends on (seed, epoch) alone; the first `done` are left out.

    The last batch is dropped where it is not full, since batch statistics and batch-relational losses of a few
    clips are noise; a training set smaller than one batch is one batch. Of several processes that train one student,
    each gets its `shard` (rank, world size) of every batch."""

    def __init__(self, size: int, batch: int, seed: int, shard: tuple[int, int] = (0, 1)) -> None:
        self.batch = min(batch, size) // shard[1] * shard[1]
        self.size, self.seed, self.shard = size, seed, shard
        self.epoch = self.done = 0

    def __len__(self) -> int:
        """Number of batches of a whole epoch."""
        return self.size // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()
        rank, world_size = self.shard
        width = self.batch // world_size
        for start in range(self.done * self.batch + rank * width, len(self) * self.batch, self.batch):
            yield [(self.epoch, row) for row in order[start : start + width]]


def training_loader(
    clips: ClipSet, recipe: Recipe, seed: int, shard: tuple[int, int] = (0, 1)
) -> tuple[DataLoader[tuple[Tensor, int, int]], EpochSampler]:
    """Return the loader and its sampler, whose `epoch` and `done` are to be set before each pass.

    Workers stay from one epoch to the next, since starting them takes as long as a short epoch; `end_workers` ends
    them."""
    sampler = EpochSampler(len(clips), recipe.batch, seed, shard)
    windows = TrainingWindows(clips, recipe, seed)
    return _loader(windows, recipe, batch_sampler=sampler, collate_fn=_collate), sampler


def _loader(windows: Dataset[Any], recipe: Recipe, **settings: Any) -> DataLoader[Any]:
    """A loader with the recipe's workers, which stay, and pinned memory."""
    return DataLoader(
        windows,
        num_workers=recipe.loader_workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=recipe.loader_workers > 0,
        # Else a pass draws from the global random state, once for each start of workers, and what a method draws in an
        # epoch depends on whether the workers were started in it.
        generator=torch.Generator(),
        **settings,
    )


def end_workers(loader: Any) -> None:
    """End the workers of a loader; without this they end when it is collected, which may take 5 s for each."""
    workers = getattr(loader, "_iterator", None)  # None also without workers
    if workers is not None:
        workers._shutdown_workers()
        loader._iterator = None


def to_device(parts: Iterable[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Send tensors to a device; to a GPU from pinned memory, so that the host does not wait for the copy."""
    pins = device.type == "cuda"
    pinned = (part.pin_memory() if pins and not part.is_cuda else part for part in parts)
    return tuple(part.to(device, non_blocking=True) for part in pinned)


def sent_ahead(batches: Iterable[T], send: Callable[[T], Sent], device: torch.device) -> Iterator[Sent]:
    """Send batches to a device with `send`, which returns a tensor or nested tuples and dicts of tensors.

    On a GPU, the copies run on a stream of their own, beside what is computed on the batch before."""
    if device.type != "cuda":
        yield from map(send, batches)
        return
    copies = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(copies):
            sent = send(batch)
        current = torch.cuda.current_stream(device)
        current.wait_stream(copies)
        for tensor in tree_leaves(sent):
            tensor.record_stream(current)  # its memory is not reused before the current stream is done with it
        yield sent


class ClipWindows(Dataset[tuple[Tensor, int]]):
    """All windows (W, T, …) of a clip, `stride` frames apart, centre-cropped; and the row of the clip."""

    def __init__(self, clips: ClipSet, recipe: Recipe) -> None:
        self.clips, self.recipe = clips, recipe

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        data, recipe = self.clips.store[self.clips.ids[row]], self.recipe
        windows = []
        for start in range(0, max(1, len(data) - recipe.frames + 1), recipe.stride):
            window = take_window(data, start, recipe.frames)
            windows.append(centre_crop(window, recipe.size) if window.ndim == 4 else window)
        return torch.from_numpy(np.stack(windows)), row


class EvaluationWindows:
    """All windows of all clips in order: batches of windows (B, T, …) and their rows (B,).

    They can be iterated over again and again, by the same workers, which `end_workers` of `loader` ends."""

    def __init__(self, clips: ClipSet, recipe: Recipe, batch: int = 64) -> None:
        self.batch = batch
        self.loader = _loader(ClipWindows(clips, recipe), recipe, batch_size=None)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        windows: list[Tensor] = []
        rows: list[int] = []
        for found, row in self.loader:
            windows += found
            rows += [row] * len(found)
            while len(windows) >= self.batch:
                yield self._joined(windows[: self.batch]), torch.tensor(rows[: self.batch])
                del windows[: self.batch], rows[: self.batch]
        if windows:
            yield self._joined(windows), torch.tensor(rows)

    def _joined(self, windows: list[Tensor]) -> Tensor:
        """Stack windows, in pinned memory where there is a GPU."""
        shape = (len(windows), *windows[0].shape)
        joined = torch.empty(shape, dtype=windows[0].dtype, pin_memory=self.loader.pin_memory)
        return torch.stack(windows, out=joined)


def take_window(data: np.ndarray | JpegClip, start: int, length: int) -> np.ndarray:
    """`length` consecutive frames from `start`; a clip that is too short is repeated from its beginning."""
    if start + length <= len(data):
        return data[start : start + length]
    return data[np.arange(start, start + length) % len(data)]


class Box(NamedTuple):
    """Part of a frame, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def random_box(height: int, width: int, recipe: Recipe, random: np.random.Generator) -> Box:
    """Draw the part of frames (height, width) that a random resized crop shows.

    Area drawn uniformly from `scale`, log of the aspect ratio uniformly from `ratio`, as the papers' programs do."""
    low, high = (math.log(value) for value in recipe.ratio)
    for _ in range(10):
        area = height * width * random.uniform(*recipe.scale)
        aspect = math.exp(random.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        h = w = min(height, width)
    top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
    return Box(top, left, h, w, recipe.flip and random.random() < 0.5)


def random_crop(window: np.ndarray, recipe: Recipe, random: np.random.Generator) -> np.ndarray:
    """Random resized crop and flip, the same for all frames of a window (T, H, W, 3) -> (T, size, size, 3) uint8."""
    height, width = window.shape[1:3]
    box = random_box(height, width, recipe, random)
    part = window[:, box.top : box.top + box.height, box.left : box.left + box.width]
    crop = resize(part, recipe.size)
    return crop[:, :, ::-1] if box.flip else crop


def centre_crop(window: np.ndarray, size: int) -> np.ndarray:
    """The largest centred square, scaled to `size`: (T, H, W, 3) -> (T, size, size, 3) uint8."""
    height, width = window.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(window[:, top : top + side, left : left + side], size)


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Scale a copy of frames (T, H, W, 3) uint8 to a square by antialiased bilinear interpolation."""
    frames = np.array(frames)
    if frames.shape[1:3] == (size, size):
        return frames
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    scaled = F.interpolate(tensor, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return scaled.permute(0, 2, 3, 1).numpy()


def to_input(clips: Tensor, normalisation: str) -> Tensor:
    """A batch as the student takes it: (B, 3, T, H, W) normalised frames, or (B, 1, T, 64) normalised log-mel."""
    if clips.ndim == 3:
        return ((clips - LOG_MEL_MEAN) / LOG_MEL_STD).unsqueeze(1)
    width = clips.shape[3]
    # What an exported program traces must not come from outside of it.
    constants = _mean_and_std.__wrapped__ if torch.compiler.is_compiling() else _mean_and_std
    mean, std = constants(normalisation, width, clips.device)
    return clips.flatten(3).float().sub_(mean).div_(std).unflatten(3, (width, 3)).permute(0, 4, 1, 2, 3)


@cache
def _mean_and_std(normalisation: str, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a row of pixels, (3 * width,) each: along an axis of three channels alone, a CPU
    takes twenty times as long. Kept on the device, where sending them would make every step wait."""
    with torch.inference_mode(False):
        mean, std = ((torch.tensor(v, device=device) * 255).repeat(width) for v in NORMALISATION[normalisation])
    return mean, std


def teacher_table(features: Path, head: Path, clips: ClipSet, with_blocks: bool = False) -> TeacherBatch:
    """What a teacher knows of all clips, in their order. Raises UserError if it has no row for one of them,
    or one that is not finite."""
    wanted = ("ids", "features", "mask", *["block_*"] * with_blocks)
    stored = read_arrays(features / "features.npz", wanted)
    judged = read_arrays(head / "logits.npz", ("ids", "logits"))
    row_of = {name: row for row, name in enumerate(stored["ids"].tolist())}
    missing = [name for name in clips.ids if name not in row_of]
    if missing:
        raise UserError(f"{features}: no row for clip {missing[0]!r} and {len(missing) - 1} more")
    if not np.array_equal(judged["ids"], stored["ids"]):
        raise UserError(f"{head}: its logits are not of the clips of {features}; run stage teacher_head again")
    rows = [row_of[name] for name in clips.ids]
    for where, name, values in (
        (features / "features.npz", "features", stored["features"]),
        (head / "logits.npz", "logits", judged["logits"]),
    ):
        bad = np.flatnonzero(~np.isfinite(values[rows]).all(1) & stored["mask"][rows])
        if len(bad):
            raise UserError(f"{where}: {name} of clip {clips.ids[bad[0]]!r} are not finite ({len(bad)} clips in all)")
    names = sorted(name for name in stored if name.startswith("block_"))
    return TeacherBatch(
        torch.from_numpy(stored["features"][rows]),
        torch.from_numpy(judged["logits"][rows]),
        torch.from_numpy(stored["mask"][rows]),
        tuple(torch.from_numpy(stored[name][rows]) for name in names),
    )


def _collate(items: list[tuple[Tensor, int, int]]) -> Batch:
    clips, labels, rows = zip(*items, strict=True)
    return Batch(torch.stack(clips), torch.tensor(labels), torch.tensor(rows))
