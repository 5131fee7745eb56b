"""Atomic writes, JSON, CSV, named arrays and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avdistill.pipeline.errors import UserError, room_for

AGAIN = "regenerate it with `dvc repro --force --single-item <its stage>`"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` if the block succeeds: writes are atomic.

    Raises UserError if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with room_for(path):
            yield partial
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def intact(path: Path) -> bool:
    """Return whether an .npz file or a file of tensors (both are zip archives) passes its CRC-32 checks."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # noqa: BLE001 - zipfile does not wrap the errors of zlib, struct and name decoding
        return False


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, with keys in insertion order and floats at full precision."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV without its index; floats round-trip exactly."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays to an .npz file."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Sequence[str] = ("*",)) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file whose names match one of the patterns `names` ("block_*"), by default all.

    Never unpickles. Raises UserError if the file cannot be read, or has no array of a name without `*`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for pattern in names:
                if "*" not in pattern and pattern not in arrays.files:
                    raise KeyError(f"there is no array {pattern}")
            wanted = [name for name in arrays.files if any(fnmatchcase(name, pattern) for pattern in names)]
            return {name: arrays[name] for name in wanted}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that writes it") from None
    except Exception as error:  # noqa: BLE001 - zipfile, zlib and NumPy have no common base class of errors
        raise UserError(f"{path}: damaged ({error})") from None


def digest(*paths: Path) -> str:
    """Return the SHA-256 over names and contents of files and folders; of a store, over its store.json only."""
    total = hashlib.sha256()
    for path in paths:
        if path.is_dir() and (path / "store.json").exists():
            files = [path / "store.json"]
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        else:
            files = [path]
        for file in files:
            total.update(f"{file.relative_to(path)}\0{sha256(file)}\0".encode())
    return total.hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
