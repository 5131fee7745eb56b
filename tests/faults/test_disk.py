"""Disks that are too small: each stage says so in one line, harms nothing, and goes on when there is room."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import REPRO, RUNNING, Suite
from tests.faults.record import count, record

pytestmark = pytest.mark.faults

FULL = re.compile(r"^error: (\S+): No space left on device \([\d.]+ MB are free in \S+\); make room and run again$")
PAGE = 4096


@contextmanager
def tmpfs(folder: Path, **options: int) -> Iterator[None]:
    """A small file system on a folder; the test skips where it may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = ",".join(f"{name}={value}" for name, value in options.items())
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", settings, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full(output: str) -> None:
    """What was printed has one line of the stage's own, which names a file and the room that is left."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and FULL.match(errors[0]), output[-3000:]
    assert "Traceback" not in output, output[-3000:]


def test_each_stage_on_a_full_disk(suite: Suite) -> None:
    """Half of the room that the first item of a stage needs."""
    suite.clear()
    tried: dict[str, str] = {}
    for stage, _, _ in suite.times:
        kind, _, item = stage.partition("@")
        if kind not in tried and len(tried) < count(20):
            size = suite.size(f"{kind}/{item}")
            tried[kind] = stage
            before = suite.state()
            # A file takes a page at least; where there are no more, a folder and a marker must do.
            room = {"size": max(PAGE, size // 2 // PAGE * PAGE)} | ({"nr_inodes": 3} if size < 2 * PAGE else {})
            with tmpfs(suite.out / ".partial", **room):
                done = suite.checkout.run(*REPRO, "--single-item", stage, check=False)
            assert done.returncode
            full(done.stdout)
            assert suite.state() == before, "what was there is left alone"
        suite.checkout.run(*REPRO, "--single-item", stage)
    different = suite.differences()
    lost = f"{len(different)} files differ" if different else "none"
    record("disk", "the stage's disk has half of the room that it needs, `dvc repro` when it has all", len(tried), lost)
    assert not different


def test_the_suite_on_a_disk_that_grows(suite: Suite) -> None:
    """From a fifth of the room that all needs, every time that it is full by a fifth more."""
    suite.clear()
    stopped = []
    with tmpfs(suite.out, size=suite.size() // 5):
        for number in range(2, 2 + count(4)):
            done = suite.checkout.run(*REPRO, check=False)
            if not done.returncode:
                break
            full(done.stdout)
            stopped += RUNNING.findall(done.stdout)[-1:]
            size = f"remount,size={suite.size() * number // 5}"
            subprocess.run(["mount", "-o", size, str(suite.out)], check=True)
        subprocess.run(["mount", "-o", f"remount,size={10 * suite.size()}", str(suite.out)], check=True)
        suite.checkout.run(*REPRO)
        different = suite.differences()
    lost = f"{len(different)} files differ" if different else "none"
    record("disk", "all outputs on a full disk, `dvc repro` with more room", len(stopped), lost, ", ".join(stopped))
    assert stopped and not different
