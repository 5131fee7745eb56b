"""Stage check: the whole params file, before hours of work start.

`stages.params` checks types, ranges and names; this adds what needs the methods' own code and a look at the
datasets' folders. What it says is the same for every valid file, so a change that is valid reruns nothing by itself;
beside that it writes each section of the params to a file, for stages that sum up what all cells made.
"""

from __future__ import annotations

from pathlib import Path

from stages import checkpoints, datasets, published, results, stores
from stages.errors import UserError, nearest
from stages.params import NO_TEACHER, Params, Teacher
from stages.stage import Stage


def check(file: str, params: Params) -> None:
    """Raises UserError for the first thing that would fail later; one line naming the key and what was expected."""
    for name, dataset in params.datasets.items():
        try:
            datasets.of(dataset.origin).check(dataset.origin)
        except UserError as error:
            raise UserError(f"{file}: datasets.{name}.origin: {error}") from None
    for name, teacher in params.teachers.items():
        _check_weights(f"{file}: teachers.{name}", teacher)
    for name, features in params.features.items():
        try:
            published.check(features)
        except UserError as error:
            raise UserError(f"{file}: features.{name}.{error}") from None
    results.check_tables(params)
    # Importing the methods costs seconds, so it comes last.
    from models import distillers

    known = distillers.methods()
    for name, cell in params.cells.items():
        if cell.method not in known:
            raise UserError(
                f"{file}: cells.{name}.method: there is no method '{cell.method}'; {nearest(cell.method, known)}"
            )
        for run_name, run in cell.runs.items():
            try:
                distillers.check_options(cell.method, run.options, run.teachers)
            except ValueError as error:
                raise UserError(f"{file}: cells.{name}.runs.{run_name}: {error}") from None


def _check_weights(key: str, teacher: Teacher) -> None:
    """A teacher's weights are made here, published for a teacher of its kind, or a file that is there."""
    known = checkpoints.CHECKPOINTS.get(teacher.weights)
    if known is not None and known.kind != teacher.kind:
        raise UserError(f"{key}.kind: {teacher.weights} is a checkpoint of a {known.kind}, not of a {teacher.kind}")
    if known is None and (teacher.mirror or teacher.checksum):
        raise UserError(
            f"{key}.weights: mirror and checksum are for published checkpoints, and '{teacher.weights}' is none; "
            f"{nearest(teacher.weights, checkpoints.CHECKPOINTS)}"
        )
    if known is None and teacher.weights != "avsynth" and not Path(teacher.weights).is_file():
        fitting = [name for name, other in checkpoints.CHECKPOINTS.items() if other.kind == teacher.kind]
        raise UserError(
            f"{key}.weights: there is no file '{teacher.weights}', and no published checkpoint of that name; give the "
            f"path of a {teacher.kind} checkpoint, avsynth to train a small one here, or a published one: "
            f"{nearest(teacher.weights, fitting)}"
        )


def main(stage: Stage) -> None:
    """Check the suite, write its sections, and make the empty teacher that cells name where they have none."""
    check(stage.params.suite.file, stage.params)
    with stage.output() as folder:
        stores.write_text(folder / "valid.txt", "the params file is valid\n")
    for name, section in stage.params.model_dump(mode="json").items():
        stores.write_json(stage.params.path("params", f"{name}.json"), section)
    for kind in ("teachers", "teacher_features", "teacher_head", "train"):
        stores.write_text(stage.params.path(kind, NO_TEACHER) / "README", "the absence of a teacher\n")
