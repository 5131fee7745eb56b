"""Precision and determinism of what is computed, the same in training, features and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from avdistill.config.types import Precision

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextlib.contextmanager
def float32_as(precision: Precision) -> Iterator[None]:
    """Compute float32 products and convolutions on a GPU with TF32 (10 bits of mantissa) if `precision` is tf32, else
    with all 23 bits. A backward pass has to run in the block, too."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in `precision`: in half precision by autocast, which itself keeps operations such as exp in float32."""
    half = HALF.get(precision)
    with float32_as(precision), torch.autocast(device.type, half, enabled=half is not None):
        yield


def make_deterministic(compiled: bool = False) -> None:
    """Same input, same bits, and TF32 only where `float32_as` allows it; an operation that cannot promise it is an
    error."""
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:  # the same without word to the compiler, whose import takes 2 s of each process
        torch.set_deterministic_debug_mode("error")
    # PyTorch would write NaN into all memory that it takes, an eighth of a small step, to show who reads it unwritten:
    # the tests do that.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
