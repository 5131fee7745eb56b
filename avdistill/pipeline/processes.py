"""Processes: how many of them may run side by side, and when they end."""

from __future__ import annotations

import multiprocessing
import os
import threading

from avdistill.pipeline.errors import UserError


def cores() -> int:
    """Cores that this process may use: AV_CORES where it is set (a flow with several workers sets it), else all."""
    given = os.environ.get("AV_CORES", "")
    if given and not (given.isdigit() and int(given) > 0):
        raise UserError(f"AV_CORES: expected a whole number above 0, found {given!r}")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(given), available) if given else available


def end_with_parent() -> None:
    """In a worker: end as soon as the parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
