"""Does every method train on the GPU as it does on the CPU?"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from avdistill.config.schema import Params
from avdistill.config.types import Precision
from avdistill.training.tensors import save_tensors
from avdistill.training.trainer import Trainer
from benchmarks import made_up
from benchmarks.gpu.report import Report
from models.distillers import methods

SMALL = {"width": 0.125, "frames": 4, "stride": 4, "size": 32, "batch": 8}
STEPS = 2
APART = 1e-3  # largest relative difference between the losses of GPU and CPU that is no error, in float32


def every_job() -> dict[str, tuple[str, str]]:
    """Return a job for each method and each set of teachers that it accepts, by name; first the one without a teacher,
    whose student is the teacher S."""
    pairs = [(name, letters) for name, method in methods().items() for letters in method.accepts]
    pairs.sort(key=lambda pair: pair != ("uni_modal", ""))
    return {f"{name}-{letters}" if letters else name: (name, letters) for name, letters in pairs}


def digest(values: Iterable[Any]) -> str:
    """Return the SHA-256 of all tensors in nested dicts and lists, in order."""
    total = hashlib.sha256()
    for tensor in tensors(values):
        raw = tensor.detach().cpu().contiguous().view(-1)
        total.update(raw.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def state(trainer: Trainer) -> str:
    """Return a digest of all that a training changes."""
    parts = (trainer.student, trainer.distiller, trainer.optimizer)
    return digest([part.state_dict() for part in parts])


def steps(params: Params, job: str, device: str) -> tuple[list[float], str, list[str]]:
    """Train a few steps; return their losses, the digest of the state, and where a further step waits for the GPU."""
    trainer = made_up.trainer(params, device, job)
    torch.manual_seed(7)
    batches = [trainer.to_device(batch) for batch in trainer.loader][:STEPS]
    losses = [float(trainer.step(*batch)["loss"]) for batch in batches]
    return losses, state(trainer), waits(lambda: trainer.step(*batches[0])) if device == "cuda" else []


def waits(step: Callable[[], object]) -> list[str]:
    """Return the lines at which a step waits for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sorted({f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)})


def in_precision(params: Params, precision: Precision) -> Params:
    """Return params whose recipe has that precision."""
    recipe = params.recipes["recipe"].model_copy(update={"precision": precision})
    return params.model_copy(update={"recipes": {"recipe": recipe}})


def check(params: Params, job: str, device: str, precisions: Sequence[Precision]) -> dict[str, Any]:
    """Compare a job on the device with the CPU in float32, and with itself in each precision."""
    found: dict[str, Any] = {"ok": True}
    expected = steps(params, job, "cpu")[0]
    for precision in precisions:
        losses, bits, places = steps(in_precision(params, precision), job, device)
        same = device == "cpu" or steps(in_precision(params, precision), job, device)[1] == bits
        apart = max(abs(a - b) / max(1e-3, abs(b)) for a, b in zip(losses, expected, strict=True))
        good = same and all(map(math.isfinite, losses)) and (apart < APART or precision != "float32") and not places
        found[precision] = {"apart": apart, "same_bits": same, "waits": places}
        found["ok"] = found["ok"] and good
    return found


def resuming(params: Params, job: str, device: str) -> dict[str, Any]:
    """Compare a training of two epochs with one that is interrupted after the first."""
    folder = Path(params.suite.out) / "resuming"
    ends = []
    for name, pieces in (("straight", [2]), ("interrupted", [1, 2])):
        for epochs in pieces:
            trainer = made_up.trainer(params, device, job)
            trainer.task = replace(trainer.task, folder=folder / name, tracked=Recorder())  # type: ignore[arg-type]
            trainer.fit(epochs)
        ends.append(state(trainer))
    return {"ok": ends[0] == ends[1]}


class Recorder:
    """A tracked run that keeps the metrics of each epoch and drops all else."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Keep the metrics of an epoch."""
        self.epochs.append(dict(values))

    def log_system(self, step: int) -> None:
        """Drop system metrics."""


def earlier_student(params: Params) -> None:
    """Write the untrained student that the methods with teacher S take for an earlier one."""
    trainer = made_up.trainer(params, "cpu", "uni_modal")
    save_tensors(
        trainer.task.student.weights,
        {"run": "uni_modal", "seed": 0, "student": trainer.student.state_dict(), "distiller": {}},
    )


def run(report: Report, folder: Path, device: str, dry: bool) -> None:
    """Check every method, students that hear, and an interrupted training."""
    jobs, precisions = every_job(), get_args(Precision)
    if dry:  # one set of teachers a method
        jobs = {name: job for name, job in jobs.items() if job[1] == methods()[job[0]].accepts[0]}
        precisions = ("float32",)
    recipe = SMALL | {"epochs": 2, "milestones": (1,)}
    params = made_up.suite(folder / "sees", STEPS * 8, (6, 36, 48), recipe, jobs=jobs)
    earlier_student(params)
    report.attempt("an interrupted training ends with the same bits", lambda: resuming(params, "mnf_csc-A", device))
    for job in jobs:
        report.attempt(job, lambda job=job: check(params, job, device, precisions))  # type: ignore[misc]
    for student in ("resnet10_audio", "resnet50_audio")[: 1 if dry else 2]:
        hearing = {"student": student, "width": 0.125, "frames": 64, "stride": 64, "batch": 8}
        ears = made_up.suite(folder / student, STEPS * 8, (80, 64), hearing, jobs={"kd-A": ("kd", "A")})
        report.attempt(f"{student} on log-mel", lambda ears=ears: check(ears, "kd-A", device, precisions))  # type: ignore[misc]
