from __future__ import annotations

import pytest
import torch

from models.students import SMALL
from models.students.r2plus1d import PUBLISHED, R2Plus1d


@pytest.mark.parametrize("strides", [PUBLISHED, SMALL])
@pytest.mark.parametrize("size", [(1, 16, 16), (8, 24, 24), (9, 33, 17), (16, 112, 112)])
def test_the_grid_is_that_of_the_last_map(size, strides):
    student = R2Plus1d(3, width=1 / 64, strides=strides).eval()
    shapes = []
    student.layer4.register_forward_hook(lambda module, given, made: shapes.append(tuple(made.shape[2:])))
    with torch.no_grad():
        output = student(torch.zeros(1, 3, *size))
    t, h, w = student.grid(*size)
    assert (t, h, w) == shapes[0] and output.map.shape[1] == t * h * w
