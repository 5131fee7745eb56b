"""Stage check: validate the params file before hours of work start.

`avdistill.config` checks types, ranges and names; this stage adds the checks that need the code of the methods or the
file system. It writes, under check/, <section>.json, <section>/<entry>.json and datasets/<entry>/<key>.json. Other
stages depend on these files, so a change of params reruns only the stages that it affects. The files include defaults,
so a changed default counts as a change. Keys whose value is None are left out: a new optional
key is no change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdistill.config.schema import Params, Teacher
from avdistill.config.types import NO_TEACHER
from avdistill.data import datasets
from avdistill.data.files import write_json, write_text
from avdistill.data.sources import published_features, weights
from avdistill.pipeline.errors import UserError, nearest
from avdistill.pipeline.stage import Stage
from avdistill.reporting import results


def check(file: str, params: Params) -> None:
    """Check params. Raises UserError for the first problem: one line with the key and what is expected."""
    for name, dataset in params.datasets.items():
        try:
            datasets.of(dataset.origin).check(dataset.origin)
        except UserError as error:
            raise UserError(f"{file}: datasets.{name}.origin: {error}") from None
    for name, teacher in params.teachers.items():
        if teacher.kind != "truth":
            _check_weights(f"{file}: teachers.{name}", teacher)
    for name, features in params.features.items():
        try:
            published_features.check(features)
        except UserError as error:
            raise UserError(f"{file}: features.{name}.{error}") from None
    results.check_tables(params)
    # Importing the methods costs seconds, so it comes last.
    from models import distillers

    known = distillers.methods()
    for name, job in params.jobs.items():
        if job.method not in known:
            raise UserError(
                f"{file}: jobs.{name}.method: there is no method '{job.method}'; {nearest(job.method, known)}"
            )
        for run_name, run in job.runs.items():
            try:
                distillers.check_options(job.method, run.options, run.teachers)
            except ValueError as error:
                raise UserError(f"{file}: jobs.{name}.runs.{run_name}: {error}") from None


def _check_weights(key: str, teacher: Teacher) -> None:
    """Check that weights are `avsynth`, a published checkpoint of the teacher's kind, or an existing file."""
    known = weights.CHECKPOINTS.get(teacher.weights)
    if known is not None and known.kind != teacher.kind:
        raise UserError(
            f"{key}.kind: {teacher.weights} is a {known.kind} checkpoint; expected {known.kind}, found {teacher.kind}"
        )
    if known is None and (teacher.mirror or teacher.checksum):
        raise UserError(
            f"{key}.weights: mirror and checksum need a published checkpoint, '{teacher.weights}' is not one; "
            f"{nearest(teacher.weights, weights.CHECKPOINTS)}"
        )
    if known is None and teacher.weights != "avsynth" and not Path(teacher.weights).is_file():
        fitting = [name for name, other in weights.CHECKPOINTS.items() if other.kind == teacher.kind]
        raise UserError(
            f"{key}.weights: there is no file and no published checkpoint '{teacher.weights}'; expected the path of a "
            f"{teacher.kind} checkpoint, avsynth to train a small one, or a published one: "
            f"{nearest(teacher.weights, fitting)}"
        )


def main(stage: Stage) -> None:
    """Check the suite, write its entries, and write the placeholder outputs of teacher `none`."""
    check(stage.params.suite.file, stage.params)
    with stage.output() as folder:
        for name, section in stage.params.model_dump(mode="json", exclude_none=True).items():
            _write(folder / name, section, depth=3 if name == "datasets" else 2)
    for kind in ("teachers", "teacher_features", "teacher_head", "train"):
        write_text(stage.params.path(kind, NO_TEACHER) / "README", "placeholder for jobs without a teacher\n")


def _write(path: Path, value: Any, depth: int) -> None:
    """Write <path>.json, and for mappings <path>/<key>.json of each key, down to `depth` levels."""
    write_json(path.with_name(f"{path.name}.json"), value)
    if depth > 1 and isinstance(value, dict):
        for key, inner in value.items():
            _write(path / key, inner, depth - 1)
