"""Download published teacher checkpoints, once per machine, and verify their checksums.

The files are in the folder AV_CACHE, by default `avdistill` in XDG_CACHE_HOME or ~/.cache. A file that was put there by
hand is used if its checksum is right.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from avdistill.config.schema import Teacher
from avdistill.data.files import write_text
from avdistill.data.sources import zenodo
from avdistill.data.sources.http import DownloadError, fetch
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import file_lock


class Checkpoint(NamedTuple):
    """A checkpoint at `host` + `path` for a teacher of `kind`.

    `checksum` is `<algorithm>:<hex digits>`; torchvision publishes only the first eight digits, in the file name. If it
    is empty, the checksum in Zenodo's record is used."""

    kind: str
    host: str
    path: str
    checksum: str = ""


RECORD = "3987831"  # of PANNs at Zenodo, CC BY 4.0
PYTORCH = "https://download.pytorch.org"  # torchvision's IMAGENET1K_V1, BSD-3-Clause
TRIES = 3  # without a network, the answer comes in seconds

CHECKPOINTS = {
    "panns:Cnn14_mAP=0.431": Checkpoint(
        "cnn14", zenodo.SITE, f"/records/{RECORD}/files/Cnn14_mAP=0.431.pth", "md5:541141fa2ee191a88f24a3219fff024e"
    ),
    "panns:Cnn14_emb512_mAP=0.420": Checkpoint(
        "cnn14", zenodo.SITE, f"/records/{RECORD}/files/Cnn14_emb512_mAP=0.420.pth"
    ),
    "torchvision:resnet34": Checkpoint("resnet34", PYTORCH, "/models/resnet34-b627a593.pth", "sha256:b627a593"),
    "torchvision:resnet50": Checkpoint("resnet50", PYTORCH, "/models/resnet50-0676ba61.pth", "sha256:0676ba61"),
}


def cache_folder() -> Path:
    """Return the folder of downloaded checkpoints; create it. Raises UserError if that fails."""
    home = os.environ.get("HOME") or "~"
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path(home) / ".cache") / "avdistill"
    folder = Path(os.environ.get("AV_CACHE") or default)
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "no permission to write")
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home folder
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder}: cannot keep checkpoints here ({reason}); set AV_CACHE to a folder that you can write to"
        ) from None
    return folder


def download(teacher: Teacher) -> tuple[Path, dict[str, str]]:
    """Download a published checkpoint into the cache, resuming an interrupted download.

    Returns its path and its origin: `source` (URL) and `checksum`. Raises DownloadError, which states where to put the
    file by hand, if it cannot be downloaded; UserError if its checksum differs; the file is then deleted."""
    published = CHECKPOINTS[teacher.weights]
    url = (teacher.mirror or published.host).rstrip("/") + published.path
    path = cache_folder() / PurePosixPath(published.path).name
    with file_lock(path.with_name(f"{path.name}.lock"), wait=True):
        try:
            checksum = teacher.checksum or published.checksum or _checksum_in_record(url, path)
            return path, {"source": url, "checksum": _fetch(url, path, checksum, teacher.weights)}
        except DownloadError as error:
            raise DownloadError(f"{error}; without a network, copy {url} to {path} by hand") from None


def _fetch(url: str, path: Path, checksum: str, label: str) -> str:
    """Download a file and verify it. Returns its checksum, with all digits."""
    algorithm, digits = checksum.split(":")
    if algorithm == "md5":
        fetch(url, path, md5=digits, label=label, tries=TRIES)
        return checksum
    fetch(url, path, label=label, tries=TRIES)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if not found.startswith(digits):
        path.unlink()
        raise UserError(f"{url}: expected {algorithm} {digits}, found {found}; the downloaded file was deleted")
    return f"{algorithm}:{found}"


def _checksum_in_record(url: str, path: Path) -> str:
    """Return the checksum `md5:…` of a file in Zenodo's record of PANNs; it is kept beside the file in the cache."""
    kept = path.with_name(f"{path.name}.md5")
    if kept.exists():
        return f"md5:{kept.read_text(encoding='utf-8').strip()}"
    try:
        md5 = zenodo.md5(url.partition("/records/")[0], RECORD, tries=TRIES)[path.name]
    except KeyError:
        source = f"{url.partition('/records/')[0]}/api/records/{RECORD}"
        reason = f"no checksum of {path.name} in the record"
        raise UserError(f"{source}: {reason}; set the teacher's `checksum`") from None
    write_text(kept, f"{md5}\n")
    return f"md5:{md5}"
