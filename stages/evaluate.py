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
from avdistill.data.loader import ClipSet, centre_crop, take_window, to_input
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.training.inference import NotConvergedError, load_student, predict
from avdistill.training.precision import autocast, make_deterministic
from avdistill.training.task import Task, task_of
from avdistill.training.teachers import build_distiller, teacher_tables, training_clips
from models import metrics
from models.distillers import Distiller, methods
from models.outputs import StudentOutput, TeacherBatch
from models.students.r2plus1d import R2Plus1d

RECALL_AT = (1, 5, 10)
PRECISION_AT = (100, 500)
GALLERY_SPLITS = ("train", "val")  # together the papers' training split


def evaluate_one(task: Task, with_attention: bool) -> dict[str, pd.DataFrame]:
    """Evaluate one student; return its rows of each table."""
    recipe, device = task.recipe, torch.device(task.device)
    make_deterministic()
    clips = ClipSet(task.index, task.store, ("test", *GALLERY_SPLITS))
    test, gallery = clips.rows_in("test"), clips.rows_in(*GALLERY_SPLITS)
    try:
        student, state = load_student(task.student, clips.classes, device)
    except NotConvergedError as error:
        print(error, file=sys.stderr)
        return {"metrics": with_run(not_converged(), task.run, task.seed)}

    scored = None
    if task.teachers and methods()[task.method].scores is not Distiller.scores:
        teachers = teacher_tables(task, clips, device)
        distiller = build_distiller(task, student, teachers, training_clips(task))
        distiller.load_state_dict(state["distiller"])
        scored = ClipScores(distiller.to(device).eval(), teachers, clips)
    probabilities, features = predict(student, clips, recipe, device, also=scored)
    labels = clips.labels[test]
    by_clip = {"accuracy": metrics.correct(probabilities[test], labels)} | metrics.retrieval_by_query(
        features[test], labels, features[gallery], clips.labels[gallery], RECALL_AT, PRECISION_AT
    )
    values = {name: each.nanmean().item() for name, each in by_clip.items()}
    values |= {"queries": len(test), "gallery": len(gallery)}
    ids = np.array(clips.ids)
    write_arrays(
        task.result.with_suffix(".npz"),
        ids=ids[test],
        labels=labels.numpy(),
        probabilities=probabilities[test].numpy(),
        features=features[test].numpy(),
        gallery_ids=ids[gallery],
        gallery_labels=clips.labels[gallery].numpy(),
        gallery_features=features[gallery].numpy(),
        **{name: each.numpy() for name, each in by_clip.items()},
    )
    names = dict(zip(clips.rows["label"], clips.rows["class"], strict=True))
    rows = clips.rows.assign(predicted=probabilities.argmax(1).numpy()).iloc[test.numpy()]
    tables = {
        "metrics": pd.DataFrame({"metric": list(values), "value": [float(value) for value in values.values()]}),
        "per_class": rows.assign(right=rows["label"] == rows["predicted"])
        .groupby("class", as_index=False)
        .agg(clips=("right", "size"), accuracy=("right", "mean")),
        "confusion": rows.assign(true=rows["class"], predicted=rows["predicted"].map(names))
        .groupby(["true", "predicted"], as_index=False)
        .agg(clips=("id", "size")),
    }
    if scored:
        tables["scores"] = scored.table("train", "test")
        tables["detection"] = detection(tables["scores"])
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


class ClipScores:
    """Average a distiller's scores of each clip over its windows, batch by batch, as `predict` calls it."""

    def __init__(self, distiller: Distiller, teachers: dict[str, TeacherBatch], clips: ClipSet) -> None:
        """`distiller` is in eval mode and on the device of `teachers`, which have the clips' rows."""
        self.distiller, self.teachers, self.clips = distiller, teachers, clips
        self.valid = torch.stack([table.mask for table in teachers.values()]).all(0)
        self.counts = torch.zeros(len(clips), device=self.valid.device)
        self.totals: dict[str, Tensor] = {}

    def __call__(self, output: StudentOutput, rows: Tensor) -> None:
        """Add the scores of a batch of windows; `rows` (B,) are those of their clips."""
        batch = {letter: table.take(rows) for letter, table in self.teachers.items()}
        self.counts.index_add_(0, rows, self.counts.new_ones(len(rows)))
        for name, value in self.distiller.scores(output, batch).items():
            self.totals.setdefault(name, torch.zeros_like(self.counts)).index_add_(0, rows, value.float())

    def table(self, *splits: str) -> pd.DataFrame:
        """Return the means of the clips of some splits: id, split, relevant, and a column per score.

        Clips without sound are left out."""
        columns = {name: (total / self.counts).cpu().numpy() for name, total in self.totals.items()}
        table = self.clips.rows[["id", "split"]].assign(relevant=self.clips.rows.get("relevant", ""), **columns)
        return table[self.valid.cpu().numpy() & table["split"].isin(splits).to_numpy()]


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
    tests = clips.rows_in("test")
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
