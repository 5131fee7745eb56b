"""docs/dvc.md: its commands are run on a repository of a few files, and print what the page says but for the numbers.

The repository has the metrics, plots and params of the real one; its only stage copies what the report would write."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from avdistill.reporting.claims import claims_table
from avdistill.reporting.headlines import write_headlines
from avdistill.reporting.suite import EvaluatedSuite
from tests.helpers.synthetic import suite_params, write_suite

pytestmark = pytest.mark.e2e

SUITES = (".", "findings", "own", "paper")
OUTPUTS = ["metrics/{}.json", *(f"plots/{plot}/{{}}.csv" for plot in ("claims", "confusion", "curves", "noise"))]
COPY = """
import shutil, sys, yaml
from pathlib import Path
file, name, *outputs = sys.argv[1:]
proposed = yaml.safe_load(Path(file).read_text())["report"]["proposed"]
for output in outputs:
    Path("out", output.format(name)).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path("made", proposed, output.format("made")), Path("out", output.format(name)))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A repository in which the embedded suite has run, and the others not."""
    folder = tmp_path_factory.mktemp("repository")
    for proposed, stand_in in {"mnf_csc": "mnf_csc", "ccl-A": "kd"}.items():  # the made-up suite has no CCL
        params = suite_params(folder / "made" / proposed / "suite", proposed=stand_in)
        write_suite(params)
        suite = EvaluatedSuite(params)
        write_headlines(suite, claims_table(suite))
    stage = {
        "wdir": "${suite.root}",
        "cmd": f"python copy_made.py ${{suite.file}} ${{suite.name}} {' '.join(OUTPUTS)}",
        "deps": ["${suite.file}"],
        "outs": [f"out/{output.format('${suite.name}')}" for output in OUTPUTS],
    }
    sections = yaml.safe_load((root / "dvc.yaml").read_text()) | {"stages": {"report": stage}}
    for suite_folder in SUITES:
        (folder / suite_folder).mkdir(exist_ok=True)
        (folder / suite_folder / "dvc.yaml").write_text(yaml.safe_dump(sections))
        raw = yaml.safe_load((root / suite_folder / "params.yaml").read_text())
        few = {"suite": raw["suite"], "report": {"proposed": raw["report"].get("proposed")}}
        (folder / suite_folder / "params.yaml").write_text(yaml.safe_dump(few))
    (folder / "copy_made.py").write_text(COPY)
    (folder / ".gitignore").write_text("/out\n/made\n")
    run(folder, "git init -q -b main")
    run(folder, "dvc init -q")
    for file in ("config", *(f"plots/{path.name}" for path in (root / ".dvc/plots").iterdir())):
        (folder / ".dvc" / file).parent.mkdir(exist_ok=True)
        (folder / ".dvc" / file).write_text((root / ".dvc" / file).read_text())
    run(folder, "dvc repro")
    run(folder, "git add --all")
    run(folder, "git commit -q -m ran")
    return folder


def run(folder: Path, command: str) -> str:
    """Run a shell command in the environment of the tests; return what it printed."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
        "DVC_NO_ANALYTICS": "1",
        **{f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert not done.returncode, f"{command}:\n{done.stdout}"
    return done.stdout


def shape(printed: str) -> list[str]:
    """The lines without numbers, hashes of commits, lines of tables and widths of columns, with the words of each in
    alphabetical order: that of files and revisions is not always the same."""
    text = re.sub(r"\b[0-9a-f]{7}(?= \[)", "HASH", printed)
    text = re.sub(r"file://\S*/", "file:///", re.sub(r"[',]|\.$|─{3,}", "", text, flags=re.MULTILINE))
    rows = [[re.sub(r"-?\d+(\.\d+)?", "N", w) if re.fullmatch(r"-?[\d.]+", w) else w for w in line.split()]
            for line in text.splitlines()]  # fmt: skip
    return sorted(" ".join(sorted(row)) for row in rows if row)


def test_the_page_shows_what_dvc_prints(repository: Path, root: Path) -> None:
    page = (root / "docs/dvc.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)\n```\n(?:\n```\n(.*?)\n```\n)?", page, flags=re.DOTALL)
    shown = {command: output for command, output in blocks if output}
    assert {" ".join(command.split()[:3]) for command in shown} == {
        "dvc metrics show", "dvc params diff", "dvc metrics diff", "dvc exp show", "dvc plots show", "dvc plots diff"
    }  # fmt: skip
    for command, output in blocks:
        printed = run(repository, command)
        if output:
            assert shape(printed) == shape(output), f"{command}:\n{printed}"
            assert max(map(len, output.splitlines())) <= 120 or "metrics show" in command


def test_plots_have_data_where_a_suite_has_run_and_nothing_else(repository: Path) -> None:
    run(repository, "dvc plots show --out plots")
    page = (repository / "plots/index.html").read_text()
    filled = re.findall(r'<div id = "(\w+)">\s*<script type = "text/javascript">\s*var spec = {"', page)
    assert sorted(filled) == [f"out_plots_{plot}_avsynth_csv" for plot in ("claims", "confusion", "curves")]
    assert page.count("var spec = ") == 16
    assert "avsynth: claims, difference with 95 % interval" in page and "DVC_METRIC" not in page
