"""Speed of training: clips per second, time spent waiting for data, and the share of what a GPU could compute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

from avdistill.config.schema import Recipe
from models import students
from models.logmel import MELS

T = TypeVar("T")

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


def step_flops(recipe: Recipe, classes: int, device: torch.device) -> tuple[float, float] | None:
    """Return the FLOP of a clip and the FLOP per second of the GPUs that train a student; None without a known GPU."""
    peak = peak_flops(device, recipe.precision)
    return None if peak is None else (clip_flops(recipe, classes), peak * recipe.processes)


class Clock(Generic[T]):
    """Iterate over batches and measure how long that takes, and how much of it is spent waiting for the next batch."""

    def __init__(self, batches: Iterable[T]) -> None:
        self.batches, self.waited, self.began = batches, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[T]:
        self.waited, self.began = 0.0, time.perf_counter()
        batches, asked = iter(self.batches), self.began
        for batch in batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def speed(self, clips: int, flops: tuple[float, float] | None) -> dict[str, float]:
        """Return the metrics of a pass over `clips` that ends now: `clips_per_second`, `waiting_share` in 0..1, and
        `flop_utilisation` in 0..1 if `flops` (see `step_flops`) are known. The device must have finished."""
        seconds = time.perf_counter() - self.began
        found = {"clips_per_second": clips / seconds, "waiting_share": self.waited / seconds}
        if flops is not None:
            found["flop_utilisation"] = found["clips_per_second"] * flops[0] / flops[1]
        return found
