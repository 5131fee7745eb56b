"""Check the names in params.yaml: valid as file names, and referring to existing, compatible entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdistill.config.report_references import check_report
from avdistill.config.schema import Features, Job, Params
from avdistill.config.types import NAME, NO_TEACHER, STUDENTS
from avdistill.pipeline.errors import UserError, check_exists


def check_references(path: Path, params: Params) -> None:
    """Check all names and references of a suite. Raises UserError for the first that is wrong."""
    try:
        _check_names(params)
        _check_draws(params)
        for name in params.exports:
            check_exists("exports", name, params.datasets, "dataset")
        for name, frames in params.frames.items():
            check_exists(f"frames.{name}.dataset", frames.dataset, params.datasets, "dataset")
        for name, mix in params.noise_mixes.items():
            check_exists(f"noise_mixes.{name}.dataset", mix.dataset, params.datasets, "dataset")
        for name, features in params.features.items():
            _check_features(f"features.{name}", features, params)
        for name, job in params.jobs.items():
            _check_job(f"jobs.{name}", job, params)
        _check_runs(params)
        _check_order(params)
        _check_studies(params)
        check_report(params)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_names(params: Params) -> None:
    """Check that all entries have names that can be names of files, and none that means no teacher."""
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
    sections |= {f"jobs.{name}.runs": dict(job.runs) for name, job in params.jobs.items()}
    for section, entries in sections.items():
        for name in entries:
            if not NAME.fullmatch(name) or name.endswith("."):
                raise UserError(
                    f"{section}: '{name}' is not a valid name; use letters, digits, '_', '-' and '.', beginning with a "
                    "letter or digit"
                )
    for section in ("features", "teachers"):
        if NO_TEACHER in sections[section]:
            raise UserError(f"{section}: '{NO_TEACHER}' means no teacher; choose another name")


def _check_draws(params: Params) -> None:
    """Check that all teachers with several draws have as many."""
    several = {name: teacher.draws for name, teacher in params.teachers.items() if teacher.draws > 1}
    for name, draws in several.items():
        first, number = next(iter(several.items()))
        if draws != number:
            raise UserError(f"teachers.{name}.draws: expected 1, or {number} as {first} has, found {draws}")


def _inputs(params: Params, audio: bool) -> dict[str, str]:
    """Return the inputs of networks that hear, or of those that see, with their datasets."""
    if not audio:
        return {f"frames/{name}": frames.dataset for name, frames in params.frames.items()}
    mixes = {f"mix_noise/{name}": mix.dataset for name, mix in params.noise_mixes.items()}
    return {f"spectrogram/{name}": name for name in params.datasets} | mixes


def _check_features(key: str, features: Features, params: Params) -> None:
    """Check that features have a dataset, and a teacher with an input that suits both; published ones have neither."""
    check_exists(f"{key}.dataset", features.dataset, params.datasets, "dataset")
    if features.published is not None:
        for name, expected in {"teacher": NO_TEACHER, "input": f"split/{features.dataset}"}.items():
            if (found := getattr(features, name)) != expected:
                raise UserError(f"{key}.{name}: expected '{expected}' for published features, found '{found}'")
        return
    if features.source is not None:
        raise UserError(f"{key}.source: only published features have a source; set `published` or remove it")
    check_exists(f"{key}.teacher", features.teacher, params.teachers, "teacher")
    kind = params.teachers[features.teacher].kind
    if kind == "truth":
        check_exists(f"{key}.input", features.input, {f"split/{features.dataset}"}, "input for kind truth")
        return
    if kind in STUDENTS:
        raise UserError(f"{key}.teacher: '{features.teacher}' is what students start from, not a teacher")
    audio = kind == "cnn14"
    inputs = _inputs(params, audio)
    check_exists(f"{key}.input", features.input, inputs, f"{'audio' if audio else 'frames'} input")
    if inputs[features.input] != features.dataset:
        raise UserError(
            f"{key}.input: {features.input} is of dataset '{inputs[features.input]}', "
            f"expected one of '{features.dataset}'"
        )


def _check_job(key: str, job: Job, params: Params) -> None:
    """Check that what a job names exists and is of its dataset, and that its student can start from `init`."""
    check_exists(f"{key}.dataset", job.dataset, params.datasets, "dataset")
    check_exists(f"{key}.recipe", job.recipe, params.recipes, "recipe")
    recipe = params.recipes[job.recipe]
    inputs = _inputs(params, audio=recipe.student.endswith("_audio"))
    check_exists(f"{key}.input", job.input, inputs, f"input for student {recipe.student}")
    if inputs[job.input] != job.dataset:
        raise UserError(
            f"{key}.input: {job.input} is of dataset '{inputs[job.input]}', expected one of '{job.dataset}'"
        )
    _check_seeds(key, job)
    if job.init != NO_TEACHER:
        check_exists(f"{key}.init", job.init, params.teachers, "teacher")
        init = params.teachers[job.init]
        if (init.kind, init.width) != (recipe.student, recipe.width):
            raise UserError(
                f"{key}.init: '{job.init}' is a {init.kind} of width {init.width:g}, the student of recipe "
                f"'{job.recipe}' a {recipe.student} of width {recipe.width:g}; expected the same"
            )
    for letter in "AI":
        name = getattr(job, letter)
        if name != NO_TEACHER:
            check_exists(f"{key}.{letter}", name, params.features, "features entry")
            if (found := params.features[name].dataset) != job.dataset:
                raise UserError(
                    f"{key}.{letter}: features '{name}' are of dataset '{found}', the job trains on '{job.dataset}'"
                )
    if job.S != NO_TEACHER:
        _check_earlier_student(key, job, params)


def _check_seeds(key: str, job: Job) -> None:
    """Check that the seeds of a job are unique and no run has more repeats than there are seeds."""
    if len(set(job.seeds)) != len(job.seeds):
        raise UserError(f"{key}.seeds: expected unique seeds, one occurs twice in {list(job.seeds)}")
    for name, run in job.runs.items():
        if run.repeats and run.repeats > len(job.seeds):
            raise UserError(
                f"{key}.runs.{name}.repeats: expected at most {len(job.seeds)}, the number of the job's seeds, "
                f"found {run.repeats}"
            )


def _check_earlier_student(key: str, job: Job, params: Params) -> None:
    """Check that S is a run of another job, with the same dataset and input and all seeds of the runs that use it."""
    choices = [f"{name}/{run}" for name, other in params.jobs.items() for run in other.runs if other is not job]
    check_exists(f"{key}.S", job.S, choices, "run")
    other_name, _, run = job.S.partition("/")
    other = params.jobs[other_name]
    if (other.dataset, other.input) != (job.dataset, job.input):
        raise UserError(f"{key}.S: {job.S} is trained on {other.input}, expected {job.input} as for this job")
    seeds = {seed for name, seed in job.trainings() if "S" in job.runs[name].teachers}
    if missing := sorted(seeds - set(other.seeds_of(run))):
        raise UserError(f"{key}.S: expected a run with seed {missing[0]}, {job.S} has no such seed")


def _check_runs(params: Params) -> None:
    """Check that no two jobs have a run of one name, and that jobs name the teachers that their runs use."""
    owner: dict[str, str] = {}
    for name, job in params.jobs.items():
        for run_name, run in job.runs.items():
            key = f"jobs.{name}.runs.{run_name}"
            if run_name in owner:
                raise UserError(f"{key}: job '{owner[run_name]}' has a run of this name too; rename one")
            owner[run_name] = name
            for letter in run.teachers:
                if getattr(job, letter) == NO_TEACHER:
                    raise UserError(
                        f"{key}.teachers: the run uses teacher {letter}, but jobs.{name}.{letter} is '{NO_TEACHER}'; "
                        "expected the name of a teacher's features"
                    )


def _check_order(params: Params) -> None:
    """Check that the references of S between jobs have no cycle."""
    for name in params.jobs:
        seen = [name]
        while (earlier := params.jobs[seen[-1]].S) != NO_TEACHER:
            seen.append(earlier.split("/")[0])
            if seen[-1] in seen[:-1]:
                raise UserError(f"jobs.{name}.S: {' needs '.join(seen)}: a cycle; expected an earlier student")


def _check_studies(params: Params) -> None:
    """Check that studies have jobs that exist, and that each job is in one, if there are studies."""
    for name, study in params.studies.items():
        for job_name in study.jobs:
            check_exists(f"studies.{name}.jobs", job_name, params.jobs, "job")
    for name in params.jobs if params.studies else ():
        if not params.study_of(name):
            raise UserError(f"studies: job '{name}' is in no study; add it to the jobs of one")
