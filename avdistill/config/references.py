"""Check the names in params.yaml: valid as file names, and referring to existing, compatible entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avdistill.config.schema import Features, Job, Params
from avdistill.config.types import NAME, NO_TEACHER, STUDENTS
from avdistill.pipeline.errors import UserError, nearest


def check_references(path: Path, params: Params) -> None:
    """Check all names and references of a suite. Raises UserError for the first that is wrong."""

    def check_reference(key: str, name: str, choices: dict[str, Any], what: str) -> None:
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
                    f"{path}: {section}: '{name}' is not a valid name; use letters, digits, '_', '-' and '.', "
                    "beginning with a letter or digit"
                )
    for section in ("features", "teachers"):
        if NO_TEACHER in sections[section]:
            raise UserError(f"{path}: {section}: '{NO_TEACHER}' means no teacher; choose another name")

    several = {name: teacher.draws for name, teacher in params.teachers.items() if teacher.draws > 1}
    for name, draws in several.items():
        first, number = next(iter(several.items()))
        if draws != number:
            raise UserError(f"{path}: teachers.{name}.draws: expected 1, or {number} as {first} has, found {draws}")

    audio_inputs = {f"spectrogram/{name}": name for name in params.datasets}
    audio_inputs |= {f"mix_noise/{name}": mix.dataset for name, mix in params.noise_mixes.items()}
    frame_inputs = {f"frames/{name}": frames.dataset for name, frames in params.frames.items()}
    for name in params.exports:
        check_reference("exports", name, params.datasets, "dataset")
    for name, frames in params.frames.items():
        check_reference(f"frames.{name}.dataset", frames.dataset, params.datasets, "dataset")
    for name, mix in params.noise_mixes.items():
        check_reference(f"noise_mixes.{name}.dataset", mix.dataset, params.datasets, "dataset")
    for name, features in params.features.items():
        key = f"features.{name}"
        check_reference(f"{key}.dataset", features.dataset, params.datasets, "dataset")
        if features.published is not None:
            _check_published(path, key, features)
            continue
        if features.source is not None:
            raise UserError(
                f"{path}: {key}.source: only published features have a source; set `published` or remove it"
            )
        check_reference(f"{key}.teacher", features.teacher, params.teachers, "teacher")
        kind = params.teachers[features.teacher].kind
        if kind == "truth":
            check_reference(f"{key}.input", features.input, {f"split/{features.dataset}": ""}, "input for kind truth")
            continue
        if kind in STUDENTS:
            raise UserError(f"{path}: {key}.teacher: '{features.teacher}' is what students start from, not a teacher")
        is_audio = kind == "cnn14"
        inputs = audio_inputs if is_audio else frame_inputs
        check_reference(f"{key}.input", features.input, inputs, f"{'audio' if is_audio else 'frames'} input")
        if inputs[features.input] != features.dataset:
            raise UserError(
                f"{path}: {key}.input: {features.input} is of dataset '{inputs[features.input]}', "
                f"expected one of '{features.dataset}'"
            )
    owner: dict[str, str] = {}
    for name, job in params.jobs.items():
        key = f"jobs.{name}"
        check_reference(f"{key}.dataset", job.dataset, params.datasets, "dataset")
        check_reference(f"{key}.recipe", job.recipe, params.recipes, "recipe")
        student = params.recipes[job.recipe].student
        inputs = audio_inputs if student.endswith("_audio") else frame_inputs
        check_reference(f"{key}.input", job.input, inputs, f"input for student {student}")
        if inputs[job.input] != job.dataset:
            raise UserError(
                f"{path}: {key}.input: {job.input} is of dataset '{inputs[job.input]}', expected one of '{job.dataset}'"
            )
        _check_seeds(path, key, job)
        if job.init != NO_TEACHER:
            check_reference(f"{key}.init", job.init, params.teachers, "teacher")
            init, recipe = params.teachers[job.init], params.recipes[job.recipe]
            if (init.kind, init.width) != (recipe.student, recipe.width):
                raise UserError(
                    f"{path}: {key}.init: '{job.init}' is a {init.kind} of width {init.width:g}, the student of recipe "
                    f"'{job.recipe}' a {recipe.student} of width {recipe.width:g}; expected the same"
                )
        for letter in "AI":
            features_name = getattr(job, letter)
            if features_name != NO_TEACHER:
                check_reference(f"{key}.{letter}", features_name, params.features, "features entry")
                if params.features[features_name].dataset != job.dataset:
                    raise UserError(
                        f"{path}: {key}.{letter}: features '{features_name}' are of dataset "
                        f"'{params.features[features_name].dataset}', the job trains on '{job.dataset}'"
                    )
        if job.S != NO_TEACHER:
            _check_earlier_student(path, key, job, params)
        for run_name, run in job.runs.items():
            if run_name in owner:
                raise UserError(
                    f"{path}: {key}.runs.{run_name}: job '{owner[run_name]}' has a run of this name too; rename one"
                )
            owner[run_name] = name
            for letter in run.teachers:
                if getattr(job, letter) == NO_TEACHER:
                    raise UserError(
                        f"{path}: {key}.runs.{run_name}.teachers: the run uses teacher {letter}, but {key}.{letter} is "
                        f"'{NO_TEACHER}'; expected the name of a teacher's features"
                    )
    _check_order(path, params)
    for name, study in params.studies.items():
        for job_name in study.jobs:
            check_reference(f"studies.{name}.jobs", job_name, params.jobs, "job")
    for name in params.jobs if params.studies else ():
        if not params.study_of(name):
            raise UserError(f"{path}: studies: job '{name}' is in no study; add it to the jobs of one")
    runs = params.runs()
    check_reference("report.baseline", params.report.baseline, runs, "run")
    if params.report.proposed is not None:
        check_reference("report.proposed", params.report.proposed, runs, "run")
    for run_name in params.report.cost:
        check_reference("report.cost", run_name, runs, "run")
    for name, claim in params.report.claims.items():
        for key in ("runs", "minus"):
            for run_name in getattr(claim, key):
                check_reference(f"report.claims.{name}.{key}", run_name, runs, "run")
        _check_alike(f"{path}: report.claims.{name}", params, (*claim.runs, *claim.minus), "claim")
    for name, setting in params.report.settings.items():
        for key, run_name in {
            "baseline": setting.baseline,
            **{f"runs.{k}": v for k, v in setting.runs.items()},
        }.items():
            check_reference(f"report.settings.{name}.{key}", run_name, runs, "run")
        check_reference(f"report.settings.{name}.A", setting.A, params.features, "features entry")
        key, names = f"{path}: report.settings.{name}", (setting.baseline, *setting.runs.values())
        _check_alike(key, params, names, "setting", ("dataset", "input", "recipe"))
        found, expected = params.features[setting.A].dataset, params.jobs[runs[setting.baseline][0]].dataset
        if found != expected:
            raise UserError(f"{key}.A: {setting.A} is of dataset '{found}', expected '{expected}', that of the runs")
    for name, table in params.report.tables.items():
        for row, run_name in table.rows.items():
            check_reference(f"report.tables.{name}.rows.{row}", run_name, runs, "run")
    for figure, shown in params.report.figures.runs().items():
        for run_name in shown:
            check_reference(f"report.figures.{figure}", run_name, runs, "run")
    if params.report.figures.heard:
        check_reference("report.figures.heard", params.report.figures.heard, params.features, "features entry")
    _check_figures(path, params)


def _check_alike(
    key: str, params: Params, names: tuple[str, ...], what: str, settings: tuple[str, ...] = ("dataset", "input")
) -> None:
    """Check that runs have the same settings, because a claim and a setting compare them clip by clip."""
    first, *others = ((name, params.jobs[params.runs()[name][0]]) for name in names)
    for name, job in others:
        for setting in settings:
            found, expected = getattr(job, setting), getattr(first[1], setting)
            if found != expected:
                raise UserError(
                    f"{key}: {name} has {setting} '{found}', {first[0]} has '{expected}'; expected the same {setting} "
                    f"for all runs of a {what}"
                )


def _check_seeds(path: Path, key: str, job: Job) -> None:
    """Check that the seeds of a job are unique and no run has more repeats than there are seeds."""
    if len(set(job.seeds)) != len(job.seeds):
        raise UserError(f"{path}: {key}.seeds: expected unique seeds, one occurs twice in {list(job.seeds)}")
    for name, run in job.runs.items():
        if run.repeats and run.repeats > len(job.seeds):
            raise UserError(
                f"{path}: {key}.runs.{name}.repeats: expected at most {len(job.seeds)}, the number of the job's "
                f"seeds, found {run.repeats}"
            )


def _check_published(path: Path, key: str, features: Features) -> None:
    """Check that published features have no teacher and, as input, only the index of the dataset."""
    for name, expected in {"teacher": NO_TEACHER, "input": f"split/{features.dataset}"}.items():
        if getattr(features, name) != expected:
            raise UserError(
                f"{path}: {key}.{name}: expected '{expected}' for published features, found '{getattr(features, name)}'"
            )


def _check_figures(path: Path, params: Params) -> None:
    """Check that the runs of a figure are comparable and have the inputs that the figure needs."""
    figures, runs = params.report.figures, params.runs()

    def job(run: str) -> Job:
        return params.jobs[runs[run][0]]

    for name, shown in figures.runs().items():
        key = f"{path}: report.figures.{name}"
        reference = (
            params.report.baseline if name in ("training_curves", "gain_per_class", "noise") else next(iter(shown), "")
        )
        for run in shown:
            if name in ("attention", "retrieval") and not job(run).input.startswith("frames/"):
                raise UserError(f"{key}: the input of {run} is {job(run).input}; expected a run with input frames/…")
            for setting in ("dataset", "input", "recipe") if name != "scores" else ():
                found, expected = getattr(job(run), setting), getattr(job(reference), setting)
                if found != expected:
                    raise UserError(
                        f"{key}: {run} has {setting} '{found}', {reference} has '{expected}'; "
                        f"expected the same {setting} for all runs of a figure"
                    )
    for label, curve in figures.noise.items():
        first = next(iter(curve.values()), "")
        for run in curve.values():
            if runs[run][1].options != runs[first][1].options:
                raise UserError(
                    f"{path}: report.figures.noise.{label}: {run} has options {runs[run][1].options}, {first} has "
                    f"{runs[first][1].options}; the runs of one curve differ in their sound only"
                )
        for level, run in curve.items():
            features = job(run).A
            source = params.features[features].input if features != NO_TEACHER else ""
            mix = params.noise_mixes.get(source.removeprefix("mix_noise/"))
            snr = mix.snr_db if mix and source.startswith("mix_noise/") else "clean"
            if level != snr:
                raise UserError(
                    f"{path}: report.figures.noise.{label}.{level}: expected a run with this signal-to-noise ratio, "
                    f"that of {run} is {snr}"
                )
    if figures.heard and not params.features[figures.heard].input.startswith("spectrogram/"):
        heard = params.features[figures.heard].input
        raise UserError(
            f"{path}: report.figures.heard: the input of {figures.heard} is {heard}; expected features of spectrogram/…"
        )


def _check_earlier_student(path: Path, key: str, job: Job, params: Params) -> None:
    """Check that S is a run of another job, with the same dataset and input and all seeds of the runs that use it."""
    choices = [f"{name}/{run}" for name, other in params.jobs.items() for run in other.runs if other is not job]
    if job.S not in choices:
        raise UserError(f"{path}: {key}.S: there is no run '{job.S}'; {nearest(job.S, choices)}")
    other_name, _, run = job.S.partition("/")
    other = params.jobs[other_name]
    if (other.dataset, other.input) != (job.dataset, job.input):
        raise UserError(f"{path}: {key}.S: {job.S} is trained on {other.input}, expected {job.input} as for this job")
    seeds = {seed for name, seed in job.trainings() if "S" in job.runs[name].teachers}
    if missing := sorted(seeds - set(other.seeds_of(run))):
        raise UserError(f"{path}: {key}.S: expected a run with seed {missing[0]}, {job.S} has no such seed")


def _check_order(path: Path, params: Params) -> None:
    """Check that the references of S between jobs have no cycle."""
    for name in params.jobs:
        seen = [name]
        while (earlier := params.jobs[seen[-1]].S) != NO_TEACHER:
            seen.append(earlier.split("/")[0])
            if seen[-1] in seen[:-1]:
                raise UserError(f"{path}: jobs.{name}.S: {' needs '.join(seen)}: a cycle; expected an earlier student")
