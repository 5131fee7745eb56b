"""The tiny suite killed, ended, interrupted and cancelled at random moments: it ends as if nothing had been."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import REPRO, Suite, send
from tests.faults.record import count, record
from tests.helpers.servers import prefect_server

pytestmark = pytest.mark.faults


def moments(suite: Suite, number: int, seed: int) -> list[tuple[str, float]]:
    """Random moments of an undisturbed run, in order: the stage that goes on, and since when, in seconds."""
    choose = random.Random(seed)
    drawn = sorted(choose.uniform(suite.times[0][1], suite.times[-1][1]) for _ in range(number))
    return [
        next((stage, moment - begin) for stage, begin, _ in reversed(suite.times) if begin <= moment)
        for moment in drawn
    ]


def disturb(suite: Suite, signals: Sequence[signal.Signals], seed: int) -> list[str]:
    """Run the suite from nothing, send it one signal after the other, and let it end; the stages that were hit."""
    suite.clear()
    hit = []
    for number, (stage, seconds) in zip(signals, moments(suite, len(signals), seed), strict=True):
        while not suite.interrupt(suite.start(*REPRO), stage, seconds, send(number)):
            suite.clear()  # it had ended, faster than the undisturbed run: once more
            seconds /= 2
        hit.append(stage)
    suite.checkout.run(*REPRO)
    return hit


def finished(suite: Suite, topic: str, tried: str, hit: Sequence[str]) -> None:
    """Nothing is lost, nothing lies about, and nothing is left to do."""
    different = suite.differences()
    assert not list((suite.out / ".partial").glob("*"))
    assert "Running" not in suite.checkout.run(*REPRO).stdout
    lost = f"{len(different)} files differ" if different else "none"
    kinds = dict.fromkeys(stage.partition("@")[0] for stage in hit)
    record(topic, tried, len(hit), lost, f"in {', '.join(kinds)}")
    assert not different


def test_killed(suite: Suite) -> None:
    hit = disturb(suite, [signal.SIGKILL] * count(25), seed=0)
    finished(suite, "crash", "SIGKILL to the process group at a random moment, `dvc repro` again", hit)


def test_ended_and_interrupted(suite: Suite) -> None:
    hit = disturb(suite, [signal.SIGTERM, signal.SIGINT] * count(4), seed=1)
    finished(suite, "crash", "SIGTERM and Ctrl-C in turn at a random moment, `dvc repro` again", hit)


@pytest.fixture
def server(suite: Suite, tmp_path: Path) -> Iterator[str]:
    """The address of a Prefect server of its own."""
    with prefect_server(suite.checkout.environment | {"PREFECT_HOME": str(tmp_path)}, tmp_path) as url:
        yield url


def test_flow_cancelled(suite: Suite, server: str, tmp_path: Path) -> None:
    """`prefect flow-run cancel`, as somebody else would do it."""
    suite.clear()
    home = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": server}

    def cancel(_: subprocess.Popen[str]) -> None:
        body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}).encode()
        request = urllib.request.Request(f"{server}/flow_runs/filter", body, {"Content-Type": "application/json"})
        (run,) = json.load(urllib.request.urlopen(request, timeout=30))
        suite.checkout.run(sys.executable, "-m", "prefect", "flow-run", "cancel", run["id"], **home)

    choose, number = random.Random(2), count(3)
    for _ in range(number):
        process = suite.start(sys.executable, "-m", "flows.paper", **home)
        stage, seconds = choose.randint(1, 9), choose.uniform(0, 4)
        assert suite.interrupt(process, stage, seconds, cancel), suite.log.read_text()[-3000:]
        assert process.returncode, suite.log.read_text()[-3000:]
    assert suite.differences(), "there was something left to do"
    suite.checkout.run(*REPRO)
    finished(suite, "crash", "`prefect flow-run cancel` at a random moment, `dvc repro` then", ["flow"] * number)


def test_outputs_damaged_behind_its_back(suite: Suite) -> None:
    """One bit of a file turned over, in the workspace and, where it is a link, in DVC's cache: it is made again."""
    suite.checkout.run(*REPRO)
    choose = random.Random(3)
    names = choose.sample(sorted(name for name in suite.undisturbed if not name.startswith("metrics")), count(10))
    for name in names:
        path = suite.out / name
        path.chmod(0o644)
        with path.open("r+b") as file:
            place = choose.randrange(path.stat().st_size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << choose.randrange(8)]))
    suite.checkout.run(*REPRO)
    finished(
        suite, "crash", "a bit of an output turned over, `dvc repro` then", [name.partition("/")[0] for name in names]
    )
