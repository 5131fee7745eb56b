from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from avdistill.config.types import Precision
from avdistill.training.inference import predict
from avdistill.training.precision import autocast, make_deterministic
from benchmarks import made_up

CPU = torch.device("cpu")


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_precision_is_what_it_says(precision: Precision) -> None:
    before = tf32()
    with autocast(CPU, precision):
        assert tf32() == (precision == "tf32",) * 2
        assert torch.is_autocast_enabled("cpu") == (precision in ("bfloat16", "float16"))
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision, torch.float32)
    assert tf32() == before


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_training_and_evaluation_compute_alike(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is on or off in forward and backward of a step, and in prediction; never by PyTorch's defaults."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision == "float32")
    recipe = {"width": 0.125, "frames": 4, "stride": 4, "size": 16, "batch": 8, "precision": precision}
    params = made_up.suite(tmp_path, 8, (5, 18, 20), recipe)
    trainer, seen = made_up.trainer(params, "cpu"), []
    trainer.student.fc.register_forward_hook(lambda *_: seen.append(("forward", tf32())))
    trainer.student.fc.weight.register_hook(lambda _: seen.append(("backward", tf32())))
    torch.backends.cudnn.allow_tf32 = precision == "float32"
    try:
        trainer.step(*trainer.to_device(next(iter(trainer.loader))))
        predict(trainer.student, trainer.val, trainer.recipe, CPU)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [name for name, _ in seen] == ["forward", "backward", "forward"]
    assert {flags for _, flags in seen} == {(precision == "tf32",) * 2}


def test_determinism_leaves_no_tf32_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and tf32() == (False, False)
    finally:
        torch.use_deterministic_algorithms(False)
