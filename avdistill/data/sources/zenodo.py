"""Checksums of the files of a record at Zenodo, which publishes the MD5 of each."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from avdistill.data.sources.http import TRIES, fetch

SITE = "https://zenodo.org"


def md5(site: str, record: str, tries: int = TRIES) -> dict[str, str]:
    """Return the MD5 (hex) of each file of a record, by file name; empty if the answer is no record.

    `site` is SITE or the base URL of a mirror. Raises DownloadError if it does not answer."""
    with TemporaryDirectory() as folder:
        answer = fetch(f"{site}/api/records/{record}", Path(folder) / "record.json", tries=tries).read_bytes()
    try:
        return {str(file["key"]): str(file["checksum"]).removeprefix("md5:") for file in json.loads(answer)["files"]}
    except (ValueError, KeyError, TypeError):
        return {}
