"""Entries of dvc.lock: which outputs a stage has made from which dependencies."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
import zc.lockfile  # type: ignore[import-untyped]

from avdistill.config.loading import LOADER
from avdistill.data.files import write_text

Entry = dict[str, Any]
# LibYAML writes ten times as fast as Python.
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def merged(lock: Mapping[str, Any], entries: Mapping[str, Entry], stale: Collection[str] = ()) -> dict[str, Any]:
    """Return the content of a dvc.lock with `entries` (by stage) in place of its own, and without `stale` stages."""
    kept = {stage: entry for stage, entry in lock.get("stages", {}).items() if stage not in stale}
    return {"schema": "2.0", "stages": {**kept, **entries}}


def merge(path: Path, entries: Mapping[str, Entry], stale: Collection[str] = ()) -> None:
    """Merge entries into a dvc.lock, while no DVC reads or writes it, and drop the entries of `stale` stages."""
    if not entries:
        return
    with _held(path.resolve()):
        lock = LOADER(path.read_text(encoding="utf-8")).get_single_data() if path.exists() else {}
        text = yaml.dump(merged(lock, entries, stale), Dumper=DUMPER, sort_keys=False, allow_unicode=True)
        write_text(path, text)


def digests(entry: Entry) -> list[tuple[str, str]]:
    """Return path and digest of each output of an entry."""
    return [(out["path"], out["md5"]) for out in entry.get("outs", [])]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock that DVC holds while it reads and writes the dvc.lock files of a repository."""
    root = next(folder for folder in path.parents if (folder / ".dvc").is_dir())
    (root / ".dvc" / "tmp").mkdir(exist_ok=True)
    while True:
        try:
            held = zc.lockfile.LockFile(str(root / ".dvc" / "tmp" / "lock"))
            break
        except zc.lockfile.LockError:
            time.sleep(0.1)
    try:
        yield
    finally:
        held.close()
