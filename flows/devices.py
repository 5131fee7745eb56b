"""Exclusive use of GPUs by flows: a stage or point that needs a GPU holds a Prefect concurrency limit for it.

The limits `gpu-<uuid>` have one slot each and are created on first use. They apply to all flows of one Prefect server,
on any number of machines. The slot of a flow that died is released within minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency

from flows.dvc import StoppedError

GPU_STAGES = {"teachers", "teacher_features", "teacher_head", "train", "evaluate"}
WAIT_SECONDS = 5.0  # between checks for a stop while waiting
COUNT = (
    "import torch; "
    "print(*(f'GPU-{torch.cuda.get_device_properties(n).uuid}' for n in range(torch.cuda.device_count())))"
)


def gpus(device: str) -> list[str]:
    """Return the UUIDs of the GPUs that `device` of a params file selects on this machine; empty for a CPU."""
    if device == "cpu" or shutil.which("nvidia-smi") is None:  # part of every driver
        return []
    # In a subprocess, because importing torch takes seconds and its memory is never released.
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    found = done.stdout.split()
    _, colon, number = device.partition(":")
    return found[int(number) : int(number) + 1] if colon else found


@contextmanager
def held(names: Sequence[str], stopped: Callable[[], bool]) -> Iterator[None]:
    """Wait until all of these GPUs are free and hold them; raises StoppedError once `stopped` returns true."""
    limits = sorted(f"gpu-{name.removeprefix('GPU-')}" for name in names)
    with ExitStack() as stack:
        if limits:
            with get_client(sync_client=True) as client:
                for limit in limits:
                    client.upsert_global_concurrency_limit_by_name(limit, 1)
        while limits:
            if stopped():
                raise StoppedError
            try:
                # A training run must not fail because the server was unreachable when a lease was due for renewal.
                stack.enter_context(
                    concurrency(limits, timeout_seconds=WAIT_SECONDS, raise_on_lease_renewal_failure=False)
                )
                break
            except TimeoutError:
                continue
        yield
