from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from models.students import SMALL
from models.students.r2plus1d import PUBLISHED, Pointwise, R2Plus1d, Spatial, Temporal

CONVOLUTIONS = {
    "within frames": lambda planes_in, planes_out, stride: Spatial(planes_in, planes_out, 3, stride[1]),
    "along time": lambda planes_in, planes_out, stride: Temporal(planes_in, planes_out, stride[0]),
    "of single positions": Pointwise,
}


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


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@settings(max_examples=25, deadline=None)
@given(
    shape=some.tuples(*(some.integers(1, most) for most in (3, 5, 5, 6, 6))),
    planes_out=some.integers(1, 5),
    stride=some.tuples(some.integers(1, 2), some.integers(1, 3)),
    channels_last=some.booleans(),
)
def test_each_convolution_is_that_in_three_dimensions(kind, shape, planes_out, stride, channels_last):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[kind](shape[1], planes_out, stride).double()
    memory = torch.channels_last_3d if channels_last else torch.contiguous_format
    layer.to(memory_format=memory)
    clips = torch.randn(shape, dtype=torch.float64).to(memory_format=memory).requires_grad_()

    ours, theirs = layer(clips), nn.Conv3d.forward(layer, clips)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    wanted = [clips, *layer.parameters()]
    for own, their in zip(*(torch.autograd.grad(y, wanted, gradient) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(own, their)
