"""Read and write files: whole or not at all, JSON, CSV, named arrays, checksums."""

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

AGAIN = "make it again with `dvc repro --force --single-item <its stage>`"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` when the block ends well: a file is there whole or not at all.

    Raises UserError where there is no room for it."""
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
    """Whether a file of arrays or of tensors, a zip archive both, is all there: each part has its CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # noqa: BLE001 - zipfile lets through what zlib, struct and the decoding of names raise
        return False


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys in the order given, floats at full precision."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its row numbers; floats keep every bit."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays to one .npz file."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Sequence[str] = ("*",)) -> dict[str, np.ndarray]:
    """Read the arrays whose names match one of `names` ("block_*"), by default all; the others are not even read.

    Never runs code from the file. Raises UserError naming a file that cannot be read, or lacks one of `names`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for pattern in names:
                if "*" not in pattern and pattern not in arrays.files:
                    raise KeyError(f"there is no {pattern}")
            wanted = [name for name in arrays.files if any(fnmatchcase(name, pattern) for pattern in names)]
            return {name: arrays[name] for name in wanted}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the stage that makes it") from None
    except Exception as error:  # noqa: BLE001 - zipfile, zlib and numpy each raise their own
        raise UserError(f"{path}: damaged ({error})") from None


def digest(*paths: Path) -> str:
    """SHA-256 over files and folders: names and contents. A store counts by its store.json, which has checksums."""
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
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
