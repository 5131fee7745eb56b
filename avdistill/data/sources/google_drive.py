"""Download a public file from Google Drive, with or without its page that asks for confirmation.

Drive cannot scan large files for viruses and then sends a page with a form in place of the file; the form's hidden
fields (id, confirm, uuid, …) make up the URL of the file. With `confirm=t` in the first request the file usually comes
at once. A file that too many people download is refused for about a day, with a page without such a form.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

from avdistill.data.sources.http import DownloadError, fetch

SITE = "https://drive.usercontent.google.com"
FIELD = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)"')


def download(file: str, path: Path) -> Path:
    """Download the file with the id `file` to `path` and return `path`.

    An existing file is not downloaded again. An interrupted download resumes unless Drive sent the page first: the
    URL in its form is valid once. Raises DownloadError if Drive sends no file."""
    if path.exists() and not _is_page(path):
        return path
    path.unlink(missing_ok=True)
    url = f"{SITE}/download?{urlencode({'id': file, 'export': 'download', 'confirm': 't'})}"
    if not _is_page(fetch(url, path)):
        return path
    fields = {name: unescape(value) for name, value in FIELD.findall(_take(path))}
    if fields:
        confirmed = f"{SITE}/download?{urlencode(fields)}"
        if not _is_page(fetch(confirmed, path)):
            return path
        _take(path)
    raise DownloadError(f"{url}: Google Drive sent a page, not the file; it may be over its quota of downloads")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _take(path: Path) -> str:
    """Return the text of a file and delete the file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    path.unlink()
    return text
