"""Stage teacher_features: what a frozen teacher makes of each clip, computed once, in eval mode.

Makes features.npz under teacher_features/<entry>/, a row for every clip of the index:
  ids (N,)  features (N, Dt) float32  mask (N,) False where the clip has no usable input, its row then zero
  logits (N, K) float32 of the teacher's own classes  block_0 … (N, D_l) float32 pooled output of each block
  probabilities (N, K) float16 of the teacher's own classes: independent ones for PANNs, else of a softmax
Published features have ids, features and mask alone (avdistill/data/sources/published_features.py).

Clips are worked on in shards, side by side on several cores or GPUs; those that are done outlive an interruption.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avdistill.config.schema import Teacher
from avdistill.config.types import Precision
from avdistill.data.files import digest, intact, read_arrays, replacing, write_arrays
from avdistill.data.index import read_index
from avdistill.data.loader import centre_crop
from avdistill.data.packed import Store
from avdistill.data.sources import published_features
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.training.precision import autocast
from avdistill.training.tensors import load_tensors
from models.teachers import Teacher as Network
from stages.teachers import IMAGE_SIZE, head, image_input, network_of

SHARD = 128  # clips
# What one batch may hold: it bounds the memory, about 1 GB for CNN14.
BATCH_IMAGES, BATCH_SPECTRA = 32, 16_000
FRAMES_PER_CLIP = 8  # an image teacher sees this many frames, evenly spaced, and its outputs are averaged


class Work(NamedTuple):
    """What every shard needs to know. `key` is a digest of all that its content depends on."""

    key: str
    weights: Path
    teacher: Teacher
    precision: Precision
    store: Path
    device: str
    folder: Path


@lru_cache(maxsize=1)
def opened(work: Work) -> tuple[Network, Store]:
    """The network and the store of its inputs, once a process."""
    return load_teacher(work.weights, work.teacher).to(work.device), Store(work.store)


def load_teacher(folder: Path, teacher: Teacher) -> Network:
    """The frozen network that stage teachers left in `folder`, in eval mode."""
    state = load_tensors(folder / "weights.pt")
    model = network_of(teacher, state)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def batches(store: Store, ids: Sequence[str], kind: str) -> Iterator[tuple[list[str], Tensor]]:
    """Clips of equal length together: whole recordings (B, T, 64), or frames (B, F, 3, S, S), F <= FRAMES_PER_CLIP.

    Padding would change what a teacher hears."""
    hears = kind == "cnn14"
    by_length: dict[int, list[str]] = {}
    for name in ids:
        length = store.shape(name)[0]
        by_length.setdefault(length if hears else min(length, FRAMES_PER_CLIP), []).append(name)
    for length, names in by_length.items():
        size = max(1, (BATCH_SPECTRA if hears else BATCH_IMAGES) // length)
        for start in range(0, len(names), size):
            part = names[start : start + size]
            clips = [store[name] for name in part]
            yield part, torch.stack([spectrogram(clip) if hears else frames(clip, IMAGE_SIZE[kind]) for clip in clips])


def spectrogram(clip: np.ndarray) -> Tensor:
    """A recording as the audio teachers take it: (T, 64)."""
    return torch.from_numpy(np.array(clip))


def frames(clip: np.ndarray, size: int) -> Tensor:
    """Frames (T, H, W, 3) uint8 as the image teachers take them: (F, 3, S, S), evenly spaced and centre-cropped."""
    chosen = np.unique(np.linspace(0, len(clip) - 1, FRAMES_PER_CLIP).round().astype(int))
    return image_input(torch.from_numpy(np.array(centre_crop(clip[chosen], size))))


@torch.inference_mode()
def extract(work: Work, number: int, ids: np.ndarray) -> None:
    """Write the shard of the clips `ids`: every array of features.npz, in their order."""
    torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa, on GPUs only, would be a different teacher
    model, store = opened(work)
    # PANNs was trained to tell independently of each class whether it sounds.
    independent = work.teacher.kind == "cnn14" and work.teacher.weights != "avsynth"
    dims = {"features": model.feature_dim, "logits": head(model).out_features}
    dims |= {f"block_{number}": dim for number, dim in enumerate(model.block_dims)}
    arrays: dict[str, np.ndarray] = {name: np.zeros((len(ids), dim), np.float32) for name, dim in dims.items()}
    arrays["probabilities"] = np.zeros((len(ids), dims["logits"]), np.float16)
    arrays["mask"] = np.zeros(len(ids), dtype=bool)
    row = {name: place for place, name in enumerate(ids.tolist())}
    for names, inputs in batches(store, [name for name in row if name in store], work.teacher.kind):
        inputs = inputs.to(work.device)
        with autocast(torch.device(work.device), work.precision):
            output = model(inputs if inputs.ndim == 3 else inputs.flatten(0, 1))
        parts = {"features": output.embedding, "logits": output.logits.float()}
        parts["probabilities"] = parts["logits"].sigmoid() if independent else parts["logits"].softmax(1)
        parts |= {f"block_{number}": block for number, block in enumerate(output.blocks)}
        rows = [row[name] for name in names]
        for part, values in parts.items():
            arrays[part][rows] = values.float().unflatten(0, (len(names), -1)).mean(1).cpu().numpy()
        arrays["mask"][rows] = True
    write_arrays(shard(work.folder, number), ids=ids, **arrays)


def shard(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.npz"


def join(shards: Sequence[Path], path: Path) -> None:
    """One .npz file of the arrays of all shards, one below the other. Memory holds no more than one of them."""
    top = read_arrays(shards[0])
    rows = sum(len(read_array(part, "mask")) for part in shards)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as whole:
        for name, array in top.items():
            with whole.open(f"{name}.npy", "w", force_zip64=True) as file:
                shape = (rows, *array.shape[1:])
                np.lib.format.write_array_header_1_0(
                    file, {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                )
                for part in shards:
                    file.write(read_array(part, name).tobytes())


def read_array(path: Path, name: str) -> np.ndarray:
    """One array of an .npz file; the others are not read."""
    return read_arrays(path, (name,))[name]


def main(stage: Stage) -> None:
    """Compute the features of all clips of a dataset, or map published ones to them."""
    entry = stage.params.features[stage.item or ""]
    if entry.published is not None:
        published_features.main(stage)
        return
    teacher = stage.params.teachers[entry.teacher]
    device = resolve_device(stage.params.device)
    split, weights = stage.input("split", entry.dataset), stage.input("teachers", entry.teacher)
    store = stage.input(*entry.input.split("/"))
    stage.run.log_params({"features": entry.model_dump(), "teacher": teacher.model_dump(), "device": device})
    ids = read_index(split / "index.csv")["id"].to_numpy(dtype=str)
    inputs = digest(split / "index.csv", weights, store)
    key = f"{inputs} {teacher.model_dump_json()} {entry.precision} {device}"
    with stage.output(key=key) as folder:
        work = Work(key, weights, teacher, entry.precision, store, device, folder / "shards")
        parts = np.array_split(ids, range(SHARD, len(ids), SHARD))
        todo = [number for number in range(len(parts)) if not intact(shard(work.folder, number))]
        run_parallel(extract, [(work, number, parts[number]) for number in todo], device, "features")
        join([shard(work.folder, number) for number in range(len(parts))], folder / "features.npz")
        shutil.rmtree(work.folder)
        counts = {"clips": len(ids), "with_input": int(read_array(folder / "features.npz", "mask").sum())}
    stage.run.log_metrics(counts)
    stage.metrics(dict(counts))
