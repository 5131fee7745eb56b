"""Draws of a teacher: trainings of one teacher that differ by their seed, so that intervals cover its training, too.

Draw d of a teacher that is trained here is trained with its `seed` + d. A student with seed s has draw s mod `draws` of
its teachers and of its first weights, in training and in evaluation: with one seed all runs have the same draws, and so
stay paired. Seeds that share a draw are not independent; statistics average over them first
(avdistill/reporting/results.py).

Draw 0 has the paths that the files of a teacher with one draw have, draw d has them in a folder `draw-<d>`. Where one
draw stands for all (figures of one teacher, predictors from features), it is draw 0.
"""

from __future__ import annotations

from avdistill.config.schema import Params


def of_draw(draw: int) -> str:
    """Return what distinguishes the paths and the metrics of a draw: `draw-<d>/`; empty for draw 0."""
    return f"draw-{draw}/" if draw else ""


def draws_of(params: Params, teacher: str | None = None) -> int:
    """Return the draws of a teacher (1 if `teacher` is `none`), by default of the teachers that have several."""
    teachers = params.teachers if teacher is None else {teacher: params.teachers.get(teacher)}
    return max((entry.draws for entry in teachers.values() if entry), default=1)


def draw_of(params: Params, seed: int, teacher: str | None = None) -> int:
    """Return the draw of a teacher for students with a seed, by default of the teachers that have several draws."""
    return seed % draws_of(params, teacher)
