"""Ablations with the real tools on a suite of seconds: side by side, and on a second machine."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.flows.cluster import kill, remotes, work_pool, worker
from tests.pipeline.conftest import Checkout

pytestmark = pytest.mark.e2e


def ablate(suite: Checkout, *parameters: str, **environment: str) -> pd.DataFrame:
    """Run an ablation on the command line; its results."""
    command = [
        sys.executable,
        "-m",
        "flows.ablations",
        "training-clips",
        "runs=[uni_modal]",
        "baseline=null",
        "seeds=[0,1]",
    ]
    suite.run(*command, *parameters, **environment)
    return pd.read_csv(suite.folder / "out/ablations/training-clips/results.csv")


def test_side_by_side_is_the_same_as_one_after_the_other(suite: Checkout, server: str) -> None:
    together = ablate(suite, "recipes.small.train_groups=[1,2]", "workers=2")
    assert list(together["train_groups"]) == [1, 2]
    assert together["accuracy"].between(0, 100).all() and (together["accuracy_seeds"] == 2).all()
    assert set(suite.dvc("exp", "list", "--name-only").split()) == set(together["point"])
    shown = json.loads(suite.dvc("exp", "show", "--json"))[1]["experiments"]
    assert {entry["name"] for entry in shown} == set(together["point"])
    assert suite.run("git", "status", "--porcelain").stdout == ""
    assert list((suite.folder / ".dvc/tmp/points").iterdir()) == []

    again = ablate(suite, "recipes.small.train_groups=[1,2]", PREFECT_API_URL=server)
    pd.testing.assert_frame_equal(again, together)  # seconds too: no point ran again

    suite.dvc("exp", "remove", *together["point"])
    for made in (".dvc/cache", "out/ablations"):
        shutil.rmtree(suite.folder / made)
    alone = ablate(suite, "recipes.small.train_groups=[1]", "workers=1", PREFECT_API_URL=server)
    pd.testing.assert_frame_equal(alone.drop(columns="seconds"), together[:1].drop(columns="seconds"))


@pytest.mark.faults  # takes minutes; `make test-faults` runs it beside a suite on two machines
def test_a_second_machine_runs_a_point_and_its_results_come_back(suite: Checkout, server: str, tmp_path: Path) -> None:
    """The other machine has a worker, a folder of its own, and DVC's configuration; all else comes by the remotes."""
    remotes(suite, tmp_path)
    here = {"PREFECT_API_URL": server}
    work_pool(suite, server)
    there = {"AV_TRACKING": "on", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    other = worker(suite, tmp_path / "other", server, **there)
    try:
        found = ablate(suite, "recipes.small.train_groups=[1]", "pool=cluster", **here)
    finally:
        kill(other)
    (name,) = found["point"]
    assert (found["accuracy_seeds"] == 2).all() and (found["seconds"] > 0).all()
    assert suite.dvc("exp", "list", "--name-only").split() == [name]
    assert name in suite.dvc("exp", "list", "--name-only", "origin")
    assert (tmp_path / "shared/runs").is_dir()  # the run cache: nobody makes this again
    assert not (suite.folder / "out/avsynth/train").exists()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        names = {row[0] for row in database.execute("SELECT name FROM runs")}
    assert {"train ablation-uni_modal", "evaluate ablation-uni_modal"} <= names
