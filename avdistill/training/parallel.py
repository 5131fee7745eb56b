"""Data-parallel training of one student, one process per GPU, with the losses and gradients of a single process.

The student is data-parallel: each rank processes its shard of every batch, and batch norm statistics are synchronised.
The method is not: student outputs are gathered, and every rank computes the loss of the whole batch with the same
random numbers. Relations between clips, memory banks and the method's own batch norms thus need no special handling. In
the backward pass, each rank propagates the gradient of its own shard; the student's gradient is the sum over ranks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from avdistill.pipeline.processes import end_with_parent


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the world size; (0, 1) without distributed training."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


class _Gather(torch.autograd.Function):
    """Gather shards (n, …) into the batch (N, …) in rank order; backward returns the gradient of the own shard."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor) -> Tensor:
        shards = [torch.empty_like(shard) for _ in range(distributed.get_world_size())]
        distributed.all_gather(shards, shard.contiguous())
        return torch.cat(shards)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with statistics over all ranks, for the CPU, which nn.SyncBatchNorm does not support."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (n, C, …), which must have the same shape on every rank."""
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = all_reduce(wide.sum(over)) / count
        centred = wide - mean.view(shape)
        variance = all_reduce(centred.square().sum(over)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def sync_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm in a module by one with statistics over all ranks."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            kind = nn.SyncBatchNorm if child.weight.is_cuda else CpuSyncBatchNorm
            synced = kind(child.num_features, child.eps, child.momentum).to(child.weight)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced)
        else:
            sync_batch_norms(child)


def gather(shard: Tensor) -> Tensor:
    """Gather the shards (n, …) of all ranks into the batch (N, …), in rank order."""
    return _Gather.apply(shard)


def all_reduce_gradients(module: nn.Module) -> None:
    """Sum the gradients of a module over ranks, in one all-reduce."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def launch(function: Callable[..., None], arguments: tuple[Any, ...], processes: int, device: str) -> None:
    """Run `function(*arguments)` in `processes` ranks of one process group, and wait for all of them.

    On `cuda`, rank r uses GPU r. Communication is limited to the loopback interface. If a rank fails, the others are
    terminated and RuntimeError is raised, with the rank and the exception that came first: those of the other ranks
    follow from it ("connection closed by peer")."""
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        first_error = Path(folder) / "error"
        store = (Path(folder) / "store").as_uri()
        ranks = [
            context.Process(target=_run, args=(function, arguments, rank, processes, device, store, first_error))
            for rank in range(processes)
        ]
        for process in ranks:
            process.start()
        try:
            # Collect the live processes once per round: `wait` on an empty list would block forever.
            while alive := [process.sentinel for process in ranks if process.is_alive()]:
                multiprocessing.connection.wait(alive)
                if any(process.exitcode for process in ranks):
                    break
            if failed := {rank: process.exitcode for rank, process in enumerate(ranks) if process.exitcode}:
                codes = ", ".join(f"rank {rank} exited with code {code}" for rank, code in failed.items())
                reason = f": {first_error.read_text()}" if first_error.exists() else ""
                raise RuntimeError(f"training on {processes} processes failed ({codes}){reason}")
        finally:
            for process in ranks:
                process.terminate()
                process.join()


def _run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    rank: int,
    world_size: int,
    device: str,
    store: str,
    first_error: Path,
) -> None:
    end_with_parent()
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(rank)
    backend = "gloo" if device == "cpu" else "nccl"
    distributed.init_process_group(backend, init_method=store, rank=rank, world_size=world_size)
    try:
        function(*arguments)
    except BaseException as error:
        with contextlib.suppress(FileExistsError), first_error.open("x") as file:
            file.write(f"rank {rank}: {type(error).__name__}: {error}")
        raise
    distributed.destroy_process_group()
