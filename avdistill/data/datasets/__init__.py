"""Datasets: one module a kind of origin. To add one, write its module, and its class in avdistill/config.

Videos come in many forms; every stage after download sees only a table of clips, with the columns

    id       unique; the key of the clip in every store
    file     relative to videos(…)
    class    name of its class
    group    clips of one source; a group never stands in two splits, whatever the class
    split     train, val or test; the column is absent where the dataset does not say
    start    seconds into the file; empty: its beginning
    end      seconds into the file; empty: its end
    gone     why the file cannot be had; empty where it is there; absent where a dataset has all its files
    excluded why the clip is no part of the dataset though its file is there; likewise

and whatever else the dataset knows about a clip, which the index keeps.
"""

from __future__ import annotations

from importlib import import_module
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CLIPS = "clips.csv"


class Clip(NamedTuple):
    """Where a clip lies: from `start` to `end` (None: to its end) in a file, in seconds."""

    id: str
    path: Path
    start: float
    end: float | None


class Kind(Protocol):
    """What the module of a dataset offers. `origin` is from params.yaml, `folder` what download made."""

    def check(self, origin: Any) -> None:
        """Find what would stop the dataset, in little time and before any work. Raises UserError."""

    def download(self, origin: Any, folder: Path) -> None:
        """Fill `folder` with the videos and with clips.csv; goes on where an interrupted download stopped."""

    def videos(self, origin: Any, folder: Path) -> Path:
        """The folder that the column `file` starts from."""


def of(origin: Any) -> Kind:
    """The module of an origin's kind."""
    return cast(Kind, import_module(f"avdistill.data.datasets.{origin.kind}"))


def published(origin: Any) -> dict[str, int]:
    """How many usable clips a split has in the papers, train and val together; empty where no module says so."""
    counts = getattr(of(origin), "published", None)
    return counts(origin) if counts else {}


def clips(folder: Path) -> pd.DataFrame:
    """The clips that download has listed in `folder`; see above for the columns. Text stays text, "NA" included."""
    import pandas as pd

    names = ["id", "file", "class", "group", "split", "gone", "excluded"]
    empty = {"start": "", "end": ""}
    path = folder / CLIPS
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(names, "string"), keep_default_na=False, na_values=empty)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: cannot be read as a table ({' '.join(str(error).split())})") from None


def locate(table: pd.DataFrame, videos: Path) -> list[Clip]:
    """The clips of a table (of download, or the index of split), in its order."""

    rows = table.reindex(columns=["id", "file", "start", "end"])
    return [
        Clip(name, videos / file, 0.0 if isnan(start) else start, None if isnan(end) else end)
        for name, file, start, end in rows.itertuples(index=False)
    ]
