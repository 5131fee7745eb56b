"""params.yaml as typed, validated objects: the one place that says what a suite may contain.

A *suite* is one params file and the graph it spans. A *run* is a named entry under a cell: a method, its teachers
and what is changed. A *cell* is a group of runs and seeds that one process trains.

`load` checks everything that needs no tensor library (types, ranges, unknown keys, names that refer to each
other); `stages.check` adds what does (the options of each method).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdistill.config.schema import Cell, Features, Params
from avdistill.config.types import NAME, NO_TEACHER
from avdistill.pipeline.errors import UserError, nearest


def check_references(path: Path, params: Params) -> None:
    """Names must be plain (they become file names) and must refer to what exists."""

    def known(key: str, name: str, choices: dict[str, Any], what: str) -> None:
        if name not in choices:
            raise UserError(f"{path}: {key}: there is no {what} '{name}'; {nearest(name, choices)}")

    sections: dict[str, dict[str, Any]] = {
        "datasets": params.datasets,
        "frames": params.frames,
        "noise_mixes": params.noise_mixes,
        "teachers": params.teachers,
        "features": params.features,
        "recipes": params.recipes,
        "cells": params.cells,
        "studies": params.studies,
    }
    for cell_name, cell in params.cells.items():
        sections[f"cells.{cell_name}.runs"] = dict(cell.runs)
    for section, entries in sections.items():
        for name in entries:
            if not NAME.fullmatch(name) or name.endswith("."):
                raise UserError(
                    f"{path}: {section}: '{name}' is not a name; use letters, digits, '_', '-' and '.', "
                    "beginning with a letter or digit"
                )
    for section in ("features", "teachers"):
        if NO_TEACHER in sections[section]:
            raise UserError(f"{path}: {section}: '{NO_TEACHER}' is reserved for the absence of a teacher")

    audio = {f"spectrogram/{name}": name for name in params.datasets}
    audio |= {f"mix_noise/{name}": mix.dataset for name, mix in params.noise_mixes.items()}
    pictures = {f"frames/{name}": frames.dataset for name, frames in params.frames.items()}
    for name in params.exports:
        known("exports", name, params.datasets, "dataset")
    for name, frames in params.frames.items():
        known(f"frames.{name}.dataset", frames.dataset, params.datasets, "dataset")
    for name, mix in params.noise_mixes.items():
        known(f"noise_mixes.{name}.dataset", mix.dataset, params.datasets, "dataset")
    for name, features in params.features.items():
        key = f"features.{name}"
        known(f"{key}.dataset", features.dataset, params.datasets, "dataset")
        if features.published is not None:
            _check_published(path, key, features)
            continue
        if features.source is not None:
            raise UserError(f"{path}: {key}.source: only published features have a source; set {key}.published too")
        known(f"{key}.teacher", features.teacher, params.teachers, "teacher")
        hears = params.teachers[features.teacher].kind == "cnn14"
        inputs = audio if hears else pictures
        known(f"{key}.input", features.input, inputs, f"{'sound' if hears else 'picture'} input")
        if inputs[features.input] != features.dataset:
            raise UserError(f"{path}: {key}.input: {features.input} is not of dataset '{features.dataset}'")
    owner: dict[str, str] = {}
    for name, cell in params.cells.items():
        key = f"cells.{name}"
        known(f"{key}.dataset", cell.dataset, params.datasets, "dataset")
        known(f"{key}.recipe", cell.recipe, params.recipes, "recipe")
        listens = params.recipes[cell.recipe].student.endswith("_audio")
        inputs = audio if listens else pictures
        known(f"{key}.input", cell.input, inputs, f"input for student {params.recipes[cell.recipe].student}")
        if inputs[cell.input] != cell.dataset:
            raise UserError(f"{path}: {key}.input: {cell.input} is not of dataset '{cell.dataset}'")
        _check_seeds(path, key, cell)
        for letter in "AI":
            features_name = getattr(cell, letter)
            if features_name != NO_TEACHER:
                known(f"{key}.{letter}", features_name, params.features, "features entry")
                if params.features[features_name].dataset != cell.dataset:
                    raise UserError(
                        f"{path}: {key}.{letter}: features '{features_name}' are of dataset "
                        f"'{params.features[features_name].dataset}', the cell trains on '{cell.dataset}'"
                    )
        if cell.S != NO_TEACHER:
            _check_earlier(path, key, cell, params)
        for run_name, run in cell.runs.items():
            if run_name in owner:
                raise UserError(
                    f"{path}: {key}.runs.{run_name}: a run of that name stands in cell '{owner[run_name]}' too"
                )
            owner[run_name] = name
            for letter in run.teachers:
                if getattr(cell, letter) == NO_TEACHER:
                    raise UserError(
                        f"{path}: {key}.runs.{run_name}.teachers: the run listens to teacher {letter}, "
                        f"but {key}.{letter} names none"
                    )
    _check_order(path, params)
    for name, study in params.studies.items():
        for cell_name in study.cells:
            known(f"studies.{name}.cells", cell_name, params.cells, "cell")
    for name in params.cells if params.studies else ():
        if not params.study_of(name):
            raise UserError(f"{path}: studies: cell '{name}' stands in no study; add it to the cells of one")
    runs = params.runs()
    known("report.baseline", params.report.baseline, runs, "run")
    if params.report.proposed is not None:
        known("report.proposed", params.report.proposed, runs, "run")
    for run_name in params.report.cost:
        known("report.cost", run_name, runs, "run")
    for name, table in params.report.tables.items():
        for row, run_name in table.rows.items():
            known(f"report.tables.{name}.rows.{row}", run_name, runs, "run")
    for figure, shown in params.report.figures.runs().items():
        for run_name in shown:
            known(f"report.figures.{figure}", run_name, runs, "run")
    if params.report.figures.heard:
        known("report.figures.heard", params.report.figures.heard, params.features, "features entry")
    _check_figures(path, params)


def _check_seeds(path: Path, key: str, cell: Cell) -> None:
    """No seed stands twice, and no run has more repeats than its cell has seeds."""
    if len(set(cell.seeds)) != len(cell.seeds):
        raise UserError(f"{path}: {key}.seeds: a seed stands twice in {list(cell.seeds)}")
    for name, run in cell.runs.items():
        if run.repeats and run.repeats > len(cell.seeds):
            raise UserError(
                f"{path}: {key}.runs.{name}.repeats: expected at most {len(cell.seeds)}, the number of the cell's "
                f"seeds, found {run.repeats}"
            )


def _check_published(path: Path, key: str, features: Features) -> None:
    """Published features come from no teacher of the suite; all that they need of the dataset is its index."""
    for name, expected in {"teacher": NO_TEACHER, "input": f"split/{features.dataset}"}.items():
        if getattr(features, name) != expected:
            raise UserError(
                f"{path}: {key}.{name}: published features need '{expected}', found '{getattr(features, name)}'"
            )


def _check_figures(path: Path, params: Params) -> None:
    """What one figure shows must be of one kind, and have what the figure needs."""
    figures, runs = params.report.figures, params.runs()

    def cell(run: str) -> Cell:
        return params.cells[runs[run][0]]

    for name, shown in figures.runs().items():
        key = f"{path}: report.figures.{name}"
        beside = (
            params.report.baseline if name in ("training_curves", "gain_per_class", "noise") else next(iter(shown), "")
        )
        for run in shown:
            if name in ("attention", "retrieval") and not cell(run).input.startswith("frames/"):
                raise UserError(f"{key}: {run} takes {cell(run).input}; expected a run that takes frames/…")
            for part in ("dataset", "input", "recipe") if name != "scores" else ():
                ours, other = getattr(cell(run), part), getattr(cell(beside), part)
                if ours != other:
                    raise UserError(
                        f"{key}: {run} has {part} '{ours}', {beside} has '{other}'; the runs of one figure share it"
                    )
    for label, curve in figures.noise.items():
        for level, run in curve.items():
            features = cell(run).A
            source = params.features[features].input if features != NO_TEACHER else ""
            mix = params.noise_mixes.get(source.removeprefix("mix_noise/"))
            found = mix.snr_db if mix and source.startswith("mix_noise/") else "clean"
            if level != found:
                raise UserError(f"{path}: report.figures.noise.{label}.{level}: the sound of {run} is at {found}")
    if figures.heard and not params.features[figures.heard].input.startswith("spectrogram/"):
        heard = params.features[figures.heard].input
        raise UserError(
            f"{path}: report.figures.heard: {figures.heard} is of {heard}; expected features of spectrogram/…"
        )


def _check_earlier(path: Path, key: str, cell: Cell, params: Params) -> None:
    """S must be a run of another cell that sees the same classes and has every seed of those that listen to it."""
    choices = [f"{name}/{run}" for name, other in params.cells.items() for run in other.runs if other is not cell]
    if cell.S not in choices:
        raise UserError(f"{path}: {key}.S: there is no run '{cell.S}'; {nearest(cell.S, choices)}")
    other_name, _, run = cell.S.partition("/")
    other = params.cells[other_name]
    if (other.dataset, other.input) != (cell.dataset, cell.input):
        raise UserError(f"{path}: {key}.S: {cell.S} is trained on {other.input}, this cell on {cell.input}")
    seeds = {seed for name, seed in cell.trainings() if "S" in cell.runs[name].teachers}
    if lacking := sorted(seeds - set(other.seeds_of(run))):
        raise UserError(f"{path}: {key}.S: {cell.S} is not trained with seed {lacking[0]}")


def _check_order(path: Path, params: Params) -> None:
    """Cells that are each other's earlier students could never be trained."""
    for name in params.cells:
        seen = [name]
        while (earlier := params.cells[seen[-1]].S) != NO_TEACHER:
            seen.append(earlier.split("/")[0])
            if seen[-1] in seen[:-1]:
                raise UserError(f"{path}: cells.{name}.S: {' needs '.join(seen)}: a circle")
