"""The tiny suite, run once without disturbance: what the disturbed ones are compared with."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.conftest import Checkout, tiny_checkout

REPRO = (sys.executable, "-m", "flows.dvc", "repro")
RUNNING = re.compile(r"Running stage '([^']+)'")


class Suite:
    """The tiny suite in a checkout of its own, which can be run again from nothing."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, self.folder = checkout, checkout.folder
        self.out, self.log = self.folder / "out/avsynth", self.folder / "run.log"
        self.times: list[tuple[str, float, float]] = []  # stage, and from when to when it ran, in s from the start
        started = time.monotonic()
        process = self.start(*REPRO)
        while process.poll() is None:
            time.sleep(0.02)
            seen, now = RUNNING.findall(self.log.read_text()), time.monotonic() - started
            for stage in seen[len(self.times) :]:
                self.times.append((stage, now, now))
            if self.times:
                self.times[-1] = (*self.times[-1][:2], now)
        assert process.returncode == 0, self.log.read_text()[-3000:]
        # A stage ends as the next begins: DVC's own work on its outputs is part of its time.
        begins = [begin for _, begin, _ in self.times] + [self.times[-1][2]]
        self.times = [(stage, begins[n], begins[n + 1]) for n, (stage, _, _) in enumerate(self.times)]
        self.undisturbed = self.state()
        self.bytes = {name: (self.out / name).stat().st_size for name in self.undisturbed}

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a program in a process group of its own; what it prints is in `log`."""
        with self.log.open("w") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.checkout.environment | {"PYTHONUNBUFFERED": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def interrupt(
        self,
        process: subprocess.Popen[str],
        stage: str | int,
        seconds: float,
        how: Callable[[subprocess.Popen[str]], None],
    ) -> bool:
        """Do `how` to a process some time after a stage began (its name, or the how-manieth it is); then it ends.

        False if it ended by itself before that."""
        while True:
            seen = RUNNING.findall(self.log.read_text())
            if stage in seen or (isinstance(stage, int) and len(seen) >= stage):
                break
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        time.sleep(seconds)
        if process.poll() is not None:
            return False
        how(process)
        process.wait(timeout=120)
        return True

    def state(self) -> dict[str, str]:
        """SHA-256 of all that the stages made, by path."""
        return {
            path.relative_to(self.out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and path.relative_to(self.out).parts[0] not in {".tracking", ".partial"}
        }

    def size(self, below: str = "") -> int:
        """Bytes of all files whose path begins with `below`, in an undisturbed run."""
        return sum(size for name, size in self.bytes.items() if name.startswith(below))

    def differences(self) -> list[str]:
        """Files that an undisturbed run made in another way, or not at all, or that it did not make."""
        found = self.state()
        return sorted(path for path in found.keys() | self.undisturbed if found.get(path) != self.undisturbed.get(path))

    def clear(self) -> None:
        """As after a fresh clone."""
        for name in ("out", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)


def send(number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    """Send a signal to a process and all that it started, and wait until all of them are gone."""

    def do(process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, number)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)
        raise AssertionError(f"still there a minute after {number.name}")

    return do


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Suite:
    """What costs time is not measured, and the date is fixed: every file of two runs is the same."""
    checkout = tiny_checkout(tmp_path_factory.mktemp("faults"), root)
    checkout.change("report", "cost", value=[])
    checkout.environment |= {"AV_TRACKING": "off", "SOURCE_DATE_EPOCH": "1700000000"}
    return Suite(checkout)
