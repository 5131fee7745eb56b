"""Losses of a few steps, written down: a change for speed's sake must not change what is computed.

The networks' convolutions, the loader's crops, the distiller and the optimizer all stand between the seed and these
numbers, which networks in contiguous memory and a CPU with AVX2 alone gave too. `python -m
tests.avdistill.training.test_golden`
prints those of the code as it is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from benchmarks import made_up

THIN = {"width": 0.125, "frames": 4, "stride": 4, "size": 24, "batch": 8}
GOLDEN = {
    "loss": [7.190079, 6.467331, 6.829582, 6.646957],
    "loss_ce": [2.30864, 2.294914, 2.284817, 2.321603],
    "loss_guided_ce": [2.599522, 2.009256, 2.353809, 2.308151],
    "loss_triplet": [0.2040197, 0.2091971, 0.2006092, 0.2115021],
    "loss_contrast": [2.077898, 1.953964, 1.990347, 1.805701],
    "guided_accuracy": [0, 0.4285714, 0, 0.1666667],
    "train_accuracy": [0, 0, 0.375, 0.125],
}


def losses(folder: Path) -> dict[str, list[float]]:
    """Every term of MNF+CSC's loss in the first four steps, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = made_up.trainer(made_up.suite(folder, 32, (6, 32, 43), THIN), "cpu")
        steps = [trainer.step(*batch) for batch in trainer.loader]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    return {name: [float(step[name]) for step in steps] for name in steps[0]}


def test_losses_are_those_written_down(tmp_path: Path) -> None:
    found = losses(tmp_path)
    assert found.keys() == GOLDEN.keys()
    for name, values in GOLDEN.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as here:
        for name, values in losses(Path(here)).items():
            print(f'    "{name}": [{", ".join(f"{value:.7g}" for value in values)}],')
