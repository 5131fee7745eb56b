"""Tasks: what one training, or one evaluation, needs, with the path of each of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from avdistill.config.schema import Params, Recipe
from avdistill.config.types import NO_TEACHER
from avdistill.data.draws import draw_of, of_draw
from avdistill.tracking.journal import TrackedRun


class TeacherFiles(NamedTuple):
    """The folders of a teacher's features and of the logits of its head, and the folds that the head is fitted in."""

    features: Path
    head: Path
    cross_fit: int


class TrainedStudent(NamedTuple):
    """A trained student: its run, its seed, and the file that its training leaves."""

    run: str
    seed: int
    recipe: Recipe
    weights: Path


@dataclass(frozen=True)
class Task:
    """One training, or one evaluation: a run with a seed. Small enough to be sent to a worker process.

    `teachers` are what teaches the student, by letter (A, I or S). `folder` is where results go."""

    place: str  # of the run in the params file, for messages
    method: str
    student: TrainedStudent
    draw: int  # of teachers and first weights
    index: Path  # the table of clips
    store: Path  # the student's input
    first_weights: Path | None
    teachers: dict[str, TeacherFiles | TrainedStudent]
    options: dict[str, Any]
    shuffled: Literal["other_class", "within_class"] | None
    device: str
    folder: Path
    tracked: TrackedRun

    @property
    def run(self) -> str:
        """The name of the run."""
        return self.student.run

    @property
    def seed(self) -> int:
        """The seed."""
        return self.student.seed

    @property
    def recipe(self) -> Recipe:
        """The recipe of the student."""
        return self.student.recipe

    @property
    def result(self) -> Path:
        """The folder of what is made of this run and seed; with a suffix, its files."""
        return self.folder / self.run / f"seed-{self.seed}"


def task_of(params: Params, run: str, seed: int, device: str, folder: Path, tracked: TrackedRun) -> Task:
    """Return the task of a run and a seed."""
    name, entry = params.runs()[run]
    job = params.jobs[name]
    teachers: dict[str, TeacherFiles | TrainedStudent] = {}
    for letter in entry.teachers:
        taught_by = getattr(job, letter)
        if letter == "S":
            teachers[letter] = trained_student(params, taught_by.split("/")[1], seed)
        else:
            draw = of_draw(draw_of(params, seed, params.features[taught_by].teacher))
            features, head = (params.path(stage, taught_by) / draw for stage in ("teacher_features", "teacher_head"))
            teachers[letter] = TeacherFiles(features, head, params.features[taught_by].cross_fit)
    first_weights = None
    if job.init != NO_TEACHER:
        first_weights = params.path("teachers", job.init) / of_draw(draw_of(params, seed, job.init)) / "weights.pt"
    return Task(
        place=f"{params.suite.file}: jobs.{name}.runs.{run}",
        method=job.method,
        student=trained_student(params, run, seed),
        draw=draw_of(params, seed),
        index=params.index(job.dataset),
        store=params.path(*job.input.split("/")),
        first_weights=first_weights,
        teachers=teachers,
        options=entry.options,
        shuffled=entry.shuffled,
        device=device,
        folder=folder,
        tracked=tracked,
    )


def trained_student(params: Params, run: str, seed: int) -> TrainedStudent:
    """Return the student of a run and a seed, which may not be trained yet."""
    job = params.runs()[run][0]
    weights = params.path("train", job) / run / f"seed-{seed}.pt"
    return TrainedStudent(run, seed, params.recipes[params.jobs[job].recipe], weights)
