"""Files from the net: resumed after a break, tried again with growing pauses, checked, and whole or absent.

What has come is in `<path>.part`, and `<path>.part.json` says of which version of which file it is a part, so that
pieces of two versions are never glued together. Only a file that is whole and passes its checks gets its name.
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
TIMEOUT = 60.0  # s without a byte
TRIES = 8  # in a row that bring nothing new
PAUSE = 1.0  # s before the second try; doubles with each further one
LONGEST_PAUSE = 120.0  # s
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers of HTTP that may be others in a minute


class TransientError(Exception):
    """What may go better next time. `pause`: seconds that the server asks for."""

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
) -> Path:
    """Download `url` to `path` and return `path`. A file that is there and passes the checks is not fetched again.

    `url` is http, https or file. `sha256` and `md5` are in hex, `size` in bytes; `label` stands before the progress
    bar, by default the file's name. Goes on with what an earlier call has left, if the server still has the same
    version (HTTP range with If-Range; a server that knows no ranges sends the file from its beginning). Broken
    connections and answers that pass (429, 5xx) are tried again up to TRIES times without a new byte.
    Raises UserError, with the url, for every other answer, after the last try, for a full disk, and for a file that
    is not the expected one, which is then deleted.
    """
    scheme = urlsplit(url).scheme.lower()
    if scheme not in SCHEMES:
        raise UserError(f"{url}: expected a URL that begins with http:// or https://; {nearest(scheme, SCHEMES)}")
    checks = {"size": size, "sha256": sha256, "md5": md5}
    if path.exists() and _mismatch(path, checks) is None:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    furthest, failures = _length(part), 0
    while True:
        try:
            _receive(url, part, size, label or path.name)
            break
        except TransientError as error:
            # A long download over a bad line may break any number of times, as long as each try brings more of it.
            failures = 0 if _length(part) > furthest else failures + 1
            furthest = max(furthest, _length(part))
            if failures == TRIES:
                kept = f"; {part} keeps what has come, the next run goes on from there" if _length(part) else ""
                raise UserError(f"{url}: {error}; gave up after {TRIES} tries{kept}") from None
            pause = PAUSE * 2 ** max(0, failures - 1) * random.uniform(0.5, 1.5)
            pause = min(max(pause, error.pause), LONGEST_PAUSE)
            print(f"{label or path.name}: {error}; trying again in {pause:.1f} s", file=sys.stderr, flush=True)
            time.sleep(pause)
    problem = _mismatch(part, checks)
    if problem is not None:
        _discard(part)
        raise UserError(f"{url}: {problem}; deleted what was downloaded")
    part.replace(path)
    _notes(part).unlink(missing_ok=True)
    return path


def _receive(url: str, part: Path, size: int | None, label: str) -> None:
    """Bring `part` to its full length, or raise TransientError."""
    notes = _read_notes(part, url)
    done = _length(part)
    if notes and done == notes["size"]:
        return  # an earlier call ended between the last byte and the new name
    if not notes or done > notes["size"]:
        _discard(part)
        done = 0
    headers = {"User-Agent": "avdistill", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": notes["version"]}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - fetch has looked at the scheme
    with _open(request, part) as response:
        if response.status != 206:
            done = 0
        length = response.headers.get("Content-Length") or ""
        total = done + int(length) if length.isdigit() else size
        if size is not None and total != size:
            _discard(part)
            raise UserError(f"{url}: expected {size} bytes, the server has {total}")
        came = response.headers.get("Content-Range", "")
        if done and not (total == notes["size"] and came.startswith(f"bytes {done}-")):
            _discard(part)
            raise TransientError("the server sent another range than was asked for")
        if total is None and not getattr(response, "chunked", False):
            raise UserError(f"{url}: the server does not say how long the file is, so nobody knows when it is whole")
        _check_room(part, (total or 0) - done)
        if not done:
            _discard(part)
            # Only a version that the server can name can be asked for again; a weak ETag is no such name.
            tag = response.headers.get("ETag", "")
            version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
            if total is not None and version:
                write_json(_notes(part), {"url": url, "version": version, "size": total})
        chunks = None if total is None else -(-(total - done) // CHUNK)
        with part.open("ab" if done else "wb") as file:
            for chunk in progress(_chunks(response), f"{label} (MiB)", total=chunks):
                _write(file, chunk)
    if total is not None and _length(part) != total:
        raise TransientError(f"the connection ended after {_length(part)} of {total} bytes")


def _open(request: urllib.request.Request, part: Path) -> Any:
    """The server's answer; TransientError where another try is worth it, UserError where not."""
    url = request.full_url
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310 - fetch has looked at the scheme
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the file is now
            _discard(part)
            raise TransientError("the file has changed on the server") from None
        answer = f"the server answers {error.code} {_line(error.reason)}"
        if error.code not in PASSING:
            raise UserError(f"{url}: {answer}") from None
        wait = error.headers.get("Retry-After", "")
        raise TransientError(answer, float(wait) if wait.isdigit() else 0.0) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{url}: the server's certificate cannot be verified ({error.reason.verify_message}); check this "
                "machine's clock and certificates, or download the file by other means"
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
    """As file.write, but a full disk is the user's to mend, not a connection to be tried again."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise UserError(f"{file.name}: cannot be written: {error.strerror}") from None


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.parent}: {needed / 1e9:.1f} GB are needed for {part.stem}, {free / 1e9:.1f} GB are free"
        )


def _mismatch(path: Path, checks: dict[str, Any]) -> str | None:
    """In what the file differs from what was expected; None where it does not."""
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


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(part: Path, url: str) -> dict[str, Any]:
    """What is known of the version that `part` is of; nothing where it is not known, or of another URL."""
    try:
        notes = json.loads(_notes(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(notes, dict) and notes.keys() >= {"url", "version", "size"}
    return notes if whole and notes["url"] == url else {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _line(reason: object) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
