"""Stage train: train the students of a job, one per run and seed.

Writes to train/<job>/: <run>/seed-<n>.pt (weights of the selected epoch), <run>/seed-<n>.csv (one row per epoch), and
history.csv (the rows of all runs and seeds).

An interrupted execution resumes where it stopped, with bitwise the same result as an uninterrupted one.
"""

from __future__ import annotations

import pandas as pd

from avdistill.data.files import digest, write_csv
from avdistill.pipeline.devices import gpus, resolve_device, run_parallel
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from avdistill.training.task import task_of
from avdistill.training.trainer import train_one


def main(stage: Stage) -> None:
    """Train all runs of the job with all its seeds."""
    params = stage.params
    job = params.jobs[stage.item or ""]
    device = resolve_device(params.device)
    processes = params.recipes[job.recipe].processes
    if device != "cpu" and processes > gpus(device):
        raise UserError(f"recipes.{job.recipe}.processes: {processes} GPUs requested, {device} has {gpus(device)}")
    inputs = [stage.input("split", job.dataset), stage.input(*job.input.split("/"))]
    inputs += [stage.input(s, getattr(job, t)) for t in "AI" for s in ("teacher_features", "teacher_head")]
    inputs += [stage.input("train", job.S), stage.input("teachers", job.init)]
    settings = f"{job.model_dump_json()}{params.recipes[job.recipe].model_dump_json()}{device}"
    fingerprint = f"{digest(*inputs)} {settings}"
    stage.run.log_params({"job": job.model_dump(), "recipe": params.recipes[job.recipe].model_dump()})
    stage.run.log_dataset(
        name=job.dataset, path=inputs[0] / "index.csv", digest=digest(inputs[0])[:32], context="training"
    )
    with stage.output(key=fingerprint) as folder:
        tasks = [(task_of(params, run, seed, device, folder, stage.run),) for run, seed in job.trainings()]
        # A student trained by several processes uses all devices, so such trainings run one at a time.
        run_parallel(train_one, tasks, device, f"train {stage.item}", sequential=processes > 1)
        pieces = [folder / run / f"seed-{seed}.csv" for run, seed in job.trainings()]
        write_csv(folder / "history.csv", pd.concat([pd.read_csv(piece) for piece in pieces], ignore_index=True))
        stage.run.log_artifact(folder / "history.csv")
