"""One student trained by several processes, a GPU each: the same losses and gradients as one process has.

The student is data-parallel: each process sees its share of every batch, and its batch norms take their statistics
from all shares. The method is not: the outputs of all shares are gathered, so every process computes the loss of the
whole batch, with the same random numbers, and relations between clips, memory banks and the method's own batch norms
need no thought. Backward, each process follows the gradient of its own share; the sum over processes is the student's.
"""

from __future__ import annotations

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

from avdistill.pipeline.processes import end_with_parent


def place() -> tuple[int, int]:
    """Number of this process among those that train one student, and how many they are; (0, 1) for one alone."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


class _Gather(torch.autograd.Function):
    """Shares (n, …) to the whole batch (N, …) in the order of the processes; the gradient of its own share back."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        parts = [torch.empty_like(share) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, share.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


class _Sum(torch.autograd.Function):
    """Sum over processes, both ways."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics are those of all processes' shares; for CPU, where torch's own refuses to work."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """`x` (n, C, …), the same shape in every process."""
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _Sum.apply(wide.sum(over)) / count
        centred = wide - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(over)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (normal * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def share_batch_norms(module: nn.Module) -> None:
    """Make every batch norm of a module take its statistics from all processes."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            kind = nn.SyncBatchNorm if child.weight.is_cuda else SharedBatchNorm
            shared = kind(child.num_features, child.eps, child.momentum).to(child.weight)
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_batch_norms(child)


def gather(share: Tensor) -> Tensor:
    """The whole batch (N, …) of all processes' shares (n, …), in the order of the processes."""
    return _Gather.apply(share)


def add_gradients(module: nn.Module) -> None:
    """Sum the gradients of a module over processes, in one message."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


def launch(function: Callable[..., None], arguments: tuple[Any, ...], processes: int, device: str) -> None:
    """Run `function(*arguments)` in several processes that can gather and sum; ends when all of them have.

    On `cuda` process r has GPU r. They speak over this machine's loopback only. Raises RuntimeError if one fails;
    the others are ended then."""
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        place = (Path(folder) / "store").as_uri()
        ranks = [
            context.Process(target=_run, args=(function, arguments, rank, processes, device, place))
            for rank in range(processes)
        ]
        for process in ranks:
            process.start()
        try:
            # Asked once a round who is alive: to wait for no process at all would be to wait for ever.
            while alive := [process.sentinel for process in ranks if process.is_alive()]:
                multiprocessing.connection.wait(alive)
                if any(process.exitcode for process in ranks):
                    break
            if failed := [process.exitcode for process in ranks if process.exitcode]:
                raise RuntimeError(f"a training process ended with {failed[0]}")
        finally:
            for process in ranks:
                process.terminate()
                process.join()


def _run(
    function: Callable[..., None], arguments: tuple[Any, ...], rank: int, processes: int, device: str, place: str
) -> None:
    end_with_parent()
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(rank)
    backend = "gloo" if device == "cpu" else "nccl"
    distributed.init_process_group(backend, init_method=place, rank=rank, world_size=processes)
    function(*arguments)
    distributed.destroy_process_group()
