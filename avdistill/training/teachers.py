"""Teacher outputs of every clip for a run, and its distiller."""

from __future__ import annotations

import torch

from avdistill.config.schema import Job, Params, Run
from avdistill.data.loader import ClipSet, teacher_table
from avdistill.training.inference import load_student, predict
from models import distillers
from models.distillers import Distiller
from models.outputs import TeacherBatch
from models.students import Student


def teacher_tables(
    params: Params, job: Job, run: Run, clips: ClipSet, seed: int, device: torch.device
) -> dict[str, TeacherBatch]:
    """Return the outputs of a run's teachers for each clip, on `device`, by letter (A, I or S)."""
    tables = {}
    for letter in run.teachers:
        name = getattr(job, letter)
        if letter == "S":
            tables[letter] = earlier_student(params, name, clips, seed, device)
        else:
            features, head = params.path("teacher_features", name), params.path("teacher_head", name)
            tables[letter] = teacher_table(features, head, clips, distillers.methods()[job.method].uses_blocks)
    return {letter: table.to(device) for letter, table in tables.items()}


def earlier_student(params: Params, name: str, clips: ClipSet, seed: int, device: torch.device) -> TeacherBatch:
    """Return the outputs of the student of `name` ("<job>/<run>") and `seed` for each clip, over its test windows."""
    job, run = name.split("/")
    student, _ = load_student(params, job, run, seed, clips.classes, device)
    probabilities, features = predict(student, clips, params.recipes[params.jobs[job].recipe], device)
    return TeacherBatch(features, probabilities.clamp_min(1e-12).log(), torch.ones(len(clips), dtype=torch.bool))


def build_distiller(
    job: Job, run: Run, student: Student, teachers: dict[str, TeacherBatch], clips: ClipSet
) -> Distiller:
    """Build the distiller of a run for the widths of its student and teachers."""
    return distillers.build(
        job.method,
        student_dim=student.feature_dim,
        stage_dims=student.stage_dims,
        teacher_dims={letter: table.feature.shape[1] for letter, table in teachers.items()},
        classes=clips.classes,
        clips=len(clips),
        options=run.options,
    )
