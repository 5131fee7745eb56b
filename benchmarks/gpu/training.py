"""A training of a few epochs as a user runs it: loader, selection, checkpoints; then the evaluation of its student."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdistill.data.loader import ClipSet
from avdistill.pipeline.processes import cores
from avdistill.training.inference import predict
from benchmarks import made_up
from benchmarks.gpu.report import Report
from benchmarks.gpu.smoke import Recorder

# The papers' training on UCF51, to which the measured epochs are extrapolated.
UCF51_CLIPS, UCF51_EPOCHS = 4892, 200
EPOCHS = 3


def run(report: Report, folder: Path, device: str, dry: bool) -> None:
    """Train MNF+CSC at the papers' size on frames that tell the class, and evaluate the student."""
    recipe: dict[str, Any] = {"batch": 32, "epochs": EPOCHS, "milestones": (EPOCHS,), "precision": "bfloat16"}
    recipe |= {"compile": True, "loader_workers": cores()} if not dry else {"precision": "float32"}
    recipe |= {"width": 0.125, "frames": 4, "stride": 4, "size": 32, "batch": 8} if dry else {}
    shape, clips = ((6, 36, 48), 16) if dry else ((25, 128, 171), 768)
    params = made_up.suite(folder / "training", clips, shape, recipe, tinted=True)
    report.add("clips", clips=clips, frames=list(shape), recipe=params.recipes["recipe"].model_dump())
    report.attempt("training", lambda: train(params, device, folder))
    report.attempt("evaluation", lambda: evaluate(params, device))


def train(params: Any, device: str, folder: Path) -> dict[str, Any]:
    """Train; return the metrics of each epoch, and the hours of the papers' 200 epochs at the rate of the last ones.

    The first epoch, which also compiles, does not count."""
    trainer, tracked = made_up.trainer(params, device), Recorder()
    trainer.task = replace(trainer.task, folder=folder / "trained", tracked=tracked)  # type: ignore[arg-type]
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    epoch = statistics.median(each["seconds"] for each in tracked.epochs[1:])
    clips = len(trainer.loader) * trainer.recipe.batch
    hours = UCF51_EPOCHS * epoch * UCF51_CLIPS / clips / 3600
    return {
        "converged": not trainer.diverged,
        "seconds": seconds,
        "seconds_of_an_epoch": epoch,
        "clips_per_s": clips / epoch,
        "hours_of_ucf51": hours,
        "epochs": tracked.epochs,
    }


def evaluate(params: Any, device: str) -> dict[str, Any]:
    """Predict the training clips, whose windows are read as in stage evaluate."""
    trainer = made_up.trainer(params, device)
    index, store = params.index("noise"), params.path("frames", "noise")
    clips = ClipSet(index, store, ("train",))
    predict(trainer.student, trainer.val, trainer.recipe, trainer.device)
    began = time.perf_counter()
    predict(trainer.student, clips, trainer.recipe, trainer.device)
    return {"clips_per_s": len(clips) / (time.perf_counter() - began)}
