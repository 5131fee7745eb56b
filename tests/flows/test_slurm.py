"""A suite of seconds by workers inside Slurm allocations, two of which end while they train."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.flows.cluster import check_as_alone, remote, remotes, work_pool
from tests.flows.slurm import PATH, ask, job_of, missing, slurm
from tests.pipeline.conftest import Checkout

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed (apt install slurm-wlm): no {missing()}"),
]

COMMAND = [sys.executable, "-m", "flows.paper", "--pool", "cluster"]
STAGE = "train@uni_modal"
EPOCHS = 200  # ten seconds of training, or more


def home_of_all_nodes(suite: Checkout, folder: Path, url: str) -> Path:
    """Make a home folder as docs/cluster.md describes it: a clone with its environment, both files of settings, and
    the cache that all nodes share."""
    home = folder / "home"
    checkout, settings = home / "avdistill", home / ".config/avdistill"
    suite.run("git", "clone", "--quiet", ".", str(checkout))
    (checkout / ".venv").symlink_to(Path(sys.prefix))
    lines = [f"PREFECT_API_URL={url}", f"DVC_GLOBAL_CONFIG_DIR={settings}"]
    lines += [f"GIT_{who}_{what}=worker" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    (checkout / "deploy/cluster.env").write_text("".join(f"export {line}\n" for line in lines))
    settings.mkdir(parents=True)
    (settings / "config").write_text(f"{remote(folder)}[cache]\n    dir = {home / 'cache'}\n")
    return home


def test_workers_inside_allocations_make_what_one_machine_makes(suite: Checkout, server: str, tmp_path: Path) -> None:
    """Slurm cancels the allocation that trains, and the one that trains next. Four are asked for, two fit at a time."""
    suite.change("recipes", "small", "epochs", value=EPOCHS)
    suite.run("git", "commit", "--quiet", "--all", "--message", "longer")
    remotes(suite, tmp_path)
    work_pool(suite, server)
    home = home_of_all_nodes(suite, tmp_path, server)
    here = {"PREFECT_API_URL": server, "PREFECT_LOGGING_LEVEL": "INFO"}
    alone = tmp_path / "alone"
    suite.run("git", "clone", "--quiet", ".", str(alone))
    one_machine = threading.Thread(
        target=suite.run, args=(sys.executable, "-m", "flows.dvc", "--cd", str(alone), "repro")
    )
    one_machine.start()
    (tmp_path / "slurm").mkdir()
    with slurm(tmp_path / "slurm") as cluster, (tmp_path / "log").open("w") as log:
        user = {name: value for name, value in suite.environment.items() if name != "PREFECT_HOME"}
        user |= cluster | {"HOME": str(home), "PATH": PATH}
        sbatch = ["sbatch", "--array=1-4", "deploy/slurm.sbatch"]
        subprocess.run(sbatch, cwd=home / "avdistill", env=user, check=True)
        first = subprocess.Popen(
            COMMAND, cwd=suite.folder, env=suite.environment | here, stdout=log, stderr=log, text=True
        )
        try:
            ended = set[str]()
            for _ in range(2):
                while (job := job_of(cluster, STAGE)) is None or job in ended:
                    assert first.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.2)
                ask(cluster, "scancel", job)
                ended.add(job)
            assert first.wait() == 0, (tmp_path / "log").read_text()
        finally:
            first.kill()
    for job in ended:  # the worker itself ended, before Slurm killed it
        assert "stopped!" in (home / f"avdistill/slurm-{job}.out").read_text()
    one_machine.join()
    check_as_alone(suite, alone)
