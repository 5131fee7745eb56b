from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdistill.config import studies
from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage


@pytest.fixture
def raw(root: Path) -> dict[str, Any]:
    """The embedded suite with two studies, which share a job."""
    raw = yaml.safe_load((root / "params.yaml").read_text())
    other = [job for job in raw["jobs"] if job != "kd"]
    return raw | {
        "studies": {"xia": {"title": "X", "jobs": ["kd", "uni_modal"]}, "rest": {"title": "R", "jobs": other}}
    }


def written(raw: dict[str, Any], file: Path) -> str:
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    return str(file)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("params.yaml", ["evaluate@kd", "evaluate@uni_modal"]),
        ("paper/params.yaml", ["paper/dvc.yaml:evaluate@kd", "paper/dvc.yaml:evaluate@uni_modal"]),
    ],
)
def test_targets_of_a_study_are_those_of_its_suite(raw: dict[str, Any], file: str, expected: list[str]) -> None:
    raw = copy.deepcopy(raw)
    raw["suite"]["file"] = file
    assert studies.targets(Params.model_validate(raw), "xia") == expected


@pytest.mark.parametrize(
    ("file", "stage", "item", "expected"),
    [
        ("params.yaml", "train", "kd", "train@kd"),
        ("params.yaml", "evaluate", None, "evaluate"),
        ("findings/params.yaml", "train", "kd", "findings/dvc.yaml:train@kd"),
        ("findings/params.yaml", "frames", None, "findings/dvc.yaml:frames"),
        ("findings/params.yaml", "teacher_head", "none", "findings/dvc.yaml:check"),
    ],
)
def test_a_missing_output_names_the_target_that_makes_it(
    raw: dict[str, Any], file: str, stage: str, item: str | None, expected: str, tmp_path: Path
) -> None:
    raw = copy.deepcopy(raw)
    raw["suite"] |= {"file": file, "out": str(tmp_path)}
    params = Params.model_validate(raw)
    assert studies.target(params, stage, item) == expected
    run: Any = None
    with pytest.raises(UserError, match=f"{stage}.*: missing; run `dvc repro {expected}` first"):
        Stage("report", None, params, run).input(stage, item)


def test_a_job_is_reported_in_the_first_study_that_names_it(raw: dict[str, Any], tmp_path: Path) -> None:
    params = load(written(raw, tmp_path / "params.yaml"))
    assert params.study_of("uni_modal") == "xia" and params.study_of("mnf_csc") == "rest"


def test_the_command_prints_one_line_for_a_shell(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    studies.main([written(raw, tmp_path / "params.yaml"), "xia"])
    assert capsys.readouterr().out == "evaluate@kd evaluate@uni_modal\n"


@pytest.mark.parametrize("suite", ["findings", "paper"])
def test_the_methods_since_the_papers_have_a_study_with_their_controls(suite: str, root: Path) -> None:
    params = load(str(root / suite / "params.yaml"))
    jobs = {name: params.jobs[name] for name in params.studies["newer"].jobs}
    assert {params.study_of(name) for name in jobs} == {"newer"}, "they are reported among the runs of a paper"
    assert {job.method for job in jobs.values()} == {"kd", "dkd", "dist", "c2kd", "fd_cmkd", "mst_distill"}
    runs = {run: entry.options for job in jobs.values() for run, entry in job.runs.items()}
    reported = {run for table in params.report.tables.values() for run in table.rows.values()}
    assert reported.isdisjoint(runs)
    assert all(runs[run]["standardise"] for run in ("kd-standardised", "dkd-standardised"))
    assert runs["fd_cmkd-permuted"] == {"permute": True}
    assert runs["fd_cmkd-no_teacher"] == {"low_weight": 0, "high_weight": 0, "align": "student"}
    assert runs["c2kd-frozen"] == {} and runs["c2kd-frozen-head"] == {"teacher": "head"}
    assert runs["mst-stored-random"] == runs["mst-stored"] | {"routing": "random"}
    for run in ("dkd", "dkd-standardised"):
        epochs = params.recipes[jobs["dkd"].recipe].epochs
        assert runs[run]["warmup"] == round(epochs / 12), "as 20 of 240 epochs"


def test_every_teacher_of_the_paper_suite_has_a_setting(root: Path) -> None:
    """One row in "When does it help?" for each dataset, teacher and noise level that a run learns from."""
    params = load(str(root / "paper/params.yaml"))
    taught = {
        getattr(job, run.teachers)
        for job in params.jobs.values()
        for run in job.runs.values()
        if run.teachers in ("A", "I")
    }
    shown = {setting.A for setting in params.report.settings.values()}
    assert shown == taught and {f"ucf51_audio_{noise}" for noise in ("10db", "0db", "-10db")} < taught


def test_an_unknown_study_is_one_line(raw: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: params\.yaml: studies: .*'xai'; did you mean 'xia'") as error:
        studies.main([written(raw, tmp_path / "params.yaml"), "xai"])
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="usage"):
        studies.main([])
