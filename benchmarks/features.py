"""Benchmark of CNN14 features from log-mel spectrograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from avdistill.config.schema import Teacher
from avdistill.config.types import Precision
from avdistill.data.files import read_arrays
from avdistill.data.packed import Store, StoreWriter
from benchmarks.harness import Measured, Setting, benchmark, median_seconds, speedup
from models.logmel import MELS
from models.teachers.cnn14 import Cnn14
from stages.teacher_features import SHARD, Work, extract, load_teacher, shard

# Largest accepted difference of a feature, as a share of the largest feature.
AGREEMENT: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.02}


@torch.inference_mode()
def one_by_one(model: Cnn14, store: Store, device: str) -> np.ndarray:
    """Compute features with the same network in float32, one recording at a time: (N, 2048)."""
    found = [model(torch.from_numpy(np.array(store[name]))[None].to(device)).embedding.cpu() for name in store]
    return torch.cat(found).numpy()


def recordings(folder: Path, count: int, frames: int) -> Store:
    """Write `count` recordings of noise in the range of log-mel values, `frames` long, and return their store."""
    random = np.random.default_rng(0)
    with StoreWriter(folder, "float32") as store:
        for number in range(count):
            store.put(f"clip{number:06d}", random.uniform(-80, 0, (frames, 64)).astype(np.float32))
    return Store(folder)


@benchmark("features of CNN14 from log-mel", "the same network in float32, batch 1", cpu=2, gpu=10)
def cnn14_features(setting: Setting) -> Measured:
    """Computes one shard of stage teacher_features (16 recordings of 7 s; GPU: 128), from the packed store to its file.
    The baseline is the network in float32 with one recording per call, on the same cores. Uses `precision: bfloat16` if
    the processor supports it. `float32_x` is the speed-up in float32, and `float32_share_of_matrix_speed` its speed as
    a share of the speed at which the same cores multiply large float32 matrices."""
    count, frames = (4, 40) if setting.quick else (16 if setting.device == "cpu" else SHARD, 700)
    store = recordings(setting.folder / "spectrogram", count, frames)
    torch.manual_seed(0)
    teacher = Teacher(kind="cnn14", weights="made up", width=1 / 16 if setting.quick else 1.0)
    torch.save(Cnn14(width=teacher.width).state_dict(), setting.folder / "weights.pt")
    model = load_teacher(setting.folder, teacher).to(setting.device)
    assert isinstance(model, Cnn14)
    ids = np.array(list(store))
    theirs = one_by_one(model, store, setting.device)

    def measure(precision: Precision) -> Measured:
        folder = setting.folder / precision
        work = Work(precision, setting.folder, teacher, precision, store.folder, setting.device, folder)
        extract(work, 0, ids)
        apart = float(np.abs(read_arrays(shard(folder, 0))["features"] - theirs).max() / np.abs(theirs).max())
        assert apart < AGREEMENT[precision], apart
        measured = speedup(
            lambda: extract(work, 0, ids), lambda: one_by_one(model, store, setting.device), 2 if setting.quick else 5
        )
        rates = {f"{name}_clips_per_s": count / measured.detail[f"{name}_s"] for name in ("ours", "baseline")}
        return Measured(measured.value, measured.detail | rates | {"apart": apart})

    exact = measure("float32")
    speed = operations(model, frames, setting.device) * exact.detail["ours_clips_per_s"]
    detail = {"float32_x": exact.value, "float32_share_of_matrix_speed": speed / matrix_speed(setting.device)}
    if not computes_bfloat16(setting.device):
        return Measured(exact.value, detail | exact.detail | {"precision": "float32"})
    reduced = measure("bfloat16")
    return Measured(reduced.value, detail | reduced.detail | {"precision": "bfloat16"})


def computes_bfloat16(device: str) -> bool:
    """Return whether the processor has bfloat16 instructions."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported()
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


@torch.inference_mode()
def operations(model: Cnn14, frames: int, device: str) -> int:
    """Count the floating-point operations of the network for one recording."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        model(torch.zeros(1, frames, MELS, device=device))
    return counted.get_total_flops()


def matrix_speed(device: str, size: int = 2048) -> float:
    """Measure the operations per second of a product of two square float32 matrices, on all cores."""
    one, other = torch.rand(2, size, size, device=device)
    return 2 * size**3 / median_seconds(lambda: one @ other, 5)
