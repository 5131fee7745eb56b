"""Termination of subprocesses together with their descendants."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection


def end(processes: Collection[subprocess.Popen[str]], grace: float) -> None:
    """Terminate processes and everything in their process groups; each process must lead its own session.

    Sends SIGTERM, and SIGKILL to groups that remain after `grace` seconds or when the wait is interrupted."""
    groups = {process.pid for process in processes}
    try:
        groups = {group for group in groups if _signal(group, signal.SIGTERM)}
        until = time.monotonic() + grace
        while groups and time.monotonic() < until:
            time.sleep(0.05)
            for process in processes:
                process.poll()  # reaps it: a zombie still counts as a member of its group
            groups = {group for group in groups if _signal(group, 0)}
    finally:
        for group in groups:
            _signal(group, signal.SIGKILL)


def _signal(group: int, name: int) -> bool:
    """Send a signal to a process group and return whether the group exists; signal 0 only checks."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, name)
        return True
    return False
