from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from avdistill.data.sources import http as fetch_module
from avdistill.data.sources.http import fetch
from avdistill.pipeline.errors import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves one file, with ranges, and fails in the ways that a test asks for. `asked`: the Range of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/some/file.rar"
        self.content = CONTENT
        self.tag = '"1"'
        self.ranges = True
        self.answers: list[int] = []  # statuses to answer with before it goes well
        self.cuts: list[int] = []  # bytes after which each of the first connections breaks
        self.lie = 0  # bytes by which the length is given too long
        self.chunked = False
        self.asked: list[str | None] = []
        self.before: Callable[[], None] = lambda: None

    def handle_error(self, *_: object) -> None:
        """A client that has had enough closes the connection."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.before()
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        self.close_connection = True
        if server.answers:
            self.send_response(server.answers.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) + server.lie))
        self.end_headers()
        if server.chunked:
            body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch_module, "PAUSE", 0.001)
    monkeypatch.setattr(fetch_module, "TIMEOUT", 5.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def whole(path: Path) -> bool:
    """The file is there, right, and nothing else is left in its folder."""
    return path.read_bytes() == CONTENT and [*path.parent.iterdir()] == [path]


def test_a_file_comes_whole_and_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new/folder/file.rar"
    checks = {"sha256": hashlib.sha256(CONTENT).hexdigest().upper(), "md5": hashlib.md5(CONTENT).hexdigest()}
    assert fetch(server.url, path, size=len(CONTENT), **checks) == path
    assert whole(path)
    fetch(server.url, path, size=len(CONTENT), **checks)
    fetch(server.url, path)
    assert server.asked == [None]


def test_a_wrong_file_of_that_name_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.rar"
    path.write_bytes(CONTENT[:-1] + b"x")
    fetch(server.url, path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert whole(path)


def test_lost_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 1_500_000, 0, 7]
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")
    assert server.asked == [None, "bytes=1000-", "bytes=1501000-", "bytes=1501000-", "bytes=1501007-"]


def test_a_bad_line_may_break_more_often_than_there_are_tries(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] * 25
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")
    assert len(server.asked) == 26 > fetch_module.TRIES


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.cuts = [2_000_000, *[0] * fetch_module.TRIES]
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / "file.rar")
    assert str(error.value) == (
        f"{server.url}: the connection was closed after 2000000 of 3000000 bytes; "
        f"gave up after {fetch_module.TRIES} tries; {tmp_path / 'file.rar.part'} keeps the part received, "
        "the next run resumes from it"
    )
    assert not (tmp_path / "file.rar").exists()
    server.asked.clear()
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")
    assert server.asked == ["bytes=2000000-"]


def test_a_call_that_was_killed_before_the_last_step(server: Server, tmp_path: Path) -> None:
    server.cuts = [2_000_000, *[0] * fetch_module.TRIES]
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / "file.rar")
    (tmp_path / "file.rar.part").write_bytes(CONTENT)
    server.asked.clear()
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")
    assert server.asked == []


@pytest.mark.parametrize("how", ["no ranges", "no version", "weak version", "no version file", "longer part"])
def test_where_it_cannot_go_on_it_begins_anew(server: Server, tmp_path: Path, how: str) -> None:
    server.cuts = [1_000_000, *[0] * fetch_module.TRIES]
    server.ranges = how != "no ranges"
    server.tag = {"no version": "", "weak version": 'W/"1"'}.get(how, '"1"')
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / "file.rar")
    if how == "no version file":
        (tmp_path / "file.rar.part.json").write_text("{")
    if how == "longer part":
        (tmp_path / "file.rar.part").write_bytes(CONTENT + b"x")
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")


def test_pieces_of_two_versions_are_not_glued_together(server: Server, tmp_path: Path) -> None:
    old = bytes(len(CONTENT))
    server.content, server.tag, server.cuts = old, '"0"', [1_000_000]

    def change() -> None:
        if server.asked:
            server.content, server.tag = CONTENT, '"1"'

    server.before = change
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")
    assert server.asked == [None, "bytes=1000000-"]


def test_the_part_of_another_url_is_not_resumed(server: Server, tmp_path: Path) -> None:
    server.content, server.cuts = bytes(len(CONTENT)), [1_000_000, *[0] * fetch_module.TRIES]
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / "file.rar")
    server.content = CONTENT  # and the same ETag by chance
    fetch(server.url + "?other", tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")


def test_a_file_that_has_become_shorter(server: Server, tmp_path: Path) -> None:
    server.content, server.cuts = CONTENT + bytes(1000), [len(CONTENT) + 10]

    def change() -> None:
        if server.asked:
            server.content = CONTENT  # a server that does not change its ETag

    server.before = change
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")


def test_answers_that_pass_are_tried_again(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [500, 503, 429, 502]
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")
    assert len(server.asked) == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("file.rar: HTTP status 500 Internal Server Error; trying again in 0.0 s")


def test_answers_that_do_not_pass_end_at_once(server: Server, tmp_path: Path) -> None:
    for status, words in ((404, "Not Found"), (403, "Forbidden"), (410, "Gone")):
        server.answers = [status]
        with pytest.raises(UserError) as error:
            fetch(server.url, tmp_path / "file.rar")
        assert str(error.value) == f"{server.url}: HTTP status {status} {words}"
    assert len(server.asked) == 3
    assert [*tmp_path.iterdir()] == []


def test_a_server_that_never_recovers(server: Server, tmp_path: Path) -> None:
    server.answers = [503] * 100
    with pytest.raises(UserError, match=f"503 Service Unavailable; gave up after {fetch_module.TRIES} tries$"):
        fetch(server.url, tmp_path / "file.rar")
    assert len(server.asked) == fetch_module.TRIES


def test_pauses_grow_and_have_an_end(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(fetch_module, "PAUSE", 1.0)
    monkeypatch.setattr(fetch_module, "LONGEST_PAUSE", 20.0)
    monkeypatch.setattr(fetch_module.time, "sleep", pauses.append)
    server.answers = [500] * 100
    with pytest.raises(UserError):
        fetch(server.url, tmp_path / "file.rar")
    assert len(pauses) == fetch_module.TRIES - 1
    for number, pause in enumerate(pauses):
        assert min(20, 0.5 * 2**number) <= pause <= min(20, 1.5 * 2**number)


@pytest.mark.parametrize("check", ["sha256", "md5"])
def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path, check: str) -> None:
    found = hashlib.new(check, CONTENT).hexdigest()
    expected = "0" * len(found)
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / "file.rar", **{check: expected})  # type: ignore[arg-type]
    assert str(error.value).startswith(f"{server.url}: expected {check} {expected}, found {found}")
    assert [*tmp_path.iterdir()] == []
    assert len(server.asked) == 1


def test_a_wrong_size_is_refused_before_anything_is_downloaded(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected 2999999 bytes, the server reports 3000000"):
        fetch(server.url, tmp_path / "file.rar", size=len(CONTENT) - 1)
    assert [*tmp_path.iterdir()] == []


def test_a_server_that_lies_about_the_length(server: Server, tmp_path: Path) -> None:
    server.lie = 10
    with pytest.raises(UserError, match="closed after 3000000 of 3000010 bytes; gave up"):
        fetch(server.url, tmp_path / "file.rar")
    assert not (tmp_path / "file.rar").exists()


def test_chunks_tell_when_they_are_whole(server: Server, tmp_path: Path) -> None:
    server.chunked, server.cuts = True, [2_000_000]
    fetch(server.url, tmp_path / "file.rar")
    assert whole(tmp_path / "file.rar")


def test_more_than_the_disk_has_room_for(server: Server, tmp_path: Path) -> None:
    server.lie = 10**18
    with pytest.raises(UserError, match=rf"{tmp_path}: file\.rar needs 1000000000\.0 GB, [\d.]+ GB are"):
        fetch(server.url, tmp_path / "file.rar")


def test_a_file_that_the_user_has(tmp_path: Path) -> None:
    (tmp_path / "file.rar").write_bytes(CONTENT)
    fetch((tmp_path / "file.rar").as_uri(), tmp_path / "copy/file.rar")
    assert whole(tmp_path / "copy/file.rar")
    with pytest.raises(UserError, match=r"file://.*nothing.*No such file"):
        fetch((tmp_path / "nothing").as_uri(), tmp_path / "other")


@pytest.mark.parametrize("url", ["ftp://host/file", "/home/me/file", "htps://host/file", "data:,x"])
def test_other_urls(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a URL that begins with http"):
        fetch(url, tmp_path / "file")


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "PAUSE", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/file"
    with pytest.raises(UserError, match=rf"{url}: .*refused; gave up after {fetch_module.TRIES} tries$"):
        fetch(url, tmp_path / "file")
