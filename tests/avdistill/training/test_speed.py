from __future__ import annotations

import pytest
import torch

from avdistill.config.schema import Recipe
from avdistill.training import speed
from avdistill.training.speed import Clock, clip_flops, peak_flops, step_flops


def test_a_clip_costs_what_the_network_multiplies() -> None:
    """42.67 GFLOP forward, as the docstring of the network says, and twice that backward."""
    assert clip_flops(Recipe(), 51) == pytest.approx(3 * 42.67e9, rel=2e-3)
    assert clip_flops(Recipe(student="resnet10_audio", frames=300), 51) > 1e8


def test_the_clock_tells_work_from_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def batches() -> object:
        for seconds in (3.0, 1.0):  # the first batch takes longer
            now[0] += seconds
            yield "batch"

    clock: Clock[str] = Clock(batches())  # type: ignore[arg-type]
    for _ in clock:
        now[0] += 3.0
    assert clock.speed(20, None) == {"clips_per_second": 2.0, "waiting_share": 0.4}
    assert clock.speed(20, (100.0, 1000.0))["flop_utilisation"] == pytest.approx(0.2)


def test_the_peak_is_that_of_the_card_and_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert peak_flops(torch.device("cpu"), "float32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(gpu, "bfloat16") == 989.4e12 and peak_flops(gpu, "float32") == 67e12
    assert step_flops(Recipe(batch=8, processes=2), 3, gpu)[1] == 2 * 67e12  # type: ignore[index]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    assert peak_flops(gpu, "bfloat16") is None and step_flops(Recipe(), 3, gpu) is None
