"""GPUs are not shared by accident: whoever trains on one holds a Prefect concurrency limit that is named after it.

The limits `gpu-<uuid>` have one slot each and are made when they are first needed. Flows of one Prefect server, on one
machine or many, wait for each other there; a slot whose holder has died is free again within minutes.
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

WAIT_SECONDS = 5.0  # how often a wait asks whether it is still wanted
COUNT = (
    "import torch; "
    "print(*(f'GPU-{torch.cuda.get_device_properties(n).uuid}' for n in range(torch.cuda.device_count())))"
)


def gpus(device: str) -> list[str]:
    """UUIDs of the GPUs that `device` of a params file stands for on this machine; none for a CPU."""
    if device == "cpu" or shutil.which("nvidia-smi") is None:  # which comes with every driver
        return []
    # Another process asks: torch would take seconds and memory of this one for good.
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    found = done.stdout.split()
    _, colon, number = device.partition(":")
    return found[int(number) : int(number) + 1] if colon else found


@contextmanager
def held(names: Sequence[str], stopped: Callable[[], bool]) -> Iterator[None]:
    """Wait until all of these GPUs are free, and hold them. Raises StoppedError if `stopped` says so meanwhile."""
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
                # A training is not ended because the server was away when its lease was to be renewed.
                stack.enter_context(
                    concurrency(limits, timeout_seconds=WAIT_SECONDS, raise_on_lease_renewal_failure=False)
                )
                break
            except TimeoutError:
                continue
        yield
