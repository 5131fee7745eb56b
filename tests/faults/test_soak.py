"""The served student under a load that goes on: no errors, and memory that does not grow.

LOAD_SECONDS=3600 python -m pytest tests/faults/test_soak.py -m faults -n 0      # an hour; LOAD_CLIENTS (32)
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from tests.faults.record import record
from tests.faults.test_load import ask, request_of, serving
from tests.pipeline.conftest import Checkout
from tests.pipeline.test_serve import exported, server, videos

pytestmark = pytest.mark.faults
__all__ = ["exported", "server"]  # fixtures

SECONDS, CLIENTS = float(os.environ.get("LOAD_SECONDS") or 60), int(os.environ.get("LOAD_CLIENTS") or 32)
EVERY = 0.25  # s between two measurements of memory
WARM = 0.25  # share of the time in which memory may grow: PyTorch allocates


class Soak(NamedTuple):
    """What was measured: answers by status, seconds per request, and resident MiB at times (s) after warming up."""

    statuses: Counter[int]
    seconds: np.ndarray
    times: np.ndarray
    memory: np.ndarray

    @property
    def growth(self) -> float:
        """MiB that memory grew by while it was measured, by least squares."""
        return float(np.polyfit(self.times, self.memory, 1)[0] * np.ptp(self.times))

    @property
    def noise(self) -> float:
        """MiB that memory goes up and down by, beside its growth: 95 % of the measurements."""
        return float(1.96 * np.std(self.memory - np.polyval(np.polyfit(self.times, self.memory, 1), self.times)))

    def __str__(self) -> str:
        p50, p99 = np.percentile(self.seconds, [50, 99])
        return (
            f"{dict(self.statuses)}, p50 {p50:.3f} s, p99 {p99:.3f} s, {np.median(self.memory):.0f} MiB, "
            f"growth {self.growth:+.1f} MiB with noise of {self.noise:.1f} MiB"
        )


def soak(address: str, server: psutil.Process, bodies: list[bytes], clients: int, seconds: float) -> Soak:
    """Have clients ask for `seconds`, each again when it has its answer; measure memory with that of its readers."""
    began, times, memory = time.monotonic(), [], []
    end = began + seconds
    done = threading.Event()

    def measure() -> None:
        while not done.wait(EVERY):
            total = 0
            for process in (server, *server.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            if time.monotonic() - began > WARM * seconds:
                times.append(time.monotonic() - began)
                memory.append(total / 2**20)

    def client(number: int) -> list[tuple[int, float]]:
        answers = []
        while time.monotonic() < end:
            before = time.monotonic()
            status, _ = ask(address, bodies[(number + len(answers)) % len(bodies)])
            answers.append((status, time.monotonic() - before))
        return answers

    watcher = threading.Thread(target=measure)
    watcher.start()
    try:
        with ThreadPoolExecutor(clients) as pool:
            answers = [answer for some in pool.map(client, range(clients)) for answer in some]
    finally:
        done.set()
        watcher.join()
    statuses = Counter(status for status, _ in answers)
    return Soak(statuses, np.array([each for _, each in answers]), np.array(times), np.array(memory))


def test_a_load_that_goes_on(exported: Checkout, server: str) -> None:
    bodies = [request_of(file.read_bytes()) for file in list(videos(exported).values())[:10]]
    with ThreadPoolExecutor(CLIENTS) as pool:  # all readers start
        assert {status for status, _ in pool.map(lambda n: ask(server, bodies[n % len(bodies)]), range(CLIENTS))} == {
            200
        }
    found = soak(server, serving(server), bodies, CLIENTS, SECONDS)
    assert set(found.statuses) == {200}, found
    assert found.growth < max(found.noise, 0.02 * float(np.median(found.memory))), found
    record("load", f"{CLIENTS} clients for {SECONDS:.0f} s", sum(found.statuses.values()), note=str(found))
