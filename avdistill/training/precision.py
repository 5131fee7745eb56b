"""Mixed precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Enable autocast unless `precision` is float32. Autocast itself keeps operations such as exp in float32."""
    enabled = precision != "float32"
    with torch.autocast(device.type, getattr(torch, precision) if enabled else None, enabled=enabled):
        yield
