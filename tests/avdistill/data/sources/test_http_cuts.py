"""Connections that are cut after every chunk, and what servers answer then: never a mixture of two files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from avdistill.data.sources import http
from avdistill.data.sources.http import fetch

SIZE, PIECE = 6000, 1000
OLD, NEW = (np.random.default_rng(seed).bytes(SIZE) for seed in (0, 1))
CUTS = sorted({min(SIZE - 1, max(0, place + by)) for place in range(0, SIZE + 1, PIECE) for by in (-1, 0, 1)})


class Answer(BaseHTTPRequestHandler):
    """Sends OLD up to a cut; what it does with all further requests is in `then`."""

    protocol_version = "HTTP/1.1"
    server: Origin

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append(f"{self.path} {self.headers.get('Range')}")
        if len(self.server.asked) == 1:
            self.send(200, OLD, '"old"', cut=self.server.cut)
        else:
            self.server.then(self)

    @property
    def start(self) -> int:
        """Where the client wants to go on."""
        return int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def send(self, status: int, body: bytes, tag: str | None, place: str | None = None, cut: int = SIZE) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if tag:
            self.send_header("ETag", tag)
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        self.wfile.write(body[:cut])

    def rest(self, content: bytes, tag: str | None) -> None:
        """What was asked for, of a file of this version."""
        if self.start:
            self.send(206, content[self.start :], tag, f"bytes {self.start}-{SIZE - 1}/{SIZE}")
        else:
            self.send(200, content, tag)


class Origin(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []
        self.cut = 0
        self.then: Callable[[Answer], None] = lambda answer: None


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    monkeypatch.setattr(http, "PAUSE", 0.0001)
    monkeypatch.setattr(http, "TIMEOUT", 20.0)
    monkeypatch.setattr(http, "CHUNK", PIECE)
    with Origin() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def changed(answer: Answer) -> None:
    """Another version, and a server that knows If-Range."""
    answer.send(200, NEW, '"new"')


def changed_unseen(answer: Answer) -> None:
    """Another version, and a server, or a cache before it, that does not look at If-Range."""
    answer.rest(NEW, '"new"')


def whole_again(answer: Answer) -> None:
    """A server without ranges."""
    answer.send(200, OLD, '"old"')


def from_elsewhere(answer: Answer) -> None:
    """As many bytes as are lacking, but others; the whole file when asked for that."""
    if answer.start:
        answer.send(206, OLD[: SIZE - answer.start], '"old"', f"bytes 0-{SIZE - answer.start - 1}/{SIZE}")
    else:
        answer.send(200, OLD, '"old"')


def too_much(answer: Answer) -> None:
    """All bytes, said to be those that are lacking."""
    if answer.start:
        answer.send(206, OLD, '"old"', f"bytes {answer.start}-{SIZE - 1}/{SIZE}")
    else:
        answer.send(200, OLD, '"old"')


def redirected(answer: Answer) -> None:
    """To a mirror that has another version."""
    if answer.path == "/mirror":
        answer.rest(NEW, '"new"')
        return
    answer.send_response(302)
    answer.send_header("Location", "/mirror")
    answer.send_header("Content-Length", "0")
    answer.end_headers()


def moved(answer: Answer) -> None:
    """To another place that has the same version."""
    if answer.path == "/mirror":
        answer.rest(OLD, '"old"')
    else:
        redirected(answer)


def no_version(answer: Answer) -> None:
    """The rest, without an ETag: the server has looked at If-Range."""
    answer.rest(OLD, None)


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (changed, NEW),
        (changed_unseen, NEW),
        (whole_again, OLD),
        (from_elsewhere, OLD),
        (too_much, OLD),
        (redirected, NEW),
        (moved, OLD),
        (no_version, OLD),
    ],
)
def test_a_connection_cut_after_every_chunk(
    origin: Origin, tmp_path: Path, then: Callable[[Answer], None], expected: bytes
) -> None:
    origin.then = then
    for cut in CUTS:
        origin.cut, origin.asked[:] = cut, []
        folder = tmp_path / str(cut)
        fetch(f"http://127.0.0.1:{origin.server_port}/file", folder / "file")
        assert (folder / "file").read_bytes() == expected, cut
        assert [path.name for path in folder.iterdir()] == ["file"]
        assert len(origin.asked) > 1


def test_a_part_that_nobody_asked_for_is_no_file(origin: Origin, tmp_path: Path) -> None:
    """Some caches answer 206 to a request without a range."""
    asked = []

    def part(answer: Answer) -> None:
        asked.append(answer.headers.get("Range"))
        if len(asked) == 1:
            answer.send(206, OLD[:PIECE], '"old"', f"bytes 0-{PIECE - 1}/{SIZE}")
        else:
            answer.rest(OLD, '"old"')

    origin.then, origin.asked = part, ["the first one"]
    fetch(f"http://127.0.0.1:{origin.server_port}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == OLD
    assert asked[0] is None and len(asked) == 2


def test_what_a_killed_process_left_beside_a_whole_file_goes(origin: Origin, tmp_path: Path) -> None:
    """Killed between the last two steps: the renaming, and the deletion of what was known of the part."""
    origin.then, origin.asked = whole_again, ["the first one"]
    url, path = f"http://127.0.0.1:{origin.server_port}/file", tmp_path / "file"
    fetch(url, path)
    (tmp_path / "file.part.json").write_text("{}")
    fetch(url, path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
