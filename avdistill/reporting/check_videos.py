"""List the clips that something is amiss with, from the index that stage split has written.

    python -m avdistill.reporting.check_videos <params file> [<dataset>]

Looks at no video itself. It is no stage: it makes nothing.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10  # clips of each kind


def kinds(index: pd.DataFrame) -> pd.DataFrame:
    """The clips that have a reason, a row a reason: `status`, `kind` (the reason without numbers and details), `id`,
    `file`, `reason`. Sorted by status and kind, in each in the order of the index."""
    rows = index[["status", "id", "file", "reason"]][index["reason"] != ""]
    rows = rows.assign(reason=rows["reason"].str.split("; ")).explode("reason", ignore_index=True)
    kind = [re.sub(r"[\d.]+", "…", str(reason).partition(":")[0]) for reason in rows["reason"]]
    return rows.assign(kind=kind).sort_values(["status", "kind"], kind="stable", ignore_index=True)


def describe(name: str, index: pd.DataFrame) -> str:
    """What `check_videos` prints of a dataset: how many clips of each status and kind, and the first of each."""
    statuses = ", ".join(f"{count} {status}" for status, count in index["status"].value_counts(sort=False).items())
    found = list(kinds(index).groupby(["status", "kind"]))
    lines = [f"{name}: {len(index)} clips: {statuses}"]
    lines += [f"{len(rows):>8}  {status:<8}  {kind}" for (status, kind), rows in found]
    for (status, kind), rows in found:
        lines += ["", f"{status}, {kind}:"]
        lines += [f"  {row.file}: {row.reason}" for row in rows.head(SHOWN).itertuples()]
        if len(rows) > SHOWN:
            lines.append(f"  … and {len(rows) - SHOWN} more")
    return "\n".join(lines)


def check_videos(params: Params, dataset: str | None = None) -> str:
    """The description of one dataset or of all. Raises UserError if there is no such dataset or no index of it."""
    if dataset is not None and dataset not in params.datasets:
        raise UserError(f"there is no dataset '{dataset}'; {nearest(dataset, params.datasets)}")
    described = []
    for name in [dataset] if dataset else params.datasets:
        path = params.path("split", name) / "index.csv"
        if not path.exists():
            raise UserError(f"{path}: missing; run `dvc repro split@{name}` first")
        described.append(describe(name, read_index(path)))
    return "\n\n".join(described)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m avdistill.reporting.check_videos PARAMS [DATASET]")
    try:
        print(check_videos(load(sys.argv[1]), *sys.argv[2:]))
    except UserError as error:
        sys.exit(f"error: {error}")
