"""Stage evaluate: evaluate the students of a job on the test split.

Writes to evaluate/<job>/:
  metrics.csv      run, seed, metric, value: top-1 accuracy averaged over windows; R@K and mAP@K with test videos as
                   queries and training videos as gallery
  per_class.csv    run, seed, class, clips, accuracy
  confusion.csv    run, seed, true, predicted, clips
  scores.csv       run, seed, id, split, relevant, and the method's clip scores (mask, tau)
  detection.csv    run, seed, score, split, auroc, clips: detection of clips with relevant sound by a clip score
  <run>/seed-<n>.npz   per test video (N,): ids, labels, probabilities (N, C), features (N, D), and by the name of each
                       metric the values of which it is the mean (NaN: left out of the mean); of the gallery: ids,
                       labels, features
  <run>/attention.npz  for methods with attention, first seed: ids (N,) of the test clips with sound, and weights
                       (N, T', H', W') over the student's last feature map in the first window of each clip
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from avdistill.config.schema import Recipe
from avdistill.data.files import digest, write_arrays, write_csv
from avdistill.data.loader import ClipSet, EvaluationWindows, centre_crop, end_workers, take_window, to_input
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.training.inference import NotConvergedError, load_student, predict
from avdistill.training.precision import autocast, make_deterministic
from avdistill.training.task import Task, task_of
from avdistill.training.teachers import build_distiller, teacher_tables, training_clips
from models import metrics
from models.distillers import Distiller, methods
from models.outputs import TeacherBatch
from models.students import Student
from models.students.r2plus1d import R2Plus1d

RECALL_AT = (1, 5, 10)
PRECISION_AT = (100, 500)
GALLERY_SPLITS = ("train", "val")  # together the papers' training split


def evaluate_one(task: Task, with_attention: bool) -> dict[str, pd.DataFrame]:
    """Evaluate one student; return its rows of each table."""
    recipe, device = task.recipe, torch.device(task.device)
    make_deterministic()
    test, gallery = (ClipSet(task.index, task.store, splits) for splits in (("test",), GALLERY_SPLITS))
    try:
        student, state = load_student(task.student, test.classes, device)
    except NotConvergedError as error:
        print(error, file=sys.stderr)
        return {"metrics": with_run(not_converged(), task.run, task.seed)}

    probabilities, features = predict(student, test, recipe, device)
    _, gallery_features = predict(student, gallery, recipe, device)
    by_clip = {"accuracy": metrics.correct(probabilities, test.labels)} | metrics.retrieval_by_query(
        features, test.labels, gallery_features, gallery.labels, RECALL_AT, PRECISION_AT
    )
    values = {name: clips.nanmean().item() for name, clips in by_clip.items()}
    values |= {"queries": len(test), "gallery": len(gallery)}
    write_arrays(
        task.result.with_suffix(".npz"),
        ids=np.array(test.ids),
        labels=test.labels.numpy(),
        probabilities=probabilities.numpy(),
        features=features.numpy(),
        gallery_ids=np.array(gallery.ids),
        gallery_labels=gallery.labels.numpy(),
        gallery_features=gallery_features.numpy(),
        **{name: clips.numpy() for name, clips in by_clip.items()},
    )
    rows = test.rows.assign(predicted=probabilities.argmax(1).numpy())
    names = dict(zip(rows["label"], rows["class"], strict=True)) | dict(
        zip(gallery.rows["label"], gallery.rows["class"], strict=True)
    )
    right = rows["label"] == rows["predicted"]
    tables = {
        "metrics": pd.DataFrame({"metric": list(values), "value": [float(value) for value in values.values()]}),
        "per_class": rows.assign(right=right)
        .groupby("class", as_index=False)
        .agg(clips=("right", "size"), accuracy=("right", "mean")),
        "confusion": rows.assign(true=rows["class"], predicted=rows["predicted"].map(names))
        .groupby(["true", "predicted"], as_index=False)
        .agg(clips=("id", "size")),
    }
    if task.teachers and methods()[task.method].scores is not Distiller.scores:
        clips = ClipSet(task.index, task.store, ("train", "test"))
        teachers = teacher_tables(task, clips, device)
        distiller = build_distiller(task, student, teachers, training_clips(task))
        distiller.load_state_dict(state["distiller"])
        scores = score_clips(student, distiller.to(device), clips, teachers, recipe, device)
        if scores is not None:
            tables["scores"] = scores
            tables["detection"] = detection(scores)
        if with_attention and isinstance(student, R2Plus1d):
            arrays = attention(student, distiller, clips, teachers, recipe, device)
            if arrays is not None:
                write_arrays(task.folder / task.run / "attention.npz", **arrays)
    with task.tracked.child(f"{task.run} seed {task.seed}", {"run": task.run, "seed": task.seed}) as tracked:
        about = {"method": task.method, "teachers": "".join(task.teachers), "seed": task.seed}
        tracked.log_params(about | {"draw": task.draw})
        tracked.log_metrics(values)
        for row in tables.get("detection", pd.DataFrame()).to_dict("records"):
            tracked.log_metrics({f"auroc/{row['score']}/{row['split']}": row["auroc"]})
    return {name: with_run(table, task.run, task.seed) for name, table in tables.items()}


def not_converged() -> pd.DataFrame:
    """Return the metrics of a diverged training: `converged` is 0, all others NaN."""
    forms = [f"mAP@{k}/{form}" for k in PRECISION_AT for form in ("released", "hits", "standard")]
    names = ["accuracy", *(f"R@{k}" for k in RECALL_AT), *forms]
    return pd.DataFrame({"metric": ["converged", *names], "value": [0.0, *[np.nan] * len(names)]})


@torch.inference_mode()
def score_clips(
    student: Student,
    distiller: Distiller,
    clips: ClipSet,
    teachers: dict[str, TeacherBatch],
    recipe: Recipe,
    device: torch.device,
) -> pd.DataFrame | None:
    """Return the distiller's scores of each clip, averaged over windows; None for methods without scores.

    Clips without sound are left out."""
    student.eval()
    distiller.eval()
    totals: dict[str, Tensor] = {}
    counts = torch.zeros(len(clips))
    found = EvaluationWindows(clips, recipe)
    for windows, rows in found:
        with autocast(device, recipe.precision):
            output = student(to_input(windows.to(device), recipe.normalisation))
            batch = {letter: table.take(rows.to(device)) for letter, table in teachers.items()}
            scores = distiller.scores(output, batch)
        for name, value in scores.items():
            totals.setdefault(name, torch.zeros(len(clips))).index_add_(0, rows, value.float().cpu())
        counts.index_add_(0, rows, torch.ones(len(rows)))
    end_workers(found.loader)
    if not totals:
        return None
    columns = {name: (total / counts).numpy() for name, total in totals.items()}
    relevant = clips.rows.get("relevant", "")
    table = clips.rows[["id", "split"]].assign(relevant=relevant, **columns)
    valid = torch.stack([table.mask for table in teachers.values()]).all(0).cpu().numpy()
    return table[valid]


@torch.inference_mode()
def attention(
    student: R2Plus1d,
    distiller: Distiller,
    clips: ClipSet,
    teachers: dict[str, TeacherBatch],
    recipe: Recipe,
    device: torch.device,
) -> dict[str, np.ndarray] | None:
    """Return the arrays of attention.npz for the first window of each test clip; None for methods without attention.

    Clips without an attention map are left out; if the strategy uses no attention, these are all clips."""
    student.eval()
    distiller.eval()
    maps = []
    tests = torch.tensor(np.flatnonzero(clips.rows["split"] == "test"))
    for rows in tests.split(64):
        windows = [take_window(clips.store[clips.ids[row]], 0, recipe.frames) for row in rows]
        batch = torch.from_numpy(np.stack([centre_crop(window, recipe.size) for window in windows]))
        with autocast(device, recipe.precision):
            output = student(to_input(batch.to(device), recipe.normalisation))
            taught = {letter: table.take(rows.to(device)) for letter, table in teachers.items()}
            attended = distiller.attend(output, taught)
        if attended is None:
            return None
        maps.append(attended.float().cpu())
    weights = torch.cat(maps)
    valid = ~weights.isnan().any(1)
    grid = student.grid(recipe.frames, recipe.size, recipe.size)
    return {"ids": np.array(clips.ids)[tests[valid]], "weights": weights[valid].reshape(-1, *grid).numpy()}


def detection(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the area under the ROC curve of each clip score for detecting clips with relevant sound, by split.

    Empty if the dataset does not label relevance."""
    from sklearn.metrics import roc_auc_score

    found: list[dict[str, Any]] = []
    for name in [column for column in scores.columns if column not in ("id", "split", "relevant")]:
        for split, rows in scores[scores["relevant"].isin(["yes", "no"])].groupby("split"):
            truth = rows["relevant"] == "yes"
            if truth.nunique() == 2:
                found.append(
                    {"score": name, "split": split, "auroc": roc_auc_score(truth, rows[name]), "clips": len(rows)}
                )
    return pd.DataFrame(found, columns=["score", "split", "auroc", "clips"])


def with_run(table: pd.DataFrame, run: str, seed: int) -> pd.DataFrame:
    """Return the table with `run` and `seed` as first columns."""
    table = table.reset_index(drop=True)
    table.insert(0, "run", run)
    table.insert(1, "seed", seed)
    return table


def main(stage: Stage) -> None:
    """Evaluate all runs of the job with all its seeds."""
    params, name = stage.params, stage.item or ""
    job = params.jobs[name]
    stage.input("train", name)
    device = resolve_device(params.device)
    index = stage.input("split", job.dataset) / "index.csv"
    stage.run.log_dataset(name=job.dataset, path=index, digest=digest(index), context="evaluation")
    with stage.output() as folder:
        tasks = [
            (task_of(params, run, seed, device, folder, stage.run), seed == job.seeds[0])
            for run, seed in job.trainings()
        ]
        results = run_parallel(evaluate_one, tasks, device, f"evaluate {name}")
        for table in dict.fromkeys(table for result in results for table in result):
            rows = pd.concat([result[table] for result in results if table in result], ignore_index=True)
            write_csv(folder / f"{table}.csv", rows)
            stage.run.log_artifact(folder / f"{table}.csv")
        rows = pd.read_csv(folder / "metrics.csv")
    means = rows.groupby(["run", "metric"], sort=False)["value"].mean()
    stage.run.log_metrics({f"{run}/{metric}": float(value) for (run, metric), value in means.dropna().items()})
