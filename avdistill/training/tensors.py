"""Save and load tensors: whole or not at all, verified by checksum, never executing what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from avdistill.data.files import intact, replacing
from avdistill.pipeline.errors import UserError


def save_tensors(path: Path, value: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    # By itself torch would not say why it could not write: the reason is in what Python's file raises.
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What save_tensors wrote. Raises UserError naming a file that is not that.

    torch would read a damaged file without a word: it does not look at the checksums that it writes."""
    if not path.exists():
        raise UserError(f"{path}: missing; run the stage that makes it")
    if not intact(path):
        raise UserError(f"{path}: damaged (a part is missing, or its checksum differs)")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever another archive makes torch raise
        raise UserError(f"{path}: not a file of tensors ({str(error).splitlines()[0]})") from None
    return state


def load_state(path: Path, device: torch.device, run: str, seed: int) -> dict[str, Any]:
    """What was saved of the training of a run and seed. Raises UserError naming a file that is not that."""
    state = load_tensors(path, device)
    if (state.get("run"), state.get("seed")) != (run, seed):
        raise UserError(f"{path}: not of run '{run}' and seed {seed}")
    return state
