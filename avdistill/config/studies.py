"""Targets of `dvc repro`; as a program, print those of a study.

    dvc repro $(python -m avdistill.config.studies PARAMS STUDY)

updates the runs of one study, from the videos to the evaluation, and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.config.types import NO_TEACHER
from avdistill.pipeline.errors import UserError, nearest


def in_graph_of(file: Path, stage: str) -> str:
    """Return the target of `dvc repro`, run at the root of the repository, for a stage of the suite that has `file`.

    `file` is relative to the root and lies beside the suite's dvc.yaml, as its params file and its dvc.lock do:
    `train@kd`, or `paper/dvc.yaml:train@kd` for a suite in a folder."""
    return stage if file.parent == Path() else f"{file.parent.as_posix()}/dvc.yaml:{stage}"


def target(params: Params, stage: str, item: str | None = None) -> str:
    """Return the target of `dvc repro`, run at the root of the repository, that makes `<out>/<stage>/<item>`.

    Without an item, all items of the stage. The outputs of item `none` are placeholders, which stage check writes."""
    if item == NO_TEACHER:
        stage, item = "check", None
    return in_graph_of(Path(params.suite.file), f"{stage}@{item}" if item else stage)


def targets(params: Params, study: str) -> list[str]:
    """Return the targets of `dvc repro` for a study: the evaluation of each of its jobs.

    Raises UserError if there is no such study."""
    if study not in params.studies:
        raise UserError(f"{params.suite.file}: studies: there is no study '{study}'; {nearest(study, params.studies)}")
    return [target(params, "evaluate", job) for job in params.studies[study].jobs]


def main(arguments: list[str]) -> None:
    """Print the targets on one line."""
    if len(arguments) != 2:
        sys.exit("usage: python -m avdistill.config.studies PARAMS STUDY")
    try:
        print(*targets(load(arguments[0]), arguments[1]))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
