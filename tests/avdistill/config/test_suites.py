"""The suites of the repository: each table and curve is the paper's own experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.loading import load
from avdistill.config.schema import Params, Run
from avdistill.pipeline.errors import UserError


@pytest.fixture(params=["params.yaml", "findings/params.yaml", "paper/params.yaml"])
def suite(request: pytest.FixtureRequest, root: Path) -> Params:
    return load(root / request.param)


def run_of(suite: Params, name: str) -> Run:
    return suite.runs()[name][1]


def test_table_3_leaves_out_the_contrast(suite: Params) -> None:
    """Xia et al. compare Table 3 with "the second line of Table 2", L_t without L_cl."""
    table = suite.report.tables["xia_3"]
    for row, masked in (("w/ MNF", True), ("w/o MNF", False)):
        options = run_of(suite, table.rows[row]).options
        assert options.get("contrast") is False and options.get("mask", True) is masked
        assert suite.noise_mixes[suite.features[suite.jobs[suite.runs()[table.rows[row]][0]].A].input.split("/")[1]]


def test_claims_on_mixed_sound_leave_out_the_contrast(suite: Params) -> None:
    """X7 and X8 are about Table 3 and its clean point, "the second line of Table 2"."""
    claims = [claim for name, claim in suite.report.claims.items() if name.rstrip("abc") in ("X7", "X8")]
    assert len(claims) >= 2
    for claim in claims:
        assert all(run_of(suite, run).options.get("contrast") is False for run in (*claim.runs, *claim.minus))


def test_kd_is_judged_at_the_published_weight_and_at_one_for_a_weak_teacher(root: Path) -> None:
    suite = load(root / "findings/params.yaml")
    claims = suite.report.claims
    assert claims["N7f"].runs == ("kd",) and run_of(suite, "kd").options == {}, "the published weight is the default"
    weights = {run_of(suite, run).options["weight"] for run in claims["N7a"].runs}
    tried = {run.options["weight"] for run in suite.jobs["kd-weights"].runs.values()}
    assert weights < tried and max(weights) < 0.9 and claims["N7a"].minus == ("uni_modal",)


def test_the_papers_suite_trains_the_programs_own_student(root: Path) -> None:
    """With factored shortcuts; the audio student of Xia's Table 4 is a ResNet-50."""
    suite = load(root / "paper/params.yaml")
    assert {recipe.student for recipe in suite.recipes.values()} == {"r2plus1d_10_factored", "resnet50_audio"}


@pytest.mark.parametrize("file", ["findings/params.yaml", "paper/params.yaml"])
def test_points_of_a_noise_curve_differ_in_the_sound_alone(root: Path, file: str) -> None:
    suite = load(root / file)
    for curve in suite.report.figures.noise.values():
        options = [run_of(suite, run).options for run in curve.values()]
        assert all(other == options[0] for other in options) and options[0]["contrast"] is False
    assert suite.report.figures.noise["with MNF"]["clean"] == suite.report.tables["xia_2"].rows["MNF+CSC w/o L_cl"]


def test_a_noise_curve_of_different_losses_is_an_error(root: Path, tmp_path: Path) -> None:
    text = (root / "findings/params.yaml").read_text().replace("{ clean: mnf_csc-no_contrast,", "{ clean: mnf_csc,")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"report\.figures\.noise\.with MNF: .*, mnf_csc has"):
        load(tmp_path / "params.yaml")
