"""Where an exported model comes from: digests of data, params, code and packages, as dvc.lock records them.

Stage export writes `provenance.json` beside the MLmodel:

  stage, lock    the stage that made the model, and the dvc.lock that records it, relative to the repository's root
  data           MD5 by path: outputs of the stages upstream, and what they read from outside
  params, code   MD5 by path: files of stages check and code that these stages depend on
  packages       versions by name, of Python and of the packages that the outputs of these stages come from
  files          MD5 by path: all other files of the model

Only what the exported student comes from counts, not the other jobs of the suite. Where stages are run by hand,
without a dvc.lock, there are no data, params and code.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avdistill.config.loading import LOADER
from avdistill.config.types import NO_TEACHER
from avdistill.data.files import write_json
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.locks import is_complete

NAME = "provenance.json"
KINDS = ("data", "params", "code")
PATIENCE = 30.0  # s to wait for a DVC that is writing dvc.lock


def record(model: Path, stage: str, lock: Path, out: str, paths: Iterable[str]) -> None:
    """Write provenance.json of a model, whose other files are there; `paths` are what the stage reads, under `out`."""
    stages, paths = locked(lock), list(paths)
    found = trace(stages, out, paths)
    if stages:  # the stage is in dvc.lock only when it has ended, so what it reads may not be
        new = [path for path in paths if kind_of(path, out) == "code" and Path(path).is_file()]
        found["code"] |= {path: md5(Path(path)) for path in new}
    versions = {"python": platform.python_version()} | packages(map(Path, found["code"]))
    about = {"stage": stage, "lock": lock.as_posix(), "out": out, **found, "packages": versions, "files": files(model)}
    write_json(model / NAME, about)


def locked(path: Path) -> dict[str, Any]:
    """Return the stages of a dvc.lock, {} without the file. Raises UserError if it stays incomplete for PATIENCE s."""
    until = time.monotonic() + PATIENCE
    while path.exists():
        text = path.read_text(encoding="utf-8", errors="replace")
        if is_complete(text):
            stages: dict[str, Any] = LOADER(text).get_single_data()["stages"]
            return stages
        if time.monotonic() > until:
            raise UserError(f"{path}: incomplete; another DVC is writing it, or was killed; run `make repro`")
        time.sleep(0.1)
    return {}


def trace(stages: dict[str, Any], out: str, paths: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return MD5s by path, for each of KINDS: `paths` and all that they come from, as far as dvc.lock has them."""
    made = {output["path"]: stage for stage in stages.values() for output in stage.get("outs", [])}
    known = {entry["path"]: entry["md5"] for stage in stages.values() for entry in stage.get("deps", [])}
    known |= {entry["path"]: entry["md5"] for stage in stages.values() for entry in stage.get("outs", [])}
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    pending = list(paths)
    while pending:
        path = pending.pop()
        kind = kind_of(path, out)
        if path not in known or path in found[kind] or path.endswith(f"/{NO_TEACHER}"):
            continue
        found[kind][path] = known[path]
        if kind == "data" and path in made:
            pending += [dependency["path"] for dependency in made[path].get("deps", [])]
    return {kind: dict(sorted(values.items())) for kind, values in found.items()}


def packages(paths: Iterable[Path]) -> dict[str, str]:
    """Return the versions of packages by name in the files of stage code, as far as they are there."""
    versions: dict[str, str] = {}
    for path in paths:
        if path.is_file():
            versions |= json.loads(path.read_text(encoding="utf-8"))["packages"]
    return versions


def kind_of(path: str, out: str) -> str:
    """Return which of KINDS a path is."""
    return {"check": "params", "code": "code"}.get(path.removeprefix(f"{out}/").partition("/")[0], "data")


def md5(path: Path) -> str:
    """Return the MD5 of a file, as in dvc.lock: a checksum, not a protection."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def files(model: Path) -> dict[str, str]:
    """Return the MD5 of each file of a model by path, except those of Python's cache, MLflow's notes and NAME."""
    return {
        path.relative_to(model).as_posix(): md5(path)
        for path in sorted(model.rglob("*"))
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.name not in (NAME, "registered_model_meta")
        and not path.name.startswith(".")
    }


def folder_md5(entries: dict[str, str]) -> str:
    """Return DVC's MD5 of a folder from those of its files by path."""
    listed = [{"md5": entries[path], "relpath": path} for path in sorted(entries)]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
