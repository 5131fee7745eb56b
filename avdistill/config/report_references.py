"""Check that what the report shows exists, and that it compares what can be compared."""

from __future__ import annotations

from avdistill.config.report import ComparedSetting
from avdistill.config.schema import Job, Params
from avdistill.config.types import NO_TEACHER
from avdistill.pipeline.errors import UserError, check_exists


def check_report(params: Params) -> None:
    """Check the references of section `report`. Raises UserError for the first that is wrong."""
    report, runs = params.report, params.runs()
    named: list[tuple[str, str | None]] = [("baseline", report.baseline), ("proposed", report.proposed)]
    named += [("cost", run) for run in report.cost]
    for name, claim in report.claims.items():
        named += [(f"claims.{name}.{key}", run) for key in ("runs", "minus") for run in getattr(claim, key)]
    for name, setting in report.settings.items():
        named.append((f"settings.{name}.baseline", setting.baseline))
        named += [(f"settings.{name}.runs.{label}", run) for label, run in setting.runs.items()]
    named += [(f"tables.{name}.rows.{row}", run) for name, t in report.tables.items() for row, run in t.rows.items()]
    named += [(f"figures.{figure}", run) for figure, shown in report.figures.runs().items() for run in shown]
    for key, run in named:
        if run is not None:
            check_exists(f"report.{key}", run, runs, "run")
    for name, claim in report.claims.items():
        _check_alike(f"report.claims.{name}", params, (*claim.runs, *claim.minus), "claim")
    for name, setting in report.settings.items():
        _check_setting(f"report.settings.{name}", setting, params)
    _check_figures(params)


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


def _check_setting(key: str, setting: ComparedSetting, params: Params) -> None:
    """Check that the runs of a setting can be compared, and that the teacher's features are of their dataset."""
    check_exists(f"{key}.A", setting.A, params.features, "features entry")
    _check_alike(key, params, (setting.baseline, *setting.runs.values()), "setting", ("dataset", "input", "recipe"))
    found, expected = params.features[setting.A].dataset, params.jobs[params.runs()[setting.baseline][0]].dataset
    if found != expected:
        raise UserError(f"{key}.A: {setting.A} is of dataset '{found}', expected '{expected}', that of the runs")


def _check_figures(params: Params) -> None:
    """Check that the runs of a figure are comparable and have the inputs that the figure needs."""
    figures, runs = params.report.figures, params.runs()

    def job(run: str) -> Job:
        return params.jobs[runs[run][0]]

    for name, shown in figures.runs().items():
        key = f"report.figures.{name}"
        to_the_baseline = name in ("training_curves", "gain_per_class", "noise")
        reference = params.report.baseline if to_the_baseline else next(iter(shown), "")
        for run in shown:
            if name in ("attention", "retrieval") and not job(run).input.startswith("frames/"):
                raise UserError(f"{key}: the input of {run} is {job(run).input}; expected a run with input frames/…")
            if name != "scores":
                _check_alike(key, params, (reference, run), "figure", ("dataset", "input", "recipe"))
    for label, curve in figures.noise.items():
        first = next(iter(curve.values()), "")
        for run in curve.values():
            if runs[run][1].options != runs[first][1].options:
                raise UserError(
                    f"report.figures.noise.{label}: {run} has options {runs[run][1].options}, {first} has "
                    f"{runs[first][1].options}; the runs of one curve differ in their sound only"
                )
        for level, run in curve.items():
            features = job(run).A
            source = params.features[features].input if features != NO_TEACHER else ""
            mix = params.noise_mixes.get(source.removeprefix("mix_noise/"))
            snr = mix.snr_db if mix and source.startswith("mix_noise/") else "clean"
            if level != snr:
                raise UserError(
                    f"report.figures.noise.{label}.{level}: expected a run with this signal-to-noise ratio, that of "
                    f"{run} is {snr}"
                )
    if figures.heard:
        check_exists("report.figures.heard", figures.heard, params.features, "features entry")
        heard = params.features[figures.heard].input
        if not heard.startswith("spectrogram/"):
            raise UserError(
                f"report.figures.heard: the input of {figures.heard} is {heard}; expected features of spectrogram/…"
            )
