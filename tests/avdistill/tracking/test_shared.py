"""A checkout at a path that MLflow cannot work with: one line with the remedy, and the remedy works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avdistill.pipeline.errors import UserError
from avdistill.tracking.shared import tracking_uri


def run_stage(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run stage code there, which looks at the checkout's own files only."""
    kept = {name: value for name, value in os.environ.items() if name not in ("AV_TRACKING", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, "-m", "stages", "code", "params.yaml"]
    return subprocess.run(command, cwd=checkout, env=kept | environment, capture_output=True, text=True)


def test_a_question_mark_in_the_checkout_s_path(tmp_path: Path, root: Path) -> None:
    checkout = tmp_path / "what? no %"
    for package in ("avdistill", "models", "stages"):
        shutil.copytree(root / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "params.yaml", checkout)
    began = time.monotonic()
    done = run_stage(checkout)
    assert time.monotonic() - began < 10
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {checkout}/mlflow.db: MLflow cannot create a SQLite database with '?' in this path; move the "
        "checkout, set MLFLOW_TRACKING_URI to a server, or set AV_TRACKING=off to run without MLflow\n"
    )
    assert not (checkout / "out/avsynth/code").exists()
    assert run_stage(checkout, AV_TRACKING="off").returncode == 0
    assert (checkout / "out/avsynth/code/report.json").exists()
    assert not list(tmp_path.glob("what")), "MLflow has cut the path"


def test_a_percent_sign_in_the_environment_s_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alembic, which creates MLflow's tables, would read it in the path of MLflow's own files."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/100 %/mlflow.db")
    assert tracking_uri() == "sqlite:////tmp/100 %/mlflow.db"
    monkeypatch.setattr(sys, "prefix", "/tmp/100 %/.venv")
    with pytest.raises(UserError, match=r"^/tmp/100 %/\.venv: MLflow cannot create a SQLite database with '%' in this"):
        tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"
