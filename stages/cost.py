"""Stage cost: what each method adds to a step of training, beside its baseline.

Makes, under cost/: cost.csv, a row for each run of `report.cost`:
  run, method, teachers, baseline, device
  student_parameters, added_parameters   trainable ones, of the student and of the method itself
  seconds, relative                      medians: of a step, and of its ratio to the baseline's step beside it
  relative_low, relative_high            quartiles of that ratio
  memory, memory_relative                bytes that a step takes, and their ratio to the baseline's

A step is forward, backward and optimizer on a batch that is on the device already, at the size of the run's recipe.
Steps of the baseline and of the method take turns in one process, so that whatever else the machine does meets both:
runs are measured side by side, as they are trained. On the CPU, where training has one thread, seconds are those of
that processor: waiting for one does not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from avdistill.data.files import write_csv
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.reporting import results
from avdistill.training.trainer import Task, Trainer, count_parameters, make_deterministic

WARM_UP = 2  # steps that are not measured: they allocate the optimizer's state and choose convolution algorithms
STEPS = 10
BATCHES = 4  # different batches, over and over
MEASURED: tuple[str, ...] = (
    "student_parameters",
    "added_parameters",
    "seconds",
    "relative",
    "relative_low",
    "relative_high",
)
MEASURED += ("memory", "memory_relative")


def ready(stage: Stage, run: str, device: str) -> Trainer:
    """The trainer of a run with its first seed, about to begin its first epoch."""
    job = stage.params.runs()[run][0]
    seed = stage.params.jobs[job].seeds_of(run)[0]
    trainer = Trainer(Task(stage.params, job, run, seed, device, Path(), stage.run))
    trainer.student.train()
    trainer.distiller.train()
    trainer.distiller.start_epoch(0)
    return trainer


def first_batches(trainer: Trainer) -> list[tuple[Tensor, ...]]:
    """The first batches of an epoch, on the device."""
    return [tuple(part.to(trainer.device) for part in batch) for batch in islice(trainer.loader, BATCHES)]


def in_turn(
    first: Callable[[Any], Any], second: Callable[[Any], Any], inputs: list[Any], clock: Callable[[], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (STEPS,) of two functions that are called in turn, each with the inputs one after the other."""
    seconds = np.zeros((STEPS, 2))
    for number, given in zip(range(-WARM_UP, STEPS), cycle(inputs), strict=False):
        for column in (0, 1) if number % 2 else (1, 0):  # neither always follows the other
            started = clock()
            (first, second)[column](given)
            if number >= 0:
                seconds[number, column] = clock() - started
    return seconds[:, 0], seconds[:, 1]


def finished_step(trainer: Trainer) -> Callable[[tuple[Tensor, ...]], None]:
    """A step that returns when the device has done it."""

    def step(batch: tuple[Tensor, ...]) -> None:
        trainer.step(*batch)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    return step


def kept(trainer: Trainer) -> Iterator[Tensor]:
    """What a training keeps from step to step: parameters, their gradients, buffers (memory banks among them), the
    optimizer's state, and the teachers' table of all clips."""
    for module in (trainer.student, trainer.distiller):
        for parameter in module.parameters():
            yield parameter.detach()
            if parameter.grad is not None:
                yield parameter.grad
        yield from module.buffers()
    for state in trainer.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    for table in trainer.teachers.values():
        yield from (table.feature, table.logits, table.mask, *table.blocks)


def storages(tensors: Iterator[Tensor]) -> dict[int, int]:
    """Bytes of the distinct storages of some tensors, by address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@contextmanager
def saved_for_backward() -> Iterator[dict[int, int]]:
    """Collects the storages of all tensors that autograd saves within it, as `storages` does."""
    found: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        found.update(storages(iter([tensor])))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield found


def memory(trainer: Trainer, batch: tuple[Tensor, ...]) -> int:
    """Bytes of a step, one that was not the first: what is kept, and what the step needs beside it.

    On CUDA that is the most that the allocator held during the step; elsewhere, what autograd saves for backward,
    by far the most of it, since no allocator counts there."""
    resident = storages(kept(trainer))
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
        torch.cuda.reset_peak_memory_stats(trainer.device)
        before = torch.cuda.memory_allocated(trainer.device)
        finished_step(trainer)(batch)
        return sum(resident.values()) + torch.cuda.max_memory_allocated(trainer.device) - before
    with saved_for_backward() as saved:
        trainer.step(*batch)
    return sum((saved | resident).values())


def measure(trainer: Trainer, baseline: Trainer, batches: list[tuple[Tensor, ...]]) -> dict[str, float]:
    """The numbers of one run, by column."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    theirs, ours = in_turn(finished_step(baseline), finished_step(trainer), batches, clock)
    low, ratio, high = np.quantile(ours / theirs, [0.25, 0.5, 0.75])
    taken = memory(trainer, batches[0])
    return {
        "student_parameters": count_parameters(trainer.student),
        "added_parameters": count_parameters(trainer.distiller),
        "seconds": float(np.median(ours)),
        "relative": float(ratio),
        "relative_low": float(low),
        "relative_high": float(high),
        "memory": taken,
        "memory_relative": taken / memory(baseline, batches[0]),
    }


def row(stage: Stage, run: str, device: str) -> dict[str, Any]:
    """The row of one run."""
    params = stage.params
    job = params.jobs[params.runs()[run][0]]
    make_deterministic(params.recipes[job.recipe].compile)
    base = results.counterpart(params, run, params.report.baseline)
    assert base is not None  # of check_tables
    baseline = ready(stage, base, device)
    measured = measure(ready(stage, run, device), baseline, first_batches(baseline))
    about = {"run": run, "method": job.method, "teachers": job.runs[run].teachers, "baseline": base}
    return {**about, "device": device, **measured}


def main(stage: Stage) -> None:
    """Measure the runs that `report.cost` names."""
    params = stage.params
    results.check_tables(params)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in training
    device = resolve_device(params.device)
    rows = run_parallel(row, [(stage, run, device) for run in params.report.cost], device, "cost")
    table = pd.DataFrame(rows, columns=["run", "method", "teachers", "baseline", "device", *MEASURED])
    with stage.output() as folder:
        write_csv(folder / "cost.csv", table)
        stage.run.log_artifact(folder / "cost.csv")
    stage.run.log_params({"device": device, "steps": STEPS})
    for found in rows:
        stage.run.log_metrics({f"{found['run']}/{name}": found[name] for name in MEASURED})
