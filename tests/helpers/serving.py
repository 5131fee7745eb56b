"""A small web server on loopback: the files of a folder, with ranges, and bad answers where a test asks for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".csv": "text/csv", ".json": "application/json"}


class Server:
    """`answers[path]` are status codes that the next requests get in place of the file (None: the file);
    `limits[path]` are numbers of bytes after which the next connections break (None: never)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str | None]] = []  # path and range of each GET
        self.answers: dict[str, Iterator[int | None]] = {}
        self.limits: dict[str, Iterator[int | None]] = {}
        self.delay = 0.0  # s before each answer
        self.most_at_once = 0
        self.url = ""
        self._now = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(asked == path for asked, _ in self.requests)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder's files at `url` while the block runs."""
    server = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with server.counted():
                time.sleep(server.delay)
                self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(self.path)
            wanted = self.headers.get("Range")
            if self.command == "GET":
                server.requests.append((path, wanted))
            status = next(server.answers.get(path, iter(())), None)
            file = folder / path.lstrip("/")
            if status is None and not file.is_file():
                status = 404
            if status is not None:
                self.send_error(status)
                return
            data = file.read_bytes()
            first, last = 0, len(data) - 1
            if wanted is not None:
                begin, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
                if first > last:
                    self.send_error(416)
                    return
            self.send_response(200 if wanted is None else 206)
            self.send_header("Content-Type", TYPES.get(file.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(last + 1 - first))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
            if wanted is not None:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                limit = next(server.limits.get(path, iter(())), None)
                with suppress(ConnectionError):  # whoever asked has seen enough
                    self.wfile.write(data[first : last + 1][:limit])

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        server.url = f"http://127.0.0.1:{web.server_address[1]}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            web.shutdown()
            thread.join()
