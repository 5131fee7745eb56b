"""Check that names in params.yaml are valid file names and refer to entries that exist and fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdistill.config.schema import Features, Job, Params
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
        "jobs": params.jobs,
        "studies": params.studies,
    }
    for job_name, job in params.jobs.items():
        sections[f"jobs.{job_name}.runs"] = dict(job.runs)
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
    for name, job in params.jobs.items():
        key = f"jobs.{name}"
        known(f"{key}.dataset", job.dataset, params.datasets, "dataset")
        known(f"{key}.recipe", job.recipe, params.recipes, "recipe")
        listens = params.recipes[job.recipe].student.endswith("_audio")
        inputs = audio if listens else pictures
        known(f"{key}.input", job.input, inputs, f"input for student {params.recipes[job.recipe].student}")
        if inputs[job.input] != job.dataset:
            raise UserError(f"{path}: {key}.input: {job.input} is not of dataset '{job.dataset}'")
        _check_seeds(path, key, job)
        for letter in "AI":
            features_name = getattr(job, letter)
            if features_name != NO_TEACHER:
                known(f"{key}.{letter}", features_name, params.features, "features entry")
                if params.features[features_name].dataset != job.dataset:
                    raise UserError(
                        f"{path}: {key}.{letter}: features '{features_name}' are of dataset "
                        f"'{params.features[features_name].dataset}', the job trains on '{job.dataset}'"
                    )
        if job.S != NO_TEACHER:
            _check_earlier(path, key, job, params)
        for run_name, run in job.runs.items():
            if run_name in owner:
                raise UserError(
                    f"{path}: {key}.runs.{run_name}: a run of that name stands in job '{owner[run_name]}' too"
                )
            owner[run_name] = name
            for letter in run.teachers:
                if getattr(job, letter) == NO_TEACHER:
                    raise UserError(
                        f"{path}: {key}.runs.{run_name}.teachers: the run listens to teacher {letter}, "
                        f"but {key}.{letter} names none"
                    )
    _check_order(path, params)
    for name, study in params.studies.items():
        for job_name in study.jobs:
            known(f"studies.{name}.jobs", job_name, params.jobs, "job")
    for name in params.jobs if params.studies else ():
        if not params.study_of(name):
            raise UserError(f"{path}: studies: job '{name}' stands in no study; add it to the jobs of one")
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


def _check_seeds(path: Path, key: str, job: Job) -> None:
    """No seed stands twice, and no run has more repeats than its job has seeds."""
    if len(set(job.seeds)) != len(job.seeds):
        raise UserError(f"{path}: {key}.seeds: a seed stands twice in {list(job.seeds)}")
    for name, run in job.runs.items():
        if run.repeats and run.repeats > len(job.seeds):
            raise UserError(
                f"{path}: {key}.runs.{name}.repeats: expected at most {len(job.seeds)}, the number of the job's "
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

    def job(run: str) -> Job:
        return params.jobs[runs[run][0]]

    for name, shown in figures.runs().items():
        key = f"{path}: report.figures.{name}"
        beside = (
            params.report.baseline if name in ("training_curves", "gain_per_class", "noise") else next(iter(shown), "")
        )
        for run in shown:
            if name in ("attention", "retrieval") and not job(run).input.startswith("frames/"):
                raise UserError(f"{key}: {run} takes {job(run).input}; expected a run that takes frames/…")
            for part in ("dataset", "input", "recipe") if name != "scores" else ():
                ours, other = getattr(job(run), part), getattr(job(beside), part)
                if ours != other:
                    raise UserError(
                        f"{key}: {run} has {part} '{ours}', {beside} has '{other}'; the runs of one figure share it"
                    )
    for label, curve in figures.noise.items():
        for level, run in curve.items():
            features = job(run).A
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


def _check_earlier(path: Path, key: str, job: Job, params: Params) -> None:
    """S must be a run of another job that sees the same classes and has every seed of those that listen to it."""
    choices = [f"{name}/{run}" for name, other in params.jobs.items() for run in other.runs if other is not job]
    if job.S not in choices:
        raise UserError(f"{path}: {key}.S: there is no run '{job.S}'; {nearest(job.S, choices)}")
    other_name, _, run = job.S.partition("/")
    other = params.jobs[other_name]
    if (other.dataset, other.input) != (job.dataset, job.input):
        raise UserError(f"{path}: {key}.S: {job.S} is trained on {other.input}, this job on {job.input}")
    seeds = {seed for name, seed in job.trainings() if "S" in job.runs[name].teachers}
    if lacking := sorted(seeds - set(other.seeds_of(run))):
        raise UserError(f"{path}: {key}.S: {job.S} is not trained with seed {lacking[0]}")


def _check_order(path: Path, params: Params) -> None:
    """Jobs that are each other's earlier students could never be trained."""
    for name in params.jobs:
        seen = [name]
        while (earlier := params.jobs[seen[-1]].S) != NO_TEACHER:
            seen.append(earlier.split("/")[0])
            if seen[-1] in seen[:-1]:
                raise UserError(f"{path}: jobs.{name}.S: {' needs '.join(seen)}: a circle")
