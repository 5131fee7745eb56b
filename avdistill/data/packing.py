"""From clips to a store: what the stages that read every clip have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from avdistill.data import media
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.workers import each

SHARD_BYTES = 1 << 28  # what an interruption costs at most


class Named(Protocol):
    """Whatever has the id of a clip."""

    @property
    def id(self) -> str: ...  # noqa: D102


C = TypeVar("C", bound=Named)
R = TypeVar("R")


def pack(
    folder: Path,
    dtype: str,
    clips: Sequence[C],
    read: Callable[[C], R],
    finish: Callable[[C, R], np.ndarray],
    description: str,
    encoding: str = "raw",
) -> dict[str, int]:
    """Fill a store with finish(clip, read(clip)) by clip id; `read` runs in other processes, `finish` in this one.

    Clips that cannot be read go to problems.csv (id, reason). Those that an interrupted run has stored are not read
    again. Returns the numbers of clips and problems. Raises UserError if no clip at all can be read.
    """
    import pandas as pd

    from avdistill.data.files import write_csv
    from avdistill.data.packed import StoreWriter

    media.check_readers()
    problems: list[tuple[str, str]] = []
    with StoreWriter(folder, dtype, SHARD_BYTES, encoding) as store:
        for clip, outcome in each(read, [clip for clip in clips if clip.id not in store], description):
            if isinstance(outcome, UserError):
                problems.append((clip.id, str(outcome)))
            else:
                store.put(clip.id, finish(clip, outcome))
        if not store.written:
            raise UserError(f"none of {len(clips)} clips could be read" + (f"; {problems[0][1]}" if problems else ""))
    write_csv(folder / "problems.csv", pd.DataFrame(problems, columns=["id", "reason"]))
    return {"clips": len(store.written), "problems": len(problems)}
