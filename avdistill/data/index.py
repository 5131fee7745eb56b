"""The index of clips: one row per clip, with its file, class, group, split, times and status."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from avdistill.data.files import AGAIN, sha256, write_csv, write_text
from avdistill.pipeline.errors import UserError

INDEX_COLUMNS = {
    "id": "string",  # unique, and the key of the clip in every store
    "file": "string",  # relative to the dataset's videos
    "label": "int64",  # class number, in alphabetical order of the class names
    "class": "string",
    "group": "string",
    "split": "string",  # train, val or test
    "start": "float64",  # seconds into the file
    "end": "float64",
    "seconds": "float64",
    "audio": "string",  # yes, silent, or no (no audio stream)
    "status": "string",  # ok, corrupt, unavailable (there is no file), or excluded (by the dataset)
    "reason": "string",  # why the clip cannot be used, or why it has no usable sound
}


def write_index(path: Path, index: pd.DataFrame) -> None:
    """Write the index of clips, sorted by id, and its checksum in the format of `sha256sum`, `<path>.sha256`."""
    missing = set(INDEX_COLUMNS) - set(index.columns)
    if missing:
        raise ValueError(f"the index has no columns {sorted(missing)}")
    extra = [column for column in index.columns if column not in INDEX_COLUMNS]
    write_csv(path, index[[*INDEX_COLUMNS, *extra]].sort_values("id", ignore_index=True))
    write_text(_checksum_of(path), f"{sha256(path)}  {path.name}\n")


def read_index(path: Path) -> pd.DataFrame:
    """Read the index of clips: INDEX_COLUMNS and the dataset's own columns.

    Raises UserError if it is missing or its checksum differs."""
    try:
        if not _checksum_of(path).read_text(encoding="utf-8", errors="replace").startswith(sha256(path)):
            raise ValueError("its checksum differs")
        # A class may be named "None" or "NA", so pandas' default NA values are off.
        index = pd.read_csv(path, dtype=INDEX_COLUMNS, keep_default_na=False, na_values={"start": "", "end": ""})
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; run stage split") from None
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())}); {AGAIN}") from None
    if not index["id"].is_unique:
        raise UserError(f"{path}: clip ids are not unique")
    return index


def given_labels(clips: pd.DataFrame) -> pd.Series:
    """Return the labels that training is given (N,), which differ from the labels where the split has wrong ones."""
    return clips["given"] if "given" in clips else clips["label"]


def _checksum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
