"""Features of CNN14 from log-mel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Measured, Setting, benchmark, speedup
from models.teachers.cnn14 import Cnn14
from stages.params import Teacher
from stages.stores import Store, StoreWriter, read_arrays
from stages.teacher_features import SHARD, Work, extract, load_teacher, shard

AGREEMENT = 1e-3  # largest difference of a feature that is let pass, as a share of the largest feature


@torch.inference_mode()
def one_by_one(model: Cnn14, store: Store, device: str) -> np.ndarray:
    """The same network in float32, one recording at a time: (N, 2048)."""
    found = [model(torch.from_numpy(np.array(store[name]))[None].to(device)).embedding.cpu() for name in store]
    return torch.cat(found).numpy()


def recordings(folder: Path, count: int, frames: int) -> Store:
    """Noise in the range of log-mel, all of one length."""
    random = np.random.default_rng(0)
    with StoreWriter(folder, "float32") as store:
        for number in range(count):
            store.put(f"clip{number:06d}", random.uniform(-80, 0, (frames, 64)).astype(np.float32))
    return Store(folder)


@benchmark("features of CNN14 from log-mel", "the same network in float32, batch 1", cpu=2, gpu=10)
def cnn14_features(setting: Setting) -> Measured:
    """A shard of stage teacher_features (16 recordings of 7 s; GPU: 128), from the packed store to its file, against
    the network in float32 that takes one recording a call; the same cores for both."""
    count, frames = (4, 40) if setting.quick else (16 if setting.device == "cpu" else SHARD, 700)
    store = recordings(setting.folder / "spectrogram", count, frames)
    torch.manual_seed(0)
    teacher = Teacher(kind="cnn14", weights="made up", width=1 / 16 if setting.quick else 1.0)
    torch.save(Cnn14(width=teacher.width).state_dict(), setting.folder / "weights.pt")
    model = load_teacher(setting.folder, teacher).to(setting.device)
    assert isinstance(model, Cnn14)
    ids = np.array(list(store))
    work = Work("made up", setting.folder, teacher, store.folder, setting.device, setting.folder / "shards")

    extract(work, 0, ids)
    ours, theirs = read_arrays(shard(work.folder, 0))["features"], one_by_one(model, store, setting.device)
    apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    assert apart < AGREEMENT, apart
    measured = speedup(
        lambda: extract(work, 0, ids), lambda: one_by_one(model, store, setting.device), 2 if setting.quick else 5
    )
    rates = {f"{name}_clips_per_s": count / measured.detail[f"{name}_s"] for name in ("ours", "baseline")}
    return Measured(measured.value, measured.detail | rates | {"apart": apart})
