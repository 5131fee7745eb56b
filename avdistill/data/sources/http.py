"""Download files with resumption, retries with exponential backoff, and checksums.

A partial download is kept in `<path>.part`. `<path>.part.json` records the URL, the version (ETag or Last-Modified)
and the size, so that parts of two versions are never joined. The file is renamed to `<path>` only when it is complete
and passes its checks.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import ssl
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from avdistill.data.files import write_json
from avdistill.pipeline.errors import UserError, nearest
from avdistill.pipeline.progress import progress

SCHEMES = ("http", "https", "file")
CHUNK = 1 << 20  # 1 MiB, the unit of the progress bar
TIMEOUT = 60.0  # s without a received byte
TRIES = 8  # consecutive ones without a new byte
PAUSE = 1.0  # s before the second try; doubled for each later one
LONGEST_PAUSE = 120.0  # s
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP status codes that are worth another try


class DownloadError(UserError):
    """The server cannot be reached, or does not send the file."""


class TransientError(Exception):
    """A failure that may not recur. `pause`: seconds of the server's Retry-After header, 0 if it has none."""

    def __init__(self, reason: object, pause: float = 0.0) -> None:
        super().__init__(_line(reason))
        self.pause = pause


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    label: str = "",
    tries: int = TRIES,
) -> Path:
    """Download `url` to `path` and return `path`. An existing file that passes the checks is not downloaded again.

    `url` is http, https or file. `sha256` and `md5` are in hex, `size` in bytes. `label` is the label of the progress
    bar, by default the file name. Resumes a partial download if the server still has the same version (HTTP range
    with If-Range; a server without support for ranges sends the whole file again). Lost connections and the status
    codes in TRANSIENT are retried until `tries` consecutive tries bring no new byte.
    Raises DownloadError with the URL for any other status and after the last try; another UserError if the disk is full
    or a check fails; a file that fails a check is deleted.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in SCHEMES:
        raise UserError(f"{url}: expected a URL that begins with http:// or https://; {nearest(scheme, SCHEMES)}")
    checks = {"size": size, "sha256": sha256, "md5": md5}
    part = path.with_name(f"{path.name}.part")
    if path.exists() and _mismatch(path, checks) is None:
        _discard(part)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    furthest, failures = _length(part), 0
    while True:
        try:
            _receive(url, part, size, label or path.name)
            break
        except TransientError as error:
            # A long download over an unstable connection may fail any number of times if each try makes progress.
            failures = 0 if _length(part) > furthest else failures + 1
            furthest = max(furthest, _length(part))
            if failures >= tries:
                kept = f"; {part} keeps the part received, the next run resumes from it" if _length(part) else ""
                raise DownloadError(f"{url}: {error}; gave up after {tries} tries{kept}") from None
            pause = PAUSE * 2 ** max(0, failures - 1) * random.uniform(0.5, 1.5)
            pause = min(max(pause, error.pause), LONGEST_PAUSE)
            print(f"{label or path.name}: {error}; trying again in {pause:.1f} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    problem = _mismatch(part, checks)
    if problem is not None:
        _discard(part)
        raise UserError(f"{url}: {problem}; the downloaded file was deleted")
    part.replace(path)
    _version_file(part).unlink(missing_ok=True)
    return path


def _receive(url: str, part: Path, size: int | None, label: str) -> None:
    """Complete `part` with one request. Raises TransientError if that may succeed at another try."""
    known = _read_version(part, url)
    done = _length(part)
    if known and done == known["size"]:
        return  # an earlier call was interrupted between the last byte and the renaming
    if not known or done > known["size"]:
        _discard(part)
        done = 0
    headers = {"User-Agent": "avdistill", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": known["version"]}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - fetch has checked the scheme
    with _open(request, part) as response:
        if response.status != 206:
            done = 0
        length = response.headers.get("Content-Length") or ""
        total = done + int(length) if length.isdigit() else size
        if size is not None and total != size:
            _discard(part)
            raise UserError(f"{url}: expected {size} bytes, the server reports {total}")
        content_range = response.headers.get("Content-Range", "")
        if response.status == 206:
            if not done or total != known["size"] or not content_range.startswith(f"bytes {done}-"):
                _discard(part)
                expected = f"'bytes {done}-…'" if done else "the whole file"
                raise TransientError(f"the server sent range '{content_range}', expected {expected}")
            # Some servers, and caches before them, ignore If-Range.
            name = "ETag" if known["version"].startswith('"') else "Last-Modified"
            if response.headers.get(name, known["version"]) != known["version"]:
                _discard(part)
                raise TransientError("the file has changed on the server")
        if total is None and not getattr(response, "chunked", False):
            raise UserError(f"{url}: the server sends no Content-Length, so a truncated download would go unnoticed")
        _check_room(part, (total or 0) - done)
        if not done:
            _discard(part)
            # If-Range needs a strong validator: a weak ETag ("W/…") does not identify the bytes.
            tag = response.headers.get("ETag", "")
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
            if total is not None and version:
                write_json(_version_file(part), {"url": url, "version": version, "size": total})
        chunks = None if total is None else -(-(total - done) // CHUNK)
        with part.open("ab" if done else "wb") as file:
            for chunk in progress(_chunks(response), f"{label} (MiB)", total=chunks):
                _write(file, chunk)
    if total is not None and _length(part) != total:
        raise TransientError(f"the connection was closed after {_length(part)} of {total} bytes")


def _open(request: urllib.request.Request, part: Path) -> Any:
    """Send a request and return the response. Raises TransientError if another try may help, else UserError."""
    url = request.full_url
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - fetch has checked the scheme
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the current version
            _discard(part)
            raise TransientError("the file has changed on the server") from None
        answer = f"HTTP status {error.code} {_line(error.reason)}"
        if error.code not in TRANSIENT:
            raise DownloadError(f"{url}: {answer}") from None
        wait = error.headers.get("Retry-After", "")
        raise TransientError(answer, float(wait) if wait.isdigit() else 0.0) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{url}: the server's certificate cannot be verified ({error.reason.verify_message}); check this "
                "machine's clock and CA certificates, or download the file by other means"
            ) from None
        if urlsplit(url).scheme.lower() == "file":
            raise UserError(f"{url}: {_line(error.reason)}") from None
        raise TransientError(error.reason) from None
    except InvalidURL as error:
        raise UserError(f"{url}: {_line(error)}") from None
    except (OSError, HTTPException) as error:
        raise TransientError(error) from None


def _chunks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(CHUNK)
        except (OSError, HTTPException) as error:
            raise TransientError(error) from None
        if not chunk:
            return
        yield chunk


def _write(file: Any, chunk: bytes) -> None:
    """Write a chunk. Raises UserError, not OSError: a full disk must not be retried like a lost connection."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise UserError(f"{file.name}: cannot be written: {error.strerror}") from None


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.parent}: {part.stem} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "make room and run again"
        )


def _mismatch(path: Path, checks: dict[str, Any]) -> str | None:
    """Return the first check that a file fails, as a message; None if it passes all."""
    for name, expected in checks.items():
        if expected is None:
            continue
        found: int | str
        if name == "size":
            found = _length(path)
        else:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, name).hexdigest()
            expected = str(expected).lower()
        if found != expected:
            return f"expected {name} {expected}, found {found}"
    return None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path, url: str) -> dict[str, Any]:
    """Read url, version and size of the file that `part` belongs to; empty if unknown or of another URL."""
    try:
        version = json.loads(_version_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    complete = isinstance(version, dict) and version.keys() >= {"url", "version", "size"}
    return version if complete and version["url"] == url else {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
