"""Save tensors atomically; load them with checksum verification and without executing pickled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from avdistill.data.files import intact, replacing
from avdistill.pipeline.errors import UserError


def save_tensors(path: Path, value: dict[str, Any]) -> None:
    """Write `value` with torch.save, atomically."""
    # torch.save to a path hides the reason of a failed write; a Python file raises OSError with it.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a file written by save_tensors. Raises UserError for a missing, damaged or other file.

    The checksums are verified here because torch.load ignores them."""
    if not path.exists():
        raise UserError(f"{path}: missing; run the stage that writes it")
    if not intact(path):
        raise UserError(f"{path}: damaged (an entry is missing, or its checksum differs)")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for foreign archives
        raise UserError(f"{path}: not a file of tensors ({str(error).splitlines()[0]})") from None
    return state


def load_state(path: Path, device: torch.device, run: str, seed: int) -> dict[str, Any]:
    """Read the saved training of a run and seed. Raises UserError if the file is not of that run and seed."""
    state = load_tensors(path, device)
    if (state.get("run"), state.get("seed")) != (run, seed):
        raise UserError(f"{path}: not of run '{run}' and seed {seed}")
    return state
