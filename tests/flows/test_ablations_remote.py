"""Ablations with the real tools on a suite of seconds: side by side, and on a second machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows.processes import end
from tests.helpers.servers import prefect_server
from tests.pipeline.conftest import Checkout, keep_jobs, tiny_checkout

pytestmark = pytest.mark.e2e


@pytest.fixture
def suite(tmp_path: Path, root: Path) -> Checkout:
    """The project with one job of the tiny suite, all of it committed."""
    made = tiny_checkout(tmp_path / "first", root)
    raw = yaml.safe_load((made.folder / "params.yaml").read_text())
    keep_jobs(raw, ("uni_modal",), {})
    raw["jobs"]["uni_modal"]["init"] = "none"
    raw |= {"noise_mixes": {}, "features": {}, "teachers": {}, "exports": []}
    raw["report"] |= {"cost": [], "claims": {}, "figures": {}, "proposed": None}
    (made.folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    shutil.copy(root / "prefect.yaml", made.folder)
    shutil.copy(root / ".dvc/.gitignore", made.folder / ".dvc")
    shutil.copytree(root / "deploy", made.folder / "deploy")
    made.environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "AV_TRACKING": "off",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    made.environment |= {f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message", "tiny")
    return made


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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server; its address. A flow without one starts its own, which takes seconds."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(os.environ | {"PREFECT_HOME": str(home)}, home) as url:
        yield url


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


def test_a_second_machine_runs_a_point_and_its_results_come_back(suite: Checkout, server: str, tmp_path: Path) -> None:
    """The other machine has a worker, a folder of its own, and DVC's configuration; all else comes by the remotes."""
    origin, other = tmp_path / "origin.git", tmp_path / "other"
    suite.run("git", "clone", "--quiet", "--bare", ".", str(origin))
    suite.run("git", "remote", "add", "origin", origin.as_uri())
    (other / "dvc").mkdir(parents=True)
    (other / "tmp").mkdir()
    shared = f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {tmp_path / 'shared'}\n"
    (other / "dvc/config").write_text(shared)
    (suite.folder / ".dvc/config.local").write_text(shared)
    here = {"PREFECT_API_URL": server}
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    suite.run(*prefect, "work-pool", "create", "points", "--type", "process", **here)
    suite.run(*prefect, "deploy", "--prefect-file", "deploy/prefect.yaml", "--name", "cluster", **here)
    there = suite.environment | here | {"DVC_GLOBAL_CONFIG_DIR": str(other / "dvc"), "TMPDIR": str(other / "tmp")}
    there |= {"AV_TRACKING": "on", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [*prefect, "worker", "start", "--pool", "points", "--type", "process", "--limit", "1"],
            cwd=other,
            env=there,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        found = ablate(suite, "recipes.small.train_groups=[1]", "deployment=point/cluster", **here)
    finally:
        end([worker], grace=10)
    (name,) = found["point"]
    assert (found["accuracy_seeds"] == 2).all() and (found["seconds"] > 0).all()
    assert suite.dvc("exp", "list", "--name-only").split() == [name]
    assert name in suite.dvc("exp", "list", "--name-only", "origin")
    assert (tmp_path / "shared/runs").is_dir()  # the run cache: nobody makes this again
    assert not (suite.folder / "out/avsynth/train").exists()
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        names = {row[0] for row in database.execute("SELECT name FROM runs")}
    assert {"train ablation-uni_modal", "evaluate ablation-uni_modal"} <= names
