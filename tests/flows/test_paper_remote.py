"""A suite of seconds on two workers, each with a clone of its own, of which one is killed while it trains."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.flows.cluster import check_as_alone, kill, remotes, work_pool, worker, works_on
from tests.pipeline.conftest import Checkout

pytestmark = pytest.mark.faults

COMMAND = [sys.executable, "-m", "flows.paper", "--pool", "cluster"]
STAGE = "train@uni_modal"


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

    again = suite.run(*COMMAND, **here, PREFECT_LOGGING_LEVEL="INFO").stdout  # no worker is left: nothing is sent
    assert "11 stages: 1 ran, 10 skipped" in again  # DVC always runs stage code
    one_machine.join()
    check_as_alone(suite, alone)
