"""Datasets, one module per kind of origin.

To add a dataset, write its module here (see `DatasetModule`) and a class for its origin in avdistill/config/origins.py.

Stage download lists the clips of every dataset in clips.csv, with the columns

    id           unique; the key of the clip in every store
    file         path relative to videos(…)
    class        name of the class
    group        clips of one recording or person; all clips of a group, of whatever class, are in one split, except
                 in published splits that do otherwise
    split        train, val or test; no such column if the dataset has no official splits
    start        seconds into the file; empty: the beginning of the file
    end          seconds into the file; empty: the end of the file
    unavailable  why there is no file; empty if there is one; no such column if the dataset has all its files
    excluded     why the clip is not used, whether or not there is a file; empty if it is used; column optional

and any further columns of the dataset, which the index keeps.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CLIPS = "clips.csv"
MOST = 12  # reasons in one line


class Clip(NamedTuple):
    """A clip: the seconds `start` to `end` (None: to the end) of a video file."""

    id: str
    path: Path
    start: float
    end: float | None


class DatasetModule(Protocol):
    """Interface of a dataset's module. `origin` is from params.yaml, `folder` is the output of stage download."""

    def check(self, origin: Any) -> None:
        """Check quickly, before any work, that the dataset can be made. Raises UserError."""

    def download(self, origin: Any, folder: Path) -> None:
        """Write clips.csv, and the videos unless the user has them, to `folder`; resume an interrupted download."""

    def videos(self, origin: Any, folder: Path) -> Path:
        """Return the folder that the column `file` is relative to."""


def of(origin: Any) -> DatasetModule:
    """Return the module of the origin's kind."""
    return cast(DatasetModule, import_module(f"avdistill.data.datasets.{origin.kind}"))


def published(origin: Any) -> dict[str, int]:
    """Return the published count of usable clips by split (train includes val); empty if it is unknown."""
    counts = getattr(of(origin), "published", None)
    return counts(origin) if counts else {}


def clips(folder: Path) -> pd.DataFrame:
    """Read clips.csv in `folder`; the module docstring lists the columns. Text such as "NA" is not read as missing.

    Raises UserError if the file cannot be read."""
    import pandas as pd

    names = ["id", "file", "class", "group", "split", "unavailable", "excluded"]
    empty = {"start": "", "end": ""}
    path = folder / CLIPS
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(names, "string"), keep_default_na=False, na_values=empty)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: cannot be read as a table ({' '.join(str(error).split())})") from None


def print_counts(name: str, clips: pd.DataFrame, left_out: Mapping[str, int]) -> None:
    """Print how many clips of a dataset are listed or found, used, and left out for which reason.

    `clips` are the rows of clips.csv; their columns `unavailable` and `excluded` give reasons. `left_out` counts what
    has no row, by reason. Numbers and details of a reason are dropped; the rarest reasons are joined."""
    reasons = Counter(dict(left_out))
    used = clips.assign(reason="")
    for column in ("unavailable", "excluded"):
        if column in used:
            used["reason"] = used["reason"].where(used["reason"] != "", used[column])
    for reason, count in used["reason"][used["reason"] != ""].value_counts().items():
        reasons[re.sub(r"[\d.]*\d", "…", str(reason).partition(":")[0])] += int(count)
    used = used[used["reason"] == ""]
    reasons = +reasons
    shown = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    if len(shown) > MOST:
        shown[MOST:] = [("for other reasons", sum(count for _, count in shown[MOST:]))]
    lines = "; ".join(f"{count} {reason}" for reason, count in shown) or "nothing"
    total, classes = len(used) + reasons.total(), used["class"].nunique()
    print(f"{name}: {total} listed or found, {len(used)} clips of {classes} classes used; left out: {lines}")


def warn_of_overlap(name: str, clips: pd.DataFrame, groups: str) -> None:
    """Print a warning for each split, val and test, that shares groups with the train split, with the counts.

    `clips` are the rows of clips.csv, of which excluded ones do not count; `groups` is what a group is, in the plural.
    """
    used = clips[clips["excluded"] == ""]
    by_split = {split: set(own) for split, own in used.groupby("split")["group"]}
    train = by_split.get("train", set())
    for split in ("val", "test"):
        own = by_split.get(split, set())
        if shared := len(own & train):
            print(
                f"{name}: warning: in the published split, {shared} of the {len(own)} {groups} of {split} are also "
                f"among the {len(train)} of train, so its accuracy is not that on new {groups}",
                file=sys.stderr,
            )


def locate(table: pd.DataFrame, videos: Path) -> list[Clip]:
    """Return the clips of clips.csv or of the index, in row order."""
    rows = table.reindex(columns=["id", "file", "start", "end"])
    return [
        Clip(name, videos / file, 0.0 if isnan(start) else start, None if isnan(end) else end)
        for name, file, start, end in rows.itertuples(index=False)
    ]
