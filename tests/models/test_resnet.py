from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models.resnet import Shortcut

THIN = """
import torch
from models.students import build_student
torch.set_num_threads(1)
for number in range(20):
    student = build_student("resnet34_audio", 7, 1 / 16)
    student(torch.randn(2, 1, 70, 64)).logits.square().sum().backward()
"""


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 1)])
def test_shortcut_is_a_convolution(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = Shortcut(5, 6, 1, stride, bias=False), nn.Conv2d(5, 6, 1, stride, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, *size)  # channels first: the layout in which all is well
    torch.testing.assert_close(ours(x), theirs(x))


def test_thin_networks_keep_to_their_memory_without_avx512(root: Path) -> None:
    """Forty strided convolutions of four channels, in a process of its own: it was killed by glibc's own checks."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", THIN], cwd=root, env=environment, check=True, timeout=300)
