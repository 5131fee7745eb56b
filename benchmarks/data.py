"""Benchmarks of frames: from packed stores to batches, and from videos to stores."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from avdistill.config.schema import Params, Recipe
from avdistill.data import media
from avdistill.data.loader import NORMALISATION, Batch, ClipSet, end_workers, to_input, training_loader
from avdistill.data.packed import StoreWriter
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores
from avdistill.pipeline.workers import each
from benchmarks import made_up
from benchmarks.harness import Measured, Setting, benchmark, speedup

FPS = 4
# As stage frames reads a video: (T, 128, 171, 3).
read_video = partial(media.read_frames, fps=FPS, short_side=128)


class JpegClips(Dataset[Tensor]):
    """Random windows of clips, read as the papers' programs do.

    Each clip is an HDF5 file of JPEGs, opened for each item. PIL decodes, crops and scales each frame separately, and
    each frame is normalised separately."""

    def __init__(self, files: list[Path], recipe: Recipe) -> None:
        self.files, self.recipe = files, recipe
        self.random = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        import h5py
        from PIL import Image

        with h5py.File(self.files[row], "r") as file:
            video = file["video"]
            start = int(self.random.integers(max(0, len(video) - self.recipe.frames) + 1))
            frames = [Image.open(io.BytesIO(video[start + t])).convert("RGB") for t in range(self.recipe.frames)]
        box, flip = self.sample_crop(*frames[0].size)
        frames = [frame.crop(box).resize((self.recipe.size,) * 2, Image.Resampling.BILINEAR) for frame in frames]
        if flip:
            frames = [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in frames]
        mean, std = (torch.tensor(v)[:, None, None] for v in NORMALISATION[self.recipe.normalisation])
        tensors = [torch.from_numpy(np.array(frame)).permute(2, 0, 1).float().div(255) for frame in frames]
        return torch.stack([(tensor - mean) / std for tensor in tensors], dim=1)

    def sample_crop(self, width: int, height: int) -> tuple[tuple[int, int, int, int], bool]:
        """Sample a random crop (left, top, right, bottom) and whether to mirror it."""
        low, high = (math.log(value) for value in self.recipe.ratio)
        for _ in range(10):
            area = width * height * self.random.uniform(*self.recipe.scale)
            aspect = math.exp(self.random.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = int(self.random.integers(width - w + 1)), int(self.random.integers(height - h + 1))
        return (left, top, left + w, top + h), self.recipe.flip and self.random.random() < 0.5


def smooth_clip(frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Generate moving coloured clouds, uint8 (T, H, W, 3), which compress about as well as real frames."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, max(2, frames // 8), 6, 8), generator=random)
    clouds = F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)[0]
    grain = torch.randint(-4, 5, clouds.shape, generator=random)
    return (clouds * 255 + grain).clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def write_both(folder: Path, params: Params, clips: int, shape: tuple[int, int, int]) -> list[Path]:
    """Write the same frames as HDF5 files of JPEGs and, decoded, to the packed store; return the files' paths."""
    h5py = _h5py()
    from PIL import Image

    files = []
    with StoreWriter(params.path("frames", "noise"), "uint8") as store:
        for number, name in enumerate(made_up.clip_index(clips + made_up.VAL)["id"]):
            encoded = []
            for frame in smooth_clip(*shape, seed=number % 16):
                buffer = io.BytesIO()
                Image.fromarray(frame).save(buffer, "JPEG", quality=90)
                encoded.append(buffer.getvalue())
            files.append(folder / f"{name}.hdf5")
            with h5py.File(files[-1], "w") as file:
                video = file.create_dataset("video", (len(encoded),), dtype=h5py.vlen_dtype(np.uint8))
                for position, jpeg in enumerate(encoded):
                    video[position] = np.frombuffer(jpeg, dtype=np.uint8)
            store.put(name, np.stack([np.array(Image.open(io.BytesIO(jpeg))) for jpeg in encoded]))
    return files[:clips]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("frames_in: h5py is not installed; install the dependency group `bench`") from None
    return h5py


@benchmark(
    "reading frames: augmented clips per second from the packed store",
    "one HDF5 file of JPEGs per clip, decoded by PIL",
    cpu=3,
    gpu=3,
)
def frames_in(setting: Setting) -> Measured:
    """Times an epoch of the training loader with `to_input` on the device. Clips of 20 frames of 128x171 become 16
    frames of 112x112 by random resized crop and flip. The baseline does the same with PIL on JPEGs, one HDF5 file per
    clip. Batches of 32; both run in one process (GPU: with one loader worker per core, started before)."""
    clips, shape, size = (8, (6, 32, 43), 24) if setting.quick else (256, (20, 128, 171), 112)
    frames = 4 if setting.quick else 16
    workers = cores() if setting.device != "cpu" else 0
    sizes = {"frames": frames, "size": size, "batch": min(32, clips), "loader_workers": workers}
    params = made_up.suite(setting.folder, clips, None, sizes)
    recipe = params.recipes["recipe"]
    files = write_both(setting.folder, params, clips, shape)

    ratio = shape[2] / shape[1]
    fixed = {"frames": shape[0], "scale": (1.0, 1.0), "ratio": (ratio, ratio), "flip": False}
    same = recipe.model_copy(update=fixed)
    index, store = params.index("noise"), params.path("frames", "noise")
    ours_of = {  # by recipe; workers stay, as in training, so that no time counts in which they start
        name: training_loader(ClipSet(index, store, ("train",)), one, seed=0)[0]
        for name, one in (("random", recipe), ("fixed", same))
    }
    theirs_of = DataLoader(
        JpegClips(files, recipe),
        recipe.batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )

    def packed(name: str) -> Iterator[tuple[Batch, Tensor]]:
        for batch in ours_of[name]:
            yield Batch(*batch), to_input(batch[0].to(setting.device), recipe.normalisation)

    def jpegs() -> Iterator[Tensor]:
        for batch in theirs_of:
            yield batch.to(setting.device)

    # With crops of the whole frame and windows of the whole clip, both must give the same tensors.
    batch, ours = next(packed("fixed"))
    end_workers(ours_of["fixed"])
    theirs = torch.stack([JpegClips(files, same)[int(row)] for row in batch.rows])
    apart = float((ours.cpu() - theirs).abs().max()) * 255 * max(NORMALISATION[recipe.normalisation][1])
    assert apart < 2.5, f"{apart} grey levels"  # both round, after interpolating at different precision

    measured = speedup(
        lambda: deque(packed("random"), maxlen=0), lambda: deque(jpegs(), maxlen=0), 2 if setting.quick else 5
    )
    end_workers(ours_of["random"])
    rates = {f"{name}_clips_per_s": clips / measured.detail[f"{name}_s"] for name in ("ours", "baseline")}
    return Measured(measured.value, measured.detail | rates | {"workers": workers, "apart_grey_levels": apart})


@benchmark("decoding videos once, on one core", "a plain decord loop", cpu=0.9, gpu=0.9)
def decoding(setting: Setting) -> Measured:
    """Reads videos (320x240, H.264, 24 frames per second, 7 s) with `media.read_frames` at 4 frames per second and a
    short side of 128. The baseline is decord's reader, which takes every sixth frame and scales while decoding. One
    thread each."""
    paths = write_videos(setting)
    for path in paths:
        assert np.array_equal(read_video(path), plain_decord(path)), path
    measured = speedup(
        lambda: [read_video(path) for path in paths],
        lambda: [plain_decord(path) for path in paths],
        2 if setting.quick else 9,
    )
    return Measured(measured.value, measured.detail | {"ours_videos_per_s": len(paths) / measured.detail["ours_s"]})


@benchmark("decoding videos once, on all cores", "linear speed-up over one core", cpu=0.8, gpu=0.8)
def decoding_over_cores(setting: Setting) -> Measured:
    """Reads videos with `avdistill.pipeline.workers.each`, as stage frames does, on all cores. The baseline is a loop
    on one core. The time includes the start of the workers. The value is the speed-up divided by the number of cores,
    so 1x is linear; the goal is our reading of "near-linear"."""
    paths = write_videos(setting) * (1 if setting.quick else 32)
    measured = speedup(
        lambda: deque(each(read_video, paths, "decode"), maxlen=0),
        lambda: [read_video(path) for path in paths],
        1 if setting.quick else 3,
    )
    return Measured(measured.value / cores(), measured.detail | {"cores": cores()})


def write_videos(setting: Setting) -> list[Path]:
    """Write videos of clouds, 24 frames per second, encoded with H.264, and return their paths."""
    count, seconds = (2, 1) if setting.quick else (16, 7)
    paths = [setting.folder / f"video{number:02d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        media.write_video(path, smooth_clip(24 * seconds, 240, 320, seed=number), 24, None)
    return paths


def plain_decord(path: Path) -> np.ndarray:
    """Read the same frames with decord, by their indices."""
    import decord

    video = decord.VideoReader(str(path), width=171, height=128, num_threads=1)
    return video.get_batch(range(0, len(video), 24 // FPS)).asnumpy()
