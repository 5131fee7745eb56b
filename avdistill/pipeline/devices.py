"""Run independent calls of a stage in parallel, on CPU cores or GPUs."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores, end_with_parent
from avdistill.pipeline.progress import progress


def resolve_device(name: str) -> str:
    """Resolve `auto` to cuda if available, else cpu. Raises UserError if the device does not exist."""
    import torch

    # cuBLAS is deterministic only with a fixed workspace size, set before CUDA is initialised.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is not a device; expected auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {name} does not exist; this machine has {torch.cuda.device_count()} GPUs")
    return name


def run_parallel(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    device: str,
    description: str,
    sequential: bool = False,
) -> list[Any]:
    """Return `[function(*call) for call in calls]`, computed in parallel: one process per CPU core or per GPU.

    A call on CPU always uses one thread, so its result does not depend on the number of cores or the load, to the bit;
    calls in parallel also use the cores better than one call with several threads. Up to 1.5 calls per core all start
    at once, since running the rest afterwards would leave cores idle.
    With `cuda`, each call has one GPU as its current device; with `cuda:1`, all calls use that GPU. With `sequential`,
    calls run one after the other, for calls that use all devices themselves."""
    workers = 1 if sequential else cores() if device == "cpu" else gpus(device)
    if min(workers, len(calls)) <= 1:
        if device == "cpu":
            _one_thread()
        return [function(*call) for call in progress(calls, description)]
    # Forked workers inherit the imported libraries; spawned ones import them again. CUDA does not support fork.
    context = multiprocessing.get_context("fork" if device == "cpu" and sys.platform == "linux" else "spawn")
    if device == "cpu" and len(calls) <= 1.5 * workers:
        workers = len(calls)
    workers = min(workers, len(calls))
    indices = context.SimpleQueue()
    for index in range(workers):
        indices.put(index)
    with ProcessPoolExecutor(workers, context, _start_worker, (device, indices)) as pool:
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
    """Return the number of GPUs of a device: all for `cuda`, one for `cuda:1`."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _start_worker(device: str, indices: Any) -> None:
    """Initialise a worker: one thread on CPU, or its own GPU."""
    end_with_parent()
    index = indices.get()
    if device == "cpu":
        _one_thread()
    else:
        import torch

        torch.cuda.set_device(index)
