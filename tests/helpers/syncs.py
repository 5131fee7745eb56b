"""Operations for which the host would wait for a GPU, found on the CPU."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
# A value, or a size that depends on values, goes to the host.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "repeat_interleave.Tensor",
}  # fmt: skip


class Syncs(TorchDispatchMode):
    """Counts, in `found`, the operations for which the host would wait for a GPU, by operation and line of the project.

    `lift_fresh` is how `torch.tensor` shows: numbers of the host, copied from memory that is not pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if by_mask or name in WAITING | {"lift_fresh"} or str(func).removeprefix("aten.") in WAITING:
            self.found[f"{name} at {self._where()}"] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _where() -> str:
        ours = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
        ours = [frame for frame in ours if "/.venv/" not in frame.filename and frame.filename != __file__]
        return f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else "?"
