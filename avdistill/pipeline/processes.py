"""Number of worker processes, their end with the parent, and locks between processes."""

from __future__ import annotations

import fcntl
import getpass
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avdistill.pipeline.errors import UserError


def cores() -> int:
    """Return the number of cores this process may use: AV_CORES if set (by flows with several workers), else all.

    Raises UserError if AV_CORES is not a positive integer."""
    given = os.environ.get("AV_CORES", "")
    if given and not (given.isdigit() and int(given) > 0):
        raise UserError(f"AV_CORES: expected a positive integer, found {given!r}")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(given), available) if given else available


def end_with_parent() -> None:
    """Exit this worker process as soon as its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ensure_user() -> None:
    """Set USER and HOME for a user id without a passwd entry, as in containers; the home folder is out/.home.

    DVC, MLflow and Prefect end with an error where there is no name or no home folder."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)
        try:
            Path.home()
        except RuntimeError:
            home = Path("out/.home").resolve()
            home.mkdir(parents=True, exist_ok=True)
            os.environ["HOME"] = str(home)


@contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file; yield whether the lock was acquired. With `wait`, block until it is."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
