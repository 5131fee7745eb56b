"""Download published teacher checkpoints and verify their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from avdistill.config.schema import Teacher
from avdistill.data.sources.http import fetch
from avdistill.pipeline.errors import UserError


class Checkpoint(NamedTuple):
    """A checkpoint at `host` + `path` for a teacher of `kind`.

    `checksum` is `<algorithm>:<hex digits>`; torchvision publishes only the first eight digits, in the file name. If it
    is empty, the checksum in Zenodo's record is used."""

    kind: str
    host: str
    path: str
    checksum: str = ""


ZENODO, RECORD = "https://zenodo.org", "3987831"  # PANNs, CC BY 4.0
PYTORCH = "https://download.pytorch.org"  # torchvision's IMAGENET1K_V1, BSD-3-Clause

CHECKPOINTS = {
    "panns:Cnn14_mAP=0.431": Checkpoint(
        "cnn14", ZENODO, f"/records/{RECORD}/files/Cnn14_mAP=0.431.pth", "md5:541141fa2ee191a88f24a3219fff024e"
    ),
    "panns:Cnn14_emb512_mAP=0.420": Checkpoint("cnn14", ZENODO, f"/records/{RECORD}/files/Cnn14_emb512_mAP=0.420.pth"),
    "torchvision:resnet34": Checkpoint("resnet34", PYTORCH, "/models/resnet34-b627a593.pth", "sha256:b627a593"),
    "torchvision:resnet50": Checkpoint("resnet50", PYTORCH, "/models/resnet50-0676ba61.pth", "sha256:0676ba61"),
}


def download(teacher: Teacher, folder: Path) -> tuple[Path, dict[str, str]]:
    """Download a published checkpoint into `folder`, resuming an interrupted download.

    Returns its path and its origin: `source` (URL) and `checksum`. Raises UserError if it cannot be downloaded, or if
    its checksum differs; the file is then deleted."""
    published = CHECKPOINTS[teacher.weights]
    host = (teacher.mirror or published.host).rstrip("/")
    path = folder / PurePosixPath(published.path).name
    checksum = teacher.checksum or published.checksum or _checksum_in_record(host, path.name, folder)
    algorithm, digits = checksum.split(":")
    url = host + published.path
    if algorithm == "md5":
        fetch(url, path, md5=digits, label=teacher.weights)
        return path, {"source": url, "checksum": checksum}
    fetch(url, path, label=teacher.weights)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if not found.startswith(digits):
        path.unlink()
        raise UserError(f"{url}: expected {algorithm} {digits}, found {found}; the downloaded file was deleted")
    return path, {"source": url, "checksum": f"{algorithm}:{found}"}


def _checksum_in_record(host: str, name: str, folder: Path) -> str:
    """Return the checksum `md5:…` of a file in Zenodo's record of PANNs."""
    url = f"{host}/api/records/{RECORD}"
    try:
        record = json.loads(fetch(url, folder / "record.json").read_text(encoding="utf-8"))
        return str({file["key"]: file["checksum"] for file in record["files"]}[name])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url}: no checksum of {name} in the record; set the teacher's `checksum`") from None
