"""Read clips in worker processes and pack the results into a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from avdistill.data import datasets, media
from avdistill.data.datasets import Clip
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.workers import Fallback, each

if TYPE_CHECKING:
    import pandas as pd

    from avdistill.pipeline.stage import Stage

SHARD_BYTES = 1 << 28  # at most this much is computed again after an interruption


class Named(Protocol):
    """Anything with the id of a clip."""

    @property
    def id(self) -> str: ...  # noqa: D102


C = TypeVar("C", bound=Named)
R = TypeVar("R")


class Damaged(NamedTuple, Generic[R]):
    """What could be read of a damaged clip, and what is missing."""

    value: R
    reason: str


def usable_clips(stage: Stage, dataset: str, column: str, value: str) -> tuple[pd.DataFrame, list[Clip], str]:
    """Return the rows of a dataset's index whose `column` has `value`, their clips, and the digest of the index.

    Logs the dataset to the stage's run."""
    from avdistill.data.files import digest
    from avdistill.data.index import read_index

    source = stage.input("split", dataset) / "index.csv"
    index = read_index(source)
    rows = index[index[column] == value].reset_index(drop=True)
    origin = stage.params.datasets[dataset].origin
    videos = datasets.of(origin).videos(origin, stage.input("download", dataset))
    found = digest(source)
    stage.run.log_dataset(name=dataset, path=source, digest=found, context=stage.name)
    return rows, datasets.locate(rows, videos), found


def pack(
    folder: Path,
    dtype: str,
    clips: Sequence[C],
    read: Callable[[C], R | Damaged[R]],
    finish: Callable[[C, R], np.ndarray],
    description: str,
    encoding: str = "raw",
    fallback: Fallback | None = None,
) -> dict[str, int]:
    """Write finish(clip, read(clip)) of each clip to a store, by clip id.

    `read` runs in worker processes, `finish` in this one; `fallback` is that of `workers.each`. Clips that cannot be
    read, or are damaged, are listed in problems.csv (id, reason). Clips that an interrupted run has stored are not read
    again. Returns the counts `clips` and `problems`. Raises UserError if no clip can be read.
    """
    import pandas as pd

    from avdistill.data.files import write_csv
    from avdistill.data.packed import StoreWriter

    media.check_readers()
    problems: list[tuple[str, str]] = []
    notes = folder / "damaged.jsonl"  # of clips that are stored, for a run that continues this one
    with StoreWriter(folder, dtype, SHARD_BYTES, encoding) as store:
        missing = [clip for clip in clips if clip.id not in store]
        for clip, outcome in each(read, missing, description, fallback=fallback):
            if isinstance(outcome, UserError):
                problems.append((clip.id, str(outcome)))
                continue
            if isinstance(outcome, Damaged):
                with notes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([clip.id, outcome.reason]) + "\n")
                outcome = outcome.value
            store.put(clip.id, finish(clip, outcome))
        if not store.written:
            raise UserError(f"none of {len(clips)} clips could be read" + (f"; {problems[0][1]}" if problems else ""))
    if notes.exists():
        problems += dict.fromkeys(tuple(json.loads(line)) for line in notes.read_text(encoding="utf-8").splitlines())
        notes.unlink()
    write_csv(folder / "problems.csv", pd.DataFrame(problems, columns=["id", "reason"]))
    return {"clips": len(store.written), "problems": len(problems)}
