"""A suite of seconds on two workers, each with a clone of its own, of which one is killed while it trains."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from flows.machines import MEDIA, only_missing
from tests.flows.cluster import kill, remotes, work_pool, worker, works_on
from tests.pipeline.conftest import Checkout

pytestmark = pytest.mark.faults

COMMAND = [sys.executable, "-m", "flows.paper", "--pool", "cluster"]
STAGE = "train@uni_modal"


def made(folder: Path) -> dict[str, str]:
    """The digest of each file that the suite has made in a checkout, without the page, which says when that was."""
    found = (folder / "out").rglob("*")
    files = [file for file in found if file.is_file() and "/." not in str(file) and file.name != "index.html"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def lock(folder: Path) -> dict[str, object]:
    """The entries of dvc.lock, without what the report is, whose page says when it was made."""
    stages: dict[str, dict[str, object]] = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {name: {**entry, "outs": []} if name == "report" else entry for name, entry in stages.items()}


def test_two_workers_make_what_one_machine_makes(suite: Checkout, server: str, tmp_path: Path) -> None:
    remotes(suite, tmp_path)
    work_pool(suite, server)
    here = {"PREFECT_API_URL": server}
    alone = tmp_path / "alone"
    suite.run("git", "clone", "--quiet", ".", str(alone))
    one_machine = threading.Thread(
        target=suite.run, args=(sys.executable, "-m", "flows.dvc", "--cd", str(alone), "repro")
    )
    one_machine.start()
    workers = [worker(suite, tmp_path / name, server) for name in ("one", "two")]
    try:
        with (tmp_path / "log").open("w") as log:
            first = subprocess.Popen(
                COMMAND, cwd=suite.folder, env=suite.environment | here, stdout=log, stderr=log, text=True
            )
        while not (busy := [one for one in workers if works_on(one, STAGE)]):
            assert first.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        kill(busy[0])
        assert first.wait() == 0, (tmp_path / "log").read_text()
    finally:
        for one in workers:
            kill(one)
        first.kill()

    changes = {stage: found for stage, found in json.loads(suite.dvc("status", "--json")).items() if stage != "code"}
    assert all(map(only_missing, changes.values())), changes
    assert not any((suite.folder / "out/avsynth" / stage).exists() for stage in MEDIA)
    again = suite.run(*COMMAND, **here, PREFECT_LOGGING_LEVEL="INFO").stdout  # no worker is left: nothing is sent
    assert "11 stages: 1 ran, 10 skipped" in again  # DVC always runs stage code

    suite.dvc("pull")
    assert set(json.loads(suite.dvc("status", "--json"))) == {"code"}, "which DVC always runs"
    one_machine.join()
    assert lock(suite.folder) == lock(alone)
    assert made(suite.folder) == made(alone)
