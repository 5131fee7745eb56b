"""Stage cost: time and memory of a training step of each method, compared with its baseline.

Writes cost/cost.csv, one row per run of `report.cost`:
  run, method, teachers, baseline, device
  student_parameters, added_parameters   trainable parameters of the student and of the method itself
  seconds, relative                      median time of a step, and median ratio to the adjacent baseline step
  relative_low, relative_high            quartiles of that ratio
  memory, memory_relative                bytes of a step, and their ratio to the baseline's

and cost/gradients.csv, one row per run and term of its loss:
  run, term, start, end   length of the term's gradient on the student, relative to the plain cross-entropy's, with the
                          untrained networks and with those of the selected epoch (first seed, one batch)

A step is forward, backward and optimizer on a batch that is already on the device, with the recipe's batch size. Steps
of the baseline and of the method alternate in one process, so that other load on the machine affects both. On the CPU,
where training uses one thread, seconds are processor time.
"""

from __future__ import annotations

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
from torch.nn import functional as F

from avdistill.data.files import write_csv
from avdistill.data.loader import to_input
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.reporting import results
from avdistill.training.precision import make_deterministic
from avdistill.training.task import task_of
from avdistill.training.tensors import load_tensors
from avdistill.training.trainer import Trainer, count_parameters

WARM_UP = 2  # unmeasured steps: they allocate the optimizer state and choose convolution algorithms
STEPS = 10
BATCHES = 4  # distinct batches, cycled
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
    """Return the trainer of a run with its first seed, ready for its first step."""
    seed = stage.params.jobs[stage.params.runs()[run][0]].seeds[0]
    trainer = Trainer(task_of(stage.params, run, seed, device, Path(), stage.run))
    trainer.student.train()
    trainer.distiller.train()
    trainer.distiller.start_epoch(0)
    return trainer


def first_batches(trainer: Trainer) -> list[tuple[Any, ...]]:
    """Return the first BATCHES batches of an epoch, on the device."""
    return [trainer.to_device(batch) for batch in islice(trainer.loader, BATCHES)]


def alternate(
    first: Callable[[Any], Any], second: Callable[[Any], Any], inputs: list[Any], clock: Callable[[], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Call two functions alternately on the cycled inputs; return the seconds (STEPS,) of each."""
    seconds = np.zeros((STEPS, 2))
    for number, given in zip(range(-WARM_UP, STEPS), cycle(inputs), strict=False):
        for column in (0, 1) if number % 2 else (1, 0):  # swap the order in every other pair
            started = clock()
            (first, second)[column](given)
            if number >= 0:
                seconds[number, column] = clock() - started
    return seconds[:, 0], seconds[:, 1]


def finished_step(trainer: Trainer) -> Callable[[tuple[Any, ...]], None]:
    """Return a training step that waits until the device has finished."""

    def step(batch: tuple[Any, ...]) -> None:
        trainer.step(*batch)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    return step


def resident_tensors(trainer: Trainer) -> Iterator[Tensor]:
    """Yield the tensors that a training holds between steps.

    These are parameters, gradients, buffers (including memory banks), optimizer state and the teachers' tables."""
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
    """Return the bytes of the distinct storages of some tensors, by address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@contextmanager
def saved_for_backward() -> Iterator[dict[int, int]]:
    """Collect the storages of all tensors that autograd saves in this context, in the format of `storages`."""
    found: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        found.update(storages(iter([tensor])))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield found


def memory(trainer: Trainer, batch: tuple[Any, ...]) -> int:
    """Return the bytes of a step after the first: resident tensors plus the memory of the step itself.

    On CUDA the latter is the peak of the allocator during the step. On the CPU, whose allocator keeps no statistics, it
    is the tensors that autograd saves for backward, which are most of it."""
    resident = storages(resident_tensors(trainer))
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
        torch.cuda.reset_peak_memory_stats(trainer.device)
        before = torch.cuda.memory_allocated(trainer.device)
        finished_step(trainer)(batch)
        return sum(resident.values()) + torch.cuda.max_memory_allocated(trainer.device) - before
    with saved_for_backward() as saved:
        trainer.step(*batch)
    return sum((saved | resident).values())


def measure(trainer: Trainer, baseline: Trainer, batches: list[tuple[Any, ...]]) -> dict[str, float]:
    """Return the measurements of one run, by column of MEASURED."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    baseline_seconds, seconds = alternate(finished_step(baseline), finished_step(trainer), batches, clock)
    low, ratio, high = np.quantile(seconds / baseline_seconds, [0.25, 0.5, 0.75])
    bytes_used = memory(trainer, batches[0])
    return {
        "student_parameters": count_parameters(trainer.student),
        "added_parameters": count_parameters(trainer.distiller),
        "seconds": float(np.median(seconds)),
        "relative": float(ratio),
        "relative_low": float(low),
        "relative_high": float(high),
        "memory": bytes_used,
        "memory_relative": bytes_used / memory(baseline, batches[0]),
    }


def gradient_shares(trainer: Trainer, batch: tuple[Any, ...]) -> dict[str, float]:
    """Return the length of each term's gradient on the student, relative to that of the plain cross-entropy.

    A method whose terms have shares of thousandths is in fact off."""
    torch.manual_seed(0)
    clips, labels, index, _ = batch
    parameters = [parameter for parameter in trainer.student.parameters() if parameter.requires_grad]

    def length(loss: Tensor) -> float:
        # Terms of the method's own networks do not reach the student at all.
        if not loss.requires_grad:
            return 0.0
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        reached = [gradient.flatten() for gradient in gradients if gradient is not None]
        return float(torch.cat(reached).norm()) if reached else 0.0

    output = trainer.student(to_input(clips, trainer.recipe.normalisation))
    teachers = {letter: table.take(index) for letter, table in trainer.teachers.items()}
    terms = trainer.distiller(output, teachers, labels, index)
    plain = length(F.cross_entropy(output.logits.float(), labels))
    return {name: length(term) / plain for name, term in terms.items()}


def gradients(stage: Stage, run: str, device: str) -> list[dict[str, Any]]:
    """Return the rows of gradients.csv of one run. `end` is NaN if the run was not trained, or did not converge."""
    trainer = ready(stage, run, device)
    batch = first_batches(trainer)[0]
    start = gradient_shares(trainer, batch)
    end: dict[str, float] = {}
    path = trainer.task.student.weights
    if path.exists() and (state := load_tensors(path, trainer.device)).get("converged", True):
        trainer.student.load_state_dict(state["student"])
        trainer.distiller.load_state_dict(state["distiller"])
        end = gradient_shares(trainer, batch)
    return [{"run": run, "term": name, "start": start[name], "end": end.get(name, np.nan)} for name in start]


def row(stage: Stage, run: str, device: str) -> dict[str, Any]:
    """Measure one run and its baseline; return the row of cost.csv."""
    params = stage.params
    job = params.jobs[params.runs()[run][0]]
    make_deterministic(params.recipes[job.recipe].compile)
    base = results.counterpart(params, run, params.report.baseline)
    assert base is not None  # ensured by check_tables
    baseline = ready(stage, base, device)
    trainer = ready(stage, run, device)
    measured = measure(trainer, baseline, first_batches(trainer))
    about = {"run": run, "method": job.method, "teachers": job.runs[run].teachers, "baseline": base}
    return {**about, "device": device, **measured}


def main(stage: Stage) -> None:
    """Measure the runs of `report.cost`."""
    params = stage.params
    results.check_tables(params)
    device = resolve_device(params.device)
    rows = run_parallel(row, [(stage, run, device) for run in params.report.cost], device, "cost")
    table = pd.DataFrame(rows, columns=["run", "method", "teachers", "baseline", "device", *MEASURED])
    shares = [gradients(stage, run, device) for run in params.report.cost]
    with stage.output() as folder:
        write_csv(folder / "cost.csv", table)
        columns = ["run", "term", "start", "end"]
        write_csv(folder / "gradients.csv", pd.DataFrame([each for found in shares for each in found], columns=columns))
        for name in ("cost", "gradients"):
            stage.run.log_artifact(folder / f"{name}.csv")
    stage.run.log_params({"device": device, "steps": STEPS})
    for found in rows:
        stage.run.log_metrics({f"{found['run']}/{name}": found[name] for name in MEASURED})
