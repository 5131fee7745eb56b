"""How fast is a training step of MNF+CSC at the papers' size, and what limits it?

A step is `Trainer.step` of `r2plus1d_10` on 16x112x112 frames that lie on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from avdistill.config.types import Precision
from avdistill.data.files import write_text
from avdistill.data.loader import Batch
from avdistill.training.speed import clip_flops, peak_flops
from avdistill.training.trainer import Trainer
from benchmarks import made_up
from benchmarks.gpu.report import Report
from benchmarks.gpu.smoke import earlier_student, every_job

BATCHES = (32, 64, 128, 256)
STEPS = 4  # between two waits for the device
SECONDS = 1.2  # for a row, after its first steps
COMPILING = 45.0  # seconds that a row needs if its step is compiled
# Kinds of kernels by parts of their names; the first that fits counts.
KINDS = {
    "layout and padding": ("nchwtonhwc", "nhwctonchw", "transpose", "tensor_pad", "pad_kernel", "copy_kernel", "mem"),
    "batch norm": ("batch_norm", "bn_", "batchnorm"),
    "convolutions and products": ("conv", "xmma", "cutlass", "gemm", "wgrad", "dgrad", "nvjet", "cudnn", "sm90"),
    "optimizer": ("fusedadam", "fused_adam", "multi_tensor"),
    "compiled": ("triton",),
    "reductions": ("reduce",),
    "elementwise": ("elementwise", "vectorized", "unrolled"),
}


def noise(trainer: Trainer) -> tuple[Any, ...]:
    """Return a batch of the recipe's size on the device, of random frames and of different clips."""
    recipe, random = trainer.recipe, torch.Generator().manual_seed(0)
    rows = torch.randperm(len(trainer.clips), generator=random)[: recipe.batch]
    shape = (recipe.batch, recipe.frames, recipe.size, recipe.size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    return trainer.to_device(Batch(frames, trainer.clips.given[rows], rows))


def step_rate(trainer: Trainer, batch: tuple[Any, ...], seconds: float) -> dict[str, float]:
    """Time steps; `first_s` are the first two, which also compile and choose algorithms."""
    began = time.perf_counter()
    for _ in range(2):
        trainer.step(*batch)
    wait(trainer)
    found = {"first_s": time.perf_counter() - began}
    gpu = trainer.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < until:
        started = time.perf_counter()
        for _ in range(STEPS):
            trainer.step(*batch)
        wait(trainer)
        times.append((time.perf_counter() - started) / STEPS)
    step = statistics.median(times)
    found |= {"ms": 1000 * step, "clips_per_s": trainer.recipe.batch / step}
    return found | ({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if gpu else {})


def wait(trainer: Trainer) -> None:
    """Wait until the device has finished."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


def utilisation(trainer: Trainer, found: dict[str, float]) -> dict[str, float]:
    """Return TFLOP/s of the student, and their share of what the card can do in per cent, if that is known."""
    rate = found["clips_per_s"] * clip_flops(trainer.recipe, trainer.clips.classes)
    peak = peak_flops(trainer.device, trainer.recipe.precision)
    return {"tflops": rate / 1e12} | ({"percent_of_peak": 100 * rate / peak} if peak else {})


class Bench:
    """Trainers of one made-up suite at the papers' size; tiny in a dry run."""

    def __init__(self, report: Report, folder: Path, device: str, dry: bool) -> None:
        self.report, self.folder, self.device, self.dry = report, folder, device, dry
        self.batches = (2, 4) if dry else BATCHES
        self.seconds = 0.1 if dry else SECONDS
        sizes = {"width": 0.125, "frames": 4, "stride": 4, "size": 32} if dry else {}
        # The clips are read by none: each batch is made here.
        clips = max(made_up.CLASSES, *self.batches)
        self.params = made_up.suite(folder / "suite", clips, (1, 8, 8), sizes, jobs=every_job())
        earlier_student(self.params)

    def trainer(self, job: str, **changes: Any) -> Trainer:
        """Build a trainer whose recipe has these settings."""
        torch._dynamo.reset()
        recipe = self.params.recipes["recipe"].model_copy(update=changes)
        return made_up.trainer(self.params.model_copy(update={"recipes": {"recipe": recipe}}), self.device, job)

    def row(self, batch: int, precision: str, compiled: bool) -> None:
        """Measure one setting."""

        def measure() -> dict[str, Any]:
            trainer = self.trainer("mnf_csc-A", batch=batch, precision=precision, compile=compiled)
            found = step_rate(trainer, noise(trainer), self.seconds)
            return {"batch": batch, "precision": precision, "compiled": compiled} | found | utilisation(trainer, found)

        name = f"{precision}, batch {batch}, {'compiled' if compiled else 'eager'}"
        self.report.attempt(name, measure, COMPILING if compiled else 5.0)
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def method(self, job: str) -> None:
        """Measure a step of a method, in bfloat16, eager."""

        def measure() -> dict[str, Any]:
            trainer = self.trainer(job, batch=self.batches[0], precision="bfloat16")
            return {"method": job} | step_rate(trainer, noise(trainer), self.seconds / 4)

        self.report.attempt(f"method {job}", measure, 4.0)

    def profile(self, compiled: bool) -> None:
        """Say where the time of a step goes, by kind of kernel; write the kernels to profile.txt."""

        def measure() -> dict[str, Any]:
            trainer = self.trainer("mnf_csc-A", batch=self.batches[0], precision="bfloat16", compile=compiled)
            batch = noise(trainer)
            ms = step_rate(trainer, batch, self.seconds)["ms"]
            found, text = kernels(trainer, batch)
            file = self.report.folder / f"profile_{'compiled' if compiled else 'eager'}.txt"
            write_text(file, text)
            busy = sum(found["ms_by_kind"].values())
            return {"step_ms": ms, "busy_ms": busy, "idle_percent": 100 * max(0.0, 1 - busy / ms)} | found

        name = f"profile, bfloat16, batch {self.batches[0]}, {'compiled' if compiled else 'eager'}"
        self.report.attempt(name, measure, COMPILING if compiled else 6.0)


def kernels(trainer: Trainer, batch: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    """Profile steps; return milliseconds a step by kind of kernel and the number of kernels, and a table of them.

    On a processor, operators stand for kernels."""
    gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities) as seen:
        for _ in range(STEPS):
            trainer.step(*batch)
        wait(trainer)
    averages = seen.key_averages()
    field = "self_device_time_total" if gpu else "self_cpu_time_total"
    on_device = [each for each in averages if (each.device_type.name == "CUDA") == gpu and getattr(each, field) > 0]
    by_kind: dict[str, float] = {}
    for each in on_device:
        name = each.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
        by_kind[kind] = by_kind.get(kind, 0.0) + getattr(each, field) / 1000 / STEPS
    ordered = dict(sorted(by_kind.items(), key=lambda item: -item[1]))
    text = averages.table(sort_by="self_cuda_time_total" if gpu else "self_cpu_time_total", row_limit=60)
    return {"kernels": sum(each.count for each in on_device) / STEPS, "ms_by_kind": ordered}, text


def ceilings(device: str, dry: bool) -> dict[str, float]:
    """Measure the TFLOP/s of a large product in each precision, and the TB/s of a large copy."""
    from benchmarks.harness import median_seconds

    size, found = 128 if dry else 8192, {}
    types = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name, dtype in types.items():
        one, other = torch.randn(2, size, size, device=device).to(dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        found[f"{name}_tflops"] = 2 * size**3 / median_seconds(_product(one, other), 5) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    large = torch.zeros(1 << (20 if dry else 30), device=device)
    target = torch.empty_like(large)
    return found | {"copy_tb_per_s": 2 * large.nbytes / median_seconds(lambda: target.copy_(large), 5) / 1e12}


def _product(one: Tensor, other: Tensor) -> Callable[[], Tensor]:
    return lambda: one @ other


def run(report: Report, folder: Path, device: str, dry: bool) -> None:
    """Measure rows in the order of their value: the papers' batch first, larger and other precisions after it."""
    bench = Bench(report, folder, device, dry)
    least, *larger = bench.batches
    precisions = ("float32",) if dry else tuple(name for name in get_args(Precision) if name != "bfloat16")
    report.attempt("ceilings", lambda: ceilings(device, dry))
    compiled = not dry  # a processor takes a minute to compile
    bench.row(least, "bfloat16", compiled)
    bench.profile(compiled)
    bench.row(least, "bfloat16", False)
    for precision in precisions:
        bench.row(least, precision, False)
    for batch in larger:
        bench.row(batch, "bfloat16", False)
    for job in ("mnf_csc-A",) if dry else every_job():
        bench.method(job)
    if not dry:  # which a processor would take minutes for
        bench.profile(False)
        for batch in larger:
            bench.row(batch, "bfloat16", True)
        for batch in bench.batches:
            for precision in precisions:
                bench.row(batch, precision, True)
                if batch != least:
                    bench.row(batch, precision, False)
