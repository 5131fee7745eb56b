"""Checkpoints of a training in progress: written by a thread beside it, at intervals that keep them cheap."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from avdistill.pipeline.errors import UserError
from avdistill.training.tensors import load_state, save_tensors

SAVE_SECONDS = 5.0  # at least, from one checkpoint to the next
SHARE = 0.02  # of the time, at most, that copying and writing checkpoints takes


class Checkpoints:
    """The last two states of an unfinished training: `files`, the newer one first.

    There are two because the last one may be damaged. A state is copied when it is saved and written by a thread, so
    training goes on meanwhile; at most one is being written. `wait` before the process ends."""

    def __init__(self, place: Path) -> None:
        self.files = place.with_suffix(".checkpoint.pt"), place.with_suffix(".previous.pt")
        self._writing: Future[None] | None = None
        self._next = time.monotonic() + SAVE_SECONDS

    def due(self) -> bool:
        """Return whether it is time to save. Raises the error of the last save if that failed."""
        if self._writing is not None and not self._writing.done():
            return False
        self.wait()
        return time.monotonic() >= self._next

    def save(self, state: dict[str, Any]) -> None:
        """Copy a state and begin to write it. Raises the error of the last save if that failed."""
        self.wait()
        began = time.monotonic()
        pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing = pool.submit(self._write, _copied(state), began)
        pool.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises the error of the last save if that failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self, device: torch.device, run: str, seed: int, warn: bool = True) -> dict[str, Any] | None:
        """Return the last state that is intact, on `device`, or None. Damaged ones are deleted, with a warning."""
        for path in filter(Path.exists, self.files):
            try:
                return load_state(path, device, run, seed)
            except UserError as error:
                path.unlink(missing_ok=True)
                if warn:
                    print(f"{error}; going on from the checkpoint before it", file=sys.stderr)
        return None

    def delete(self) -> None:
        """Delete the files, when the training has ended."""
        for path in self.files:
            path.unlink(missing_ok=True)

    def _write(self, state: dict[str, Any], began: float) -> None:
        last, previous = self.files
        if last.exists():
            last.replace(previous)
        save_tensors(last, state)
        self._next = began + max(SAVE_SECONDS, (time.monotonic() - began) / SHARE)


def _copied(value: Any) -> Any:
    """Copy nested dicts and lists, and their tensors to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
