"""The README's commands: each is run by a test, named here. A new command without one fails."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

RUN_BY = {
    "make findings": "pipeline/test_suite.py::test_make_findings_runs_that_suite",
    "make repro": "pipeline/test_suite.py::test_make_repro_makes_the_report",
    "make test": "the tests themselves",
    "dvc repro": "pipeline/test_suite.py::test_second_repro_changes_nothing",
    "dvc repro train@mnf_csc": "pipeline/test_suite.py::test_a_killed_training_goes_on_and_ends_at_the_same_bits",
    "dvc params diff && dvc metrics diff": "pipeline/test_suite.py::test_metrics_params_and_plots_show_in_dvc",
    "make study STUDY=xia": "pipeline/test_suite.py::test_a_study_reruns_with_one_command",
    "make why": "pipeline/test_suite.py::test_changed_predictions_are_evaluated_again",
    "make model": "pipeline/test_serve.py::test_a_clip_gets_the_probabilities_of_the_evaluation",
    "make verify MODEL=models:/student-avsynth@best": (
        "pipeline/test_suite.py::test_the_exported_model_is_followed_back_to_the_lock"
    ),
    "make power": "pipeline/test_suite.py::test_make_power_has_a_row_per_claim",
    "make check-videos SUITE=own": "pipeline/test_own.py::test_make_own_makes_a_report_of_anybodys_videos",
    "make paper-quick": "pipeline/test_suite.py::test_the_paper_suite_can_be_tried",
    "python -m flows.ablations delta": (
        "flows/test_ablations_remote.py::test_side_by_side_is_the_same_as_one_after_the_other"
    ),
    "make serve": "flows/test_ablations.py::test_deployments_name_what_is_there",
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": "a shell's own",
    "python -m flows.ablations delta recipes.small.lr=[0.003,0.01] seeds=[0,1]": (
        "flows/test_ablations.py::test_the_command_line_changes_parameters_and_values_of_the_grid"
    ),
    "prefect deployment run 'ablate/noise-snr' -p grid='{\"noise_mixes.avsynth_0db.snr_db\": [20, 10, 0]}'": (
        "flows/test_ablations.py::test_deployments_name_what_is_there"
    ),
    "dvc exp show": "flows/test_ablations_remote.py::test_side_by_side_is_the_same_as_one_after_the_other",
    "make bench": "benchmarks/test_bench.py::test_benchmarks_run",
    "make test-faults": "faults/test_crash.py::test_killed",
    "make flow": "pipeline/test_suite.py::test_make_flow_finds_everything_done",
    "python -m flows.paper --help": "flows/test_paper.py::test_the_command_explains_itself",
    "make own VIDEOS=/some/folder": "pipeline/test_own.py::test_make_own_makes_a_report_of_anybodys_videos",
    "make own VIDEOS=/some/folder TEACHER=avsynth": (
        "pipeline/test_own.py::test_make_own_makes_a_report_of_anybodys_videos"
    ),
    "dvc stage list paper/dvc.yaml": "pipeline/test_suite.py::test_the_other_suites_load",
    "dvc repro paper/dvc.yaml": "pipeline/test_paper_suite.py::test_from_download_to_report",
    "dvc metrics show": "pipeline/test_suite.py::test_metrics_params_and_plots_show_in_dvc",
    "dvc params diff": "pipeline/test_suite.py::test_metrics_params_and_plots_show_in_dvc",
    "dvc metrics diff": "pipeline/test_suite.py::test_metrics_params_and_plots_show_in_dvc",
    "dvc plots diff": "pipeline/test_suite.py::test_metrics_params_and_plots_show_in_dvc",
    "dvc plots show": "pipeline/test_suite.py::test_metrics_params_and_plots_show_in_dvc",
    "make ui": "flows/test_ui.py::test_addresses_are_printed_and_an_interrupt_ends_both",
    "make sync": "pipeline/test_suite.py::test_mlflow_has_a_run_for_every_stage",
    "dvc repro own/dvc.yaml": "pipeline/test_own.py::test_make_own_makes_a_report_of_anybodys_videos",
    "mlflow run mlflow_project -e repro --env-manager local": "pipeline/test_suite.py::test_mlflow_projects",
    "source .venv/bin/activate": "a shell's own",
}


def commands(text: str) -> set[str]:
    """Commands of the README: the lines of its shell blocks, and what stands in backquotes and begins like one."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = {line.partition("#")[0].strip() for block in blocks for line in block.splitlines()}
    inline = re.findall(r"`((?:make|dvc|python|mlflow|source) [^`]+)`", text)
    return {line for line in lines if line} | set(inline)


def test_every_command_of_the_readme_is_run_by_a_test(root: Path) -> None:
    found = commands((root / "README.md").read_text())
    assert found == set(RUN_BY)
    for where in RUN_BY.values():
        if "::" in where:
            file, name = where.split("::")
            assert f"def {name}(" in (root / "tests" / file).read_text(), where


def test_every_picture_and_link_of_the_readme_is_there(root: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (root / "README.md").read_text()):
        assert target.startswith("http") or (root / target).exists(), target


def test_the_readme_names_every_method_with_its_options(root: Path) -> None:
    from models.distillers import methods

    found: dict[str, set[str]] = {}
    rows = re.findall(r"^\| (`[a-z0-9_`, ]+`) \|[^|]*\|([^|]*)\|$", (root / "README.md").read_text(), re.M)
    for names, options in rows:
        for name in re.findall(r"`(\w+)`", names):
            found[name] = set(re.findall(r"`(\w+)`", options))
    known = {
        name: {p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for name, method in methods().items()
    }
    assert found == known


def test_the_page_of_methods_has_each_with_its_teachers_and_parameters(root: Path) -> None:
    from models.distillers import build, methods

    row = r"^\| `(\w+)` \| ([^|]*) \|[^|]*\|([^|]*)\|.*\| ([\d,]+) \|$"
    found = {
        name: (set(teachers.split(", ")), bool(logits.strip()), int(number.replace(",", "")))
        for name, teachers, logits, number in re.findall(row, (root / "docs/methods.md").read_text(), re.M)
    }
    widths = {"student_dim": 512, "stage_dims": (64, 128, 256, 512), "classes": 51, "clips": 10}
    known = {}
    for name, method in methods().items():
        teacher_dims = dict.fromkeys(method.accepts[0], 512)
        built = build(name, teacher_dims=teacher_dims, options={}, **widths)
        letters = {letters or "none" for letters in method.accepts}
        known[name] = (letters, method.uses_logits, sum(parameter.numel() for parameter in built.parameters()))
    assert found == known


# The row of docs/findings.md that has a method's gain, by its first cell.
GAIN_OF = {
    "kd_noise": "KD-noise, an earlier student as the teacher: no sound",
    "kd": "KD, weight 0.9 as published",
    "dkd": "DKD",
    "dist": "DIST",
    "pkt": "PKT",
    "rkd": "RKD",
    "ifd": "IFD",
    "cckd": "COR (CCKD)",
    "fd_cmkd": "S5a",
    "cmc": "CMC",
    "crd": "CRD",
    "xid": "xID",
    "privileged": "prediction of what is heard, beside the label (`privileged`)",
    "fitnet": "FitNet",
    "c2kd": "C2KD with a frozen encoder",
    "ccl": "CCL",
    "rc_mc": "RC-MC",
    "mnf_csc": "MNF+CSC",
    "mst_distill": "MST-Distill on stored features, both teachers",
}


def test_the_gains_on_the_page_of_methods_are_those_of_the_findings(root: Path) -> None:
    findings = (root / "docs/findings.md").read_text().partition("Methods in the main setting")[2]
    page = (root / "docs/methods.md").read_text()
    shown = dict(re.findall(r"^\| `(\w+)` \|.*\| ([+\u2212]?\d+\.\d)[^|]*\| [\d,]+ \|$", page, re.M))
    found = {}
    for name, row in GAIN_OF.items():
        gain = re.search(rf"^\| {re.escape(row)} \|.*?([+\u2212]?\d+\.\d) \(", findings, re.M)
        assert gain, f"no row '{row}'"
        found[name] = gain[1]
    assert shown == found
    for more in ("CCL without composition", "KD, weight 0.3, chosen on the validation split"):
        gain = re.search(rf"^\| {more} \| (\S+) \(", findings, re.M)
        assert gain and f"; {gain[1]} " in page, more
