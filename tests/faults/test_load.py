"""The served student under load: 200 at once, large bodies, slow clients. It answers or refuses, and goes on."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest

from tests.faults.record import count, record
from tests.pipeline.conftest import Checkout
from tests.pipeline.test_serve import exported, server, videos

pytestmark = pytest.mark.faults
__all__ = ["exported", "server"]  # fixtures

AT_ONCE = 200
MOST = 2 * 2**30  # bytes that the server may take beyond what it takes idle
PIECE = b"a" * 2**20


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


def serving(address: str) -> psutil.Process:
    """The process that listens."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if "flows.model" in command and str(port(address)) in command and "make" not in command[0]:
            return process
    raise AssertionError("the server has gone")


@contextmanager
def memory(address: str) -> Iterator[list[int]]:
    """Bytes that the server takes: before, and again and again while the block runs."""
    process, ended = serving(address), threading.Event()
    measured = [process.memory_info().rss]

    def measure() -> None:
        while not ended.wait(0.05):
            measured.append(process.memory_info().rss)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield measured
    finally:
        ended.set()
        thread.join()


def ask(address: str, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"{address}/invocations", body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:
            return answer.status, json.load(answer)["predictions"][0]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def request_of(data: bytes) -> bytes:
    return json.dumps({"dataframe_records": [{"video": base64.b64encode(data).decode()}]}).encode()


def test_real_clips_at_once(exported: Checkout, server: str) -> None:
    bodies = [request_of(file.read_bytes()) for file in list(videos(exported).values())[:10]]
    wanted = [ask(server, body) for body in bodies]
    assert {status for status, _ in wanted} == {200}
    times = count(AT_ONCE)
    began = time.monotonic()
    with memory(server) as measured, ThreadPoolExecutor(times) as pool:
        answers = list(pool.map(lambda number: ask(server, bodies[number % len(bodies)]), range(times)))
    seconds = time.monotonic() - began
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 503, 504} and statuses[200] > 0
    for number, (status, answer) in enumerate(answers):
        if status == 200:
            expected = wanted[number % len(bodies)][1]
            assert answer["class"] == expected["class"]
            assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    assert max(measured) - measured[0] < MOST
    assert ask(server, bodies[0])[0] == 200
    note = f"{dict(statuses)} in {seconds:.1f} s, {(max(measured) - measured[0]) / 2**20:.0f} MiB more memory at most"
    record("load", "requests of real clips at once", times, note=note)


def send_until_refused(address: str, head: bytes, piece: bytes, most: int) -> bytes:
    """Send pieces until the server answers or ends the connection; the answer's first line."""
    with socket.create_connection(("127.0.0.1", port(address)), timeout=60) as client:
        try:
            client.sendall(head)
            for _ in range(most):
                client.sendall(piece)
        except OSError:
            pass
        try:
            return client.recv(200).partition(b"\r\n")[0]
        except OSError:
            return b"closed"


def test_large_bodies(exported: Checkout, server: str) -> None:
    """With a length that is too large, and without any."""
    head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    asked = [
        (head + b"Content-Length: 10000000000\r\n\r\n", PIECE),
        (head + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + PIECE + b"\r\n"),
    ]
    asked *= max(1, count(20) // 2)
    with memory(server) as measured, ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda request: send_until_refused(server, *request, 200), asked))
    assert all(answer[9:12] in (b"413", b"503", b"408") or answer in (b"closed", b"") for answer in answers), answers
    assert max(measured) - measured[0] < MOST
    body = request_of(next(iter(videos(exported).values())).read_bytes())
    assert ask(server, body)[0] == 200
    assert ask(server, b'{"dataframe_records": ' + b"[" * 100_000)[0] in (400, 500)
    assert ask(server, body)[0] == 200
    note = f"{(max(measured) - measured[0]) / 2**20:.0f} MiB more memory at most"
    record("load", "bodies of hundreds of MB, with and without a length", len(asked), note=note)


def test_slow_clients(exported: Checkout, server: str) -> None:
    """Some never begin, some never end their headers, some their bodies."""
    body = request_of(next(iter(videos(exported).values())).read_bytes())
    times, head = count(AT_ONCE), b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
    with ExitStack() as open_ones:
        slow = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port(server)), timeout=60))
            for _ in range(times)
        ]
        for number, client in enumerate(slow):
            client.sendall([b"", head, head + b"\r\n{"][number % 3])
        began = time.monotonic()
        assert ask(server, body)[0] == 200
        seconds = time.monotonic() - began
        given_up = [client.recv(12) for client in slow[2::3]]
    assert seconds < 30
    assert set(given_up) <= {b"HTTP/1.1 408"}
    assert ask(server, body)[0] == 200
    record("load", "slow clients", times, note=f"another one waited {seconds:.1f} s")
