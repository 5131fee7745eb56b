"""Several at once on one workspace and one database: each ends well or says who is before it."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from tests.faults.record import count, record
from tests.flows import project

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 8
STAGE = """
import sys, time
from pathlib import Path
from avdistill.tracking import journal as tracking
from avdistill.tracking.mirror import sync
from tests.avdistill.tracking.test_mirror import JOB, suite
out, number = sys.argv[1:]
while not Path(out, "go").exists():
    time.sleep(0.001)
params = suite(out)
with tracking.start("train", JOB, params) as run:
    run.log_metrics({"loss": float(number)})
sync(params)
"""
BUSY = re.compile(r"is busy, it is being blocked by:\s+\(PID \d+\): .*dvc.* repro|Unable to acquire lock")
ONE_LINE = re.compile(r"^error: .*: in use by .*dvc.* \(process \d+\)", re.MULTILINE)


@pytest.mark.parametrize("folders", [1, PROCESSES])
def test_processes_on_a_fresh_database(folders: int, tmp_path: Path) -> None:
    """In one workspace and, as other machines would, in one each."""
    database = tmp_path / "new/mlflow.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "PYTHONPATH": str(ROOT)}
    environment |= {"AV_TRACKING": "on"}
    outs = [tmp_path / f"out{number % folders}" for number in range(PROCESSES)]
    for out in outs:
        out.mkdir(exist_ok=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", STAGE, out, str(number)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number, out in enumerate(outs)
    ]
    time.sleep(3)  # until all have imported what they need
    for out in outs:
        (out / "go").touch()
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, errors
    until = time.monotonic() + 120
    while any(tmp_path.glob("out*/.tracking/*.jsonl")) and time.monotonic() < until:
        time.sleep(0.2)
    end_mirrors(tmp_path)
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.metrics["loss"] for run in runs) == list(range(PROCESSES))
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sqlite3.connect(database).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    workspaces = f"{folders} workspace{'s' * (folders > 1)}"
    record("together", f"{PROCESSES} processes on a fresh database, {workspaces}", PROCESSES)


def end_mirrors(folder: Path) -> None:
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:4] == ["-m", "avdistill.tracking", "mirror"] and str(folder) in process.cmdline()[4]:
                process.terminate()
        except (psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
            continue


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A small graph whose stages take a second each."""
    made = project.make(tmp_path / "repo")
    step = (made / "step.py").read_text()
    (made / "step.py").write_text(step.replace("    Path(out).parent", "    time.sleep(1)\n    Path(out).parent"))
    return made


def together(repo: Path, *command: str, wait: float) -> list[subprocess.CompletedProcess[str]]:
    """Run a command twice at the same time, the second `wait` seconds later; both outputs."""
    environment = project.environment(repo)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    started = []
    for pause in (0.0, wait):
        time.sleep(pause)
        started.append(
            subprocess.Popen(
                command, cwd=repo, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return [
        subprocess.CompletedProcess(command, process.returncode, output)
        for process in started
        for output in [process.communicate(timeout=300)[0]]
    ]


def check(repo: Path) -> None:
    """One more `dvc repro` brings all up to date by itself, and nothing is damaged."""
    environment = project.environment(repo)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for command in (["dvc", "repro", "-q"], ["dvc", "status", "--json", "dvc.yaml"]):
        done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{}"
    assert set(yaml.safe_load((repo / "dvc.lock").read_text())["stages"]) == {
        "check", "train@kd", "train@mnf_csc", "report"
    }  # fmt: skip
    assert (repo / "out/small/report").read_text() == "report well"


def test_two_dvc_repro(repo: Path) -> None:
    times, refused = count(10), 0
    for number in range(times):
        for job in ("kd", "mnf_csc"):
            (repo / "mood" / job).write_text(f"well {number}")
        for done in together(repo, "dvc", "repro", wait=0.3 * number):
            refused += done.returncode != 0
            assert done.returncode == 0 or BUSY.search(done.stdout), done.stdout
        for job in ("kd", "mnf_csc"):
            (repo / "mood" / job).write_text("well")
        check(repo)
    record("together", "two `dvc repro` at the same time", times, note=f"{refused} named the holder of the lock")


def test_two_flows(repo: Path) -> None:
    times, refused = count(3), 0
    for number in range(times):
        for job in ("kd", "mnf_csc"):
            (repo / "mood" / job).write_text(f"well {number}")
        for done in together(repo, sys.executable, "-m", "flows.paper", wait=float(number)):
            refused += done.returncode != 0
            assert done.returncode == 0 or ONE_LINE.search(done.stdout), done.stdout[-4000:]
        for job in ("kd", "mnf_csc"):
            (repo / "mood" / job).write_text("well")
        check(repo)
    record("together", "two flows at the same time", times, note=f"{refused} named the holder of the lock")
