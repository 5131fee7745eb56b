"""Precision of computing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision where the recipe asks for it; similarities and exponentials stay in float32 by themselves."""
    enabled = precision != "float32"
    with torch.autocast(device.type, getattr(torch, precision) if enabled else None, enabled=enabled):
        yield
