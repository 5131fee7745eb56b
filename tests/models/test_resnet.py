from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.resnet import MaxPool2d, Shortcut, _MaxPool

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0)])
@pytest.mark.parametrize("size", [(9, 12), (8, 7), (2, 2)])
def test_max_pooling_in_a_fixed_order_is_max_pooling(
    size: tuple[int, int], window: tuple[int, int, int], layout: torch.memory_format
) -> None:
    """Values and gradients to the bit, with equal values side by side, of which the first counts."""
    torch.manual_seed(0)
    x = (torch.randn(2, 3, *size) * 3).round().relu().to(memory_format=layout)
    found = []
    for pool in (lambda x: _MaxPool.apply(x, *window), lambda x: functional.max_pool2d(x, *window)):
        leaf = x.clone().requires_grad_()
        pooled = pool(leaf)
        weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
        (pooled * weights).sum().backward()
        found.append((pooled, leaf.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_max_pooling_on_a_gpu_repeats_its_gradient() -> None:
    torch.manual_seed(0)
    x, pool, gradients = torch.randn(8, 64, 112, 112, device="cuda").relu(), MaxPool2d(3, 2, 1), []
    for device in ("cuda", "cuda", "cpu"):
        leaf = x.to(device).clone().requires_grad_()
        pooled = pool(leaf)
        pooled.square().sum().backward()
        gradients.append(leaf.grad.cpu())
    assert torch.equal(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])
