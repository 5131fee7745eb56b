"""How much a training step computes, and what a card can compute."""

from __future__ import annotations

from typing import Any

import torch

from avdistill.config.schema import Recipe
from models import students
from models.logmel import MELS

# Dense TFLOP/s by precision, from NVIDIA's data sheets of the H100 (SXM), H200 (SXM) and A100.
HOPPER = {"float32": 67.0, "tf32": 494.7, "bfloat16": 989.4, "float16": 989.4}
PEAK = {
    "H100 80GB HBM3": HOPPER,
    "H200": HOPPER,
    "A100": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0, "float16": 312.0},
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return the FLOP per second that a GPU can do in a precision; None for a processor or an unknown card."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peaks[precision] for card, peaks in PEAK.items() if card in name), None)


def clip_flops(recipe: Recipe, classes: int) -> float:
    """Count the FLOP that a training step needs for a clip: forward, and twice that backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        student = students.build_student(recipe.student, classes, recipe.width).eval()
        hears = recipe.student.endswith("_audio")
        shape = (1, 1, recipe.frames, MELS) if hears else (1, 3, recipe.frames, recipe.size, recipe.size)
        counter: Any = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            student(torch.empty(shape))
    return 3.0 * counter.get_total_flops()
