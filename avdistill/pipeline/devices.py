"""Independent calls of one stage, side by side on CPU cores or one after the other on a GPU."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores, end_with_parent
from avdistill.pipeline.progress import progress


def resolve_device(name: str) -> str:
    """`auto` becomes cuda where there is one, else cpu. Raises UserError for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is not a device; expected auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {name} is not there; this machine has {torch.cuda.device_count()} GPUs")
    return name


def run_parallel(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], device: str, description: str, alone: bool = False
) -> list[Any]:
    """`[function(*call) for call in calls]`, side by side: one process a core on CPU, one a GPU on `cuda`.

    Three calls on two cores all start at once and share them: the third alone would leave a core idle.

    A call on CPU always computes with one thread, so that neither the number of cores nor what else runs changes
    a bit of its result; several calls side by side use the cores better than one call with several threads.
    With `cuda` every call finds its GPU as the current one; `cuda:1` keeps all of them on that one. `alone`: one call
    after the other, for calls that use all devices themselves."""
    places = 1 if alone else cores() if device == "cpu" else gpus(device)
    if min(places, len(calls)) <= 1:
        if device == "cpu":
            _one_thread()
        return [function(*call) for call in progress(calls, description)]
    # A forked child has the imported libraries already; spawning would import them again in each. CUDA cannot fork.
    context = multiprocessing.get_context("fork" if device == "cpu" and sys.platform == "linux" else "spawn")
    if device == "cpu" and len(calls) <= 1.5 * places:
        places = len(calls)
    places = min(places, len(calls))
    free = context.SimpleQueue()
    for place in range(places):
        free.put(place)
    with ProcessPoolExecutor(places, context, _start_worker, (device, free)) as pool:
        futures = [pool.submit(function, *call) for call in calls]
        pending = set(futures)
        try:
            for _ in progress(range(len(calls)), description):
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                first = done.pop()
                pending.discard(first)
                first.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise
    return [future.result() for future in futures]


def gpus(device: str) -> int:
    """GPUs that a device stands for: all of them for `cuda`, one for `cuda:1`."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _start_worker(device: str, free: Any) -> None:
    """One thread on CPU; on `cuda` a GPU of its own."""
    end_with_parent()
    place = free.get()
    if device == "cpu":
        _one_thread()
    else:
        import torch

        torch.cuda.set_device(place)
