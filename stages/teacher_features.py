"""Stage teacher_features: outputs of a frozen teacher for each clip, computed once in eval mode.

Writes teacher_features/<entry>/features.npz, one row per clip of the index:
  ids (N,)  features (N, Dt) float32  mask (N,) bool: False for a clip without usable input, whose row is zero
  logits (N, K) float32 of the teacher's own classes  block_0 … (N, D_l) float32 pooled output of each block
  probabilities (N, K) float16 of the teacher's own classes: sigmoid for PANNs, else softmax
Published features have only ids, features and mask (avdistill/data/sources/published_features.py); those of a teacher
of kind `truth` also have the values that they stand for (avdistill/data/sources/truth.py). A teacher with several draws
has a file for each (avdistill/data/draws.py).

Clips are processed in shards, in parallel on several cores or GPUs; an interrupted execution resumes after the
completed shards.
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
from avdistill.data.draws import of_draw
from avdistill.data.files import digest, intact, read_arrays, replacing, write_arrays
from avdistill.data.index import read_index
from avdistill.data.loader import centre_crop
from avdistill.data.packed import Store
from avdistill.data.sources import published_features, truth
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.training.precision import autocast, make_deterministic
from avdistill.training.tensors import load_tensors
from models.teachers import Teacher as Network
from stages.teachers import IMAGE_SIZE, head, image_input, network_of

SHARD = 128  # clips
# Images, or spectrogram frames, per batch: limits memory to about 1 GB for CNN14.
BATCH_IMAGES, BATCH_SPECTRA = 32, 16_000
FRAMES_PER_CLIP = 8  # evenly spaced frames per clip for image teachers, whose outputs are averaged


class Work(NamedTuple):
    """Settings common to all shards. `key` identifies everything that the features depend on."""

    key: str
    weights: Path
    teacher: Teacher
    precision: Precision
    store: Path
    device: str
    folder: Path


@lru_cache(maxsize=1)
def open_work(work: Work) -> tuple[Network, Store]:
    """Load the network and open the store of its inputs, once per process."""
    return load_teacher(work.weights, work.teacher).to(work.device), Store(work.store)


def load_teacher(folder: Path, teacher: Teacher) -> Network:
    """Load the frozen network written by stage teachers to `folder`, in eval mode."""
    state = load_tensors(folder / "weights.pt")
    model = network_of(teacher.kind, state)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def batches(store: Store, ids: Sequence[str], kind: str) -> Iterator[tuple[list[str], Tensor]]:
    """Yield clip ids with their inputs: recordings (B, T, 64), or frames (B, F, 3, S, S), F <= FRAMES_PER_CLIP.

    Clips of a batch have equal length, because padding would change the teacher's output."""
    audio = kind == "cnn14"
    by_length: dict[int, list[str]] = {}
    for name in ids:
        length = store.shape(name)[0]
        by_length.setdefault(length if audio else min(length, FRAMES_PER_CLIP), []).append(name)
    for length, names in by_length.items():
        size = max(1, (BATCH_SPECTRA if audio else BATCH_IMAGES) // length)
        for start in range(0, len(names), size):
            chunk = names[start : start + size]
            clips = [store[name] for name in chunk]
            yield chunk, torch.stack([spectrogram(clip) if audio else frames(clip, IMAGE_SIZE[kind]) for clip in clips])


def spectrogram(clip: np.ndarray) -> Tensor:
    """Convert a recording to the input of audio teachers: (T, 64)."""
    return torch.from_numpy(np.array(clip))


def frames(clip: np.ndarray, size: int) -> Tensor:
    """Convert frames (T, H, W, 3) uint8 to the input of image teachers: (F, 3, S, S), evenly spaced, centre-cropped."""
    chosen = np.unique(np.linspace(0, len(clip) - 1, FRAMES_PER_CLIP).round().astype(int))
    return image_input(torch.from_numpy(np.array(centre_crop(clip[chosen], size))))


@torch.inference_mode()
def extract(work: Work, number: int, ids: np.ndarray) -> None:
    """Write shard `number` with all arrays of features.npz for the clips `ids`, in this order."""
    make_deterministic()
    model, store = open_work(work)
    # PANNs is trained for multi-label classification.
    multi_label = work.teacher.kind == "cnn14" and work.teacher.weights != "avsynth"
    dims = {"features": model.feature_dim, "logits": head(model).out_features}
    dims |= {f"block_{number}": dim for number, dim in enumerate(model.block_dims)}
    arrays: dict[str, np.ndarray] = {name: np.zeros((len(ids), dim), np.float32) for name, dim in dims.items()}
    arrays["probabilities"] = np.zeros((len(ids), dims["logits"]), np.float16)
    arrays["mask"] = np.zeros(len(ids), dtype=bool)
    row = {name: position for position, name in enumerate(ids.tolist())}
    for names, inputs in batches(store, [name for name in row if name in store], work.teacher.kind):
        inputs = inputs.to(work.device)
        with autocast(torch.device(work.device), work.precision):
            output = model(inputs if inputs.ndim == 3 else inputs.flatten(0, 1))
        outputs = {"features": output.embedding, "logits": output.logits.float()}
        outputs["probabilities"] = outputs["logits"].sigmoid() if multi_label else outputs["logits"].softmax(1)
        outputs |= {f"block_{number}": block for number, block in enumerate(output.blocks)}
        rows = [row[name] for name in names]
        for key, values in outputs.items():
            arrays[key][rows] = values.float().unflatten(0, (len(names), -1)).mean(1).cpu().numpy()
        arrays["mask"][rows] = True
    write_arrays(shard(work.folder, number), ids=ids, **arrays)


def shard(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{number:05d}.npz"


def join(shards: Sequence[Path], path: Path) -> None:
    """Concatenate the arrays of all shards into one .npz file, holding one array of one shard in memory at a time."""
    first = read_arrays(shards[0])
    rows = sum(len(read_array(file, "mask")) for file in shards)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as whole:
        for name, array in first.items():
            with whole.open(f"{name}.npy", "w", force_zip64=True) as file:
                shape = (rows, *array.shape[1:])
                np.lib.format.write_array_header_1_0(
                    file, {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                )
                for source in shards:
                    file.write(read_array(source, name).tobytes())


def read_array(path: Path, name: str) -> np.ndarray:
    """Read one array of an .npz file, without reading the others."""
    return read_arrays(path, (name,))[name]


def main(stage: Stage) -> None:
    """Compute the features of all clips of a dataset, map published features to the clips, or write the truth."""
    entry = stage.params.features[stage.item or ""]
    if entry.published is not None:
        published_features.main(stage)
        return
    teacher = stage.params.teachers[entry.teacher]
    if teacher.kind == "truth":
        truth.main(stage)
        return
    device = resolve_device(stage.params.device)
    split, weights = stage.input("split", entry.dataset), stage.input("teachers", entry.teacher)
    store = stage.input(*entry.input.split("/"))
    stage.run.log_params({"features": entry.model_dump(), "teacher": teacher.model_dump(), "device": device})
    ids = read_index(split / "index.csv")["id"].to_numpy(dtype=str)
    inputs = digest(split / "index.csv", weights, store)
    key = f"{inputs} {teacher.model_dump_json()} {entry.precision} {device}"
    with stage.output(key=key) as folder:
        works = [
            Work(key, weights / part, teacher, entry.precision, store, device, folder / part / "shards")
            for part in map(of_draw, range(teacher.draws))
        ]
        parts = np.array_split(ids, range(SHARD, len(ids), SHARD))
        todo = [(work, *each) for work in works for each in enumerate(parts) if not intact(shard(work.folder, each[0]))]
        run_parallel(extract, todo, device, "features")
        for work in works:
            join([shard(work.folder, number) for number in range(len(parts))], work.folder.with_name("features.npz"))
        for work in works:
            shutil.rmtree(work.folder)
        counts = {"clips": len(ids), "with_input": int(read_array(folder / "features.npz", "mask").sum())}
    stage.run.log_metrics(counts)
