"""Teacher outputs of every clip for a run, and its distiller."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from avdistill.data.files import read_arrays
from avdistill.data.index import read_index
from avdistill.data.loader import ClipSet, teacher_table
from avdistill.pipeline.errors import UserError
from avdistill.training.heads import fit_head
from avdistill.training.inference import load_student, predict
from avdistill.training.task import Task, TeacherFiles, TrainedStudent
from models import distillers
from models.distillers import Distiller
from models.outputs import TeacherBatch
from models.students import Student


def training_clips(task: Task) -> ClipSet:
    """Return the clips that a task trains on."""
    recipe = task.recipe
    return ClipSet(task.index, task.store, ("train",), recipe.train_groups, task.seed if recipe.resample else None)


def teacher_tables(task: Task, clips: ClipSet, device: torch.device) -> dict[str, TeacherBatch]:
    """Return the outputs of a task's teachers for each clip, on `device`, by letter (A, I or S)."""
    method = distillers.methods()[task.method]
    tables = {}
    for letter, teacher in task.teachers.items():
        if isinstance(teacher, TrainedStudent):
            table = student_table(teacher, clips, device)
        else:
            table = teacher_table(teacher.features, teacher.head, clips, method.uses_blocks)
            if method.uses_logits and task.recipe.train_groups is not None:
                table = table._replace(logits=own_logits(task, teacher, clips, device))
        tables[letter] = table.to(device)
    return tables


def own_logits(task: Task, teacher: TeacherFiles, clips: ClipSet, device: torch.device) -> Tensor:
    """Return the logits (N, C) for each clip of a head that is fitted on the task's own training clips alone.

    Raises UserError if the teacher knows none of them."""
    index = read_index(task.index)
    stored = read_arrays(teacher.features / "features.npz", ("ids", "features", "mask"))
    rows = index.set_index("id").loc[stored["ids"].tolist()].reset_index()
    known = stored["mask"] & (rows["status"] == "ok").to_numpy()
    train = known & rows["id"].isin(training_clips(task).ids).to_numpy()
    if not train.any():
        raise UserError(f"{task.place}: {teacher.features} knows none of the training clips of seed {task.seed}")
    val = known & (rows["split"] == "val").to_numpy()
    head = fit_head(stored["features"], rows, train, val, teacher.cross_fit, device)
    return head.logits[torch.from_numpy(pd.Index(rows["id"]).get_indexer(clips.ids)).to(device)]


def shuffled(
    tables: dict[str, TeacherBatch], labels: Tensor, seed: int, how: Literal["other_class", "within_class"]
) -> dict[str, TeacherBatch]:
    """Give each clip all outputs that the teachers have for a random clip of another class, or of its own.

    The clip is the same for all teachers. `labels` (N,). Raises ValueError as `rows_of_other_classes` does."""
    rows = rows_of_other_classes(labels, seed) if how == "other_class" else rows_within_class(labels, seed)
    return {letter: table.take(rows.to(table.mask.device)) for letter, table in tables.items()}


def rows_within_class(labels: Tensor, seed: int) -> Tensor:
    """Return for each clip the row (N,) of a random clip of its class: a permutation."""
    classes = labels.numpy()
    random = np.random.default_rng((seed, 0, 0, 2))
    rows = np.arange(len(classes))
    for own in np.unique(classes):
        members = np.flatnonzero(classes == own)
        rows[members] = random.permutation(members)
    return torch.from_numpy(rows)


def rows_of_other_classes(labels: Tensor, seed: int) -> Tensor:
    """Return for each clip the row (N,) of a random clip of another class.

    The rows are a permutation, so the outputs of all clips remain in use. If a class has more than half of the clips,
    there is none; then the rows of its surplus are sampled with replacement. Raises ValueError if there is one class
    only."""
    classes = labels.numpy()
    if len(np.unique(classes)) < 2:
        raise ValueError("shuffled needs training clips of two classes or more, found one class")
    random = np.random.default_rng((seed, 0, 0, 1))  # other numbers than (seed, epoch) and (seed, epoch, row) give
    rows = random.permutation(len(classes))
    for clip in np.flatnonzero(classes[rows] == classes):
        own = classes[clip]
        if classes[rows[clip]] != own:  # since an earlier swap
            continue
        # After a swap with one of these, neither clip has a row of its own class.
        free = np.flatnonzero((classes != own) & (classes[rows] != own))
        if len(free):
            other = random.choice(free)
            rows[[clip, other]] = rows[[other, clip]]
        else:
            rows[clip] = random.choice(np.flatnonzero(classes != own))
    return torch.from_numpy(rows)


def student_table(trained: TrainedStudent, clips: ClipSet, device: torch.device) -> TeacherBatch:
    """Return the outputs of a trained student for each clip, averaged over its test windows."""
    student, _ = load_student(trained, clips.classes, device)
    probabilities, features = predict(student, clips, trained.recipe, device)
    return TeacherBatch(features, probabilities.clamp_min(1e-12).log(), torch.ones(len(clips), dtype=torch.bool))


def build_distiller(task: Task, student: Student, teachers: dict[str, TeacherBatch], clips: ClipSet) -> Distiller:
    """Build the distiller of a task for the widths of its student and teachers.

    Raises ValueError if the method does not support them, or cannot use the outputs of a teacher."""
    distiller = distillers.build(
        task.method,
        student_dim=student.feature_dim,
        stage_dims=student.stage_dims,
        teacher_dims={letter: table.feature.shape[1] for letter, table in teachers.items()},
        classes=clips.classes,
        clips=len(clips),
        options=task.options,
    )
    distiller.check_teachers(teachers)
    return distiller
