"""Print the problems of the clips of a dataset, from the index written by stage split.

    python -m avdistill.reporting.check_videos <params file> [<dataset>]

Reads only the index, not the videos, and writes no files.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.config.studies import target
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError, nearest
from avdistill.reporting.results import read_table

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10  # clips listed of each kind


def kinds(index: pd.DataFrame) -> pd.DataFrame:
    """Return one row per reason of a clip: `status`, `id`, `file`, `reason`, `kind` (without numbers and details).

    Sorted by status and kind, then in the order of the index."""
    rows = index[["status", "id", "file", "reason"]][index["reason"] != ""]
    rows = rows.assign(reason=rows["reason"].str.split("; ")).explode("reason", ignore_index=True)
    kind = [re.sub(r"[\d.]+", "…", str(reason).partition(":")[0]) for reason in rows["reason"]]
    return rows.assign(kind=kind).sort_values(["status", "kind"], kind="stable", ignore_index=True)


def describe(name: str, index: pd.DataFrame) -> str:
    """Return the counts of clips by status and kind, followed by the first SHOWN clips of each kind."""
    statuses = ", ".join(f"{count} {status}" for status, count in index["status"].value_counts(sort=False).items())
    found = list(kinds(index).groupby(["status", "kind"]))
    lines = [f"{name}: {len(index)} clips: {statuses}"]
    lines += [f"{len(rows):>8}  {status:<11}  {kind}" for (status, kind), rows in found]
    for (status, kind), rows in found:
        lines += ["", f"{status}, {kind}:"]
        lines += [f"  {row.file}: {row.reason}" for row in rows.head(SHOWN).itertuples()]
        if len(rows) > SHOWN:
            lines.append(f"  … and {len(rows) - SHOWN} more")
    return "\n".join(lines)


def damaged(params: Params, dataset: str) -> list[str]:
    """Describe what stage frames could not decode of the clips of a dataset, for each store that it has made."""
    found = []
    for name, entry in params.frames.items():
        path = params.path("frames", name) / "problems.csv"
        if entry.dataset != dataset or not path.exists():
            continue
        rows = read_table(path, ("id", "reason"))
        if len(rows):
            lines = [f"frames/{name}: {len(rows)} clips that could not be decoded, or not wholly:"]
            lines += [f"  {row.id}: {row.reason}" for row in rows.head(SHOWN).itertuples()]
            more = [f"  … and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
            found.append("\n".join(lines + more))
    return found


def check_videos(params: Params, dataset: str | None = None) -> str:
    """Describe one dataset, or all of them. Raises UserError for an unknown dataset or a missing index."""
    if dataset is not None and dataset not in params.datasets:
        raise UserError(f"there is no dataset '{dataset}'; {nearest(dataset, params.datasets)}")
    described = []
    for name in [dataset] if dataset else params.datasets:
        path = params.index(name)
        if not path.exists():
            raise UserError(f"{path}: missing; run `dvc repro {target(params, 'split', name)}` first")
        described.append("\n\n".join([describe(name, read_index(path)), *damaged(params, name)]))
    return "\n\n".join(described)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m avdistill.reporting.check_videos PARAMS [DATASET]")
    try:
        print(check_videos(load(sys.argv[1]), *sys.argv[2:]))
    except UserError as error:
        sys.exit(f"error: {error}")
