"""R(2+1)D: residual network whose 3D convolutions are factored into a spatial and a temporal one.

Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action Recognition", CVPR 2018. Parameters have the
names that torchvision's `r2plus1d_18` gives them, so that its state dict loads into the like of it here.

Its kernels have one or two dimensions, so none is run in three: two are what libraries are fast at. In channels-last
that is the same memory seen in another shape, the same result to the bit, and on a CPU mostly 1.06 to 1.08 times the
speed of `Conv3d` (0.98 to 1.11; forward and backward, widths 1/8 to 1, 16 to 112 pixels, one and two threads).
Where only single positions are combined, that is a matrix product: in the shortcuts, and along the time of one frame.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from models.outputs import StudentOutput

Stride = tuple[int, int]  # in time, and in space
PUBLISHED: tuple[Stride, ...] = ((1, 2), (1, 1), (2, 2), (2, 2), (2, 2))  # of the stem and the four stages


def mid_planes(planes_in: int, planes_out: int, step: int = 1) -> int:
    """Channels between the two factors that keep the parameter count of the full 3x3x3 convolution (Tran 2018, 3.5),
    or the nearest multiple of `step`."""
    exact = (27 * planes_in * planes_out) // (9 * planes_in + 3 * planes_out)
    return max(1, round(exact / step)) * step


class Spatial(nn.Conv3d):
    """A convolution within frames."""

    def __init__(self, planes_in: int, planes_out: int, size: int, stride: int = 1) -> None:
        kernel, strides, padding = (1, size, size), (1, stride, stride), (0, size // 2, size // 2)
        super().__init__(planes_in, planes_out, kernel, strides, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, D, T, H', W')."""
        frames = x.transpose(1, 2)
        y = functional.conv2d(frames.flatten(0, 1), self.weight.squeeze(2), None, self.stride[1:], self.padding[1:])
        return y.unflatten(0, frames.shape[:2]).transpose(1, 2)


class Temporal(nn.Conv3d):
    """A convolution of three frames along time."""

    def __init__(self, planes_in: int, planes_out: int, stride: int = 1) -> None:
        super().__init__(planes_in, planes_out, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, D, T', H, W)."""
        if x.shape[2] == 1:  # the frames before and after are padding
            return pointwise(x, self.weight[:, :, 1:2].flatten(1))
        y = functional.conv2d(x.flatten(3), self.weight.squeeze(4), None, (self.stride[0], 1), (1, 0))
        return y.unflatten(3, x.shape[3:])


class Pointwise(nn.Conv3d):
    """A convolution of single positions."""

    def __init__(self, planes_in: int, planes_out: int, stride: Stride = (1, 1)) -> None:
        super().__init__(planes_in, planes_out, 1, (stride[0], stride[1], stride[1]), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, D, T', H', W')."""
        time, height, width = self.stride
        return pointwise(x[:, :, ::time, ::height, ::width], self.weight.flatten(1))


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the channels at each position of `x` (B, C, T, H, W) by `weight` (D, C): (B, D, T, H, W)."""
    return functional.linear(x.permute(0, 2, 3, 4, 1), weight).permute(0, 4, 1, 2, 3)


class Conv2Plus1d(nn.Sequential):
    """A 3x3x3 convolution as 1x3x3, batch norm, ReLU, 3x1x1."""

    def __init__(self, planes_in: int, planes_out: int, planes_mid: int, stride: Stride = (1, 1)) -> None:
        super().__init__(
            Spatial(planes_in, planes_mid, 3, stride[1]),
            nn.BatchNorm3d(planes_mid),
            nn.ReLU(inplace=True),
            Temporal(planes_mid, planes_out, stride[0]),
        )


def factored_shortcut(planes_in: int, planes_out: int, stride: Stride, step: int) -> nn.Sequential:
    """A 1x1x1 convolution as a spatial and a temporal one, with batch norm and ReLU between them.

    The middle has floor(Ci Co / (Ci + Co)) channels: 42, 85 and 170 from 64, 128 and 256 channels."""
    middle = max(1, round((planes_in * planes_out) // (planes_in + planes_out) / step)) * step
    return nn.Sequential(
        Pointwise(planes_in, middle, (1, stride[1])),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        Pointwise(middle, planes_out, (stride[0], 1)),
    )


class Block(nn.Module):
    """Basic residual block of two factored convolutions.

    `shared`: both have the middle width of the first. `factored`: the shortcut that changes the size is factored, too.
    """

    def __init__(
        self, planes_in: int, planes_out: int, stride: Stride, shared: bool, step: int, factored: bool = False
    ) -> None:
        super().__init__()
        mid1 = mid_planes(planes_in, planes_out, step)
        mid2 = mid1 if shared else mid_planes(planes_out, planes_out, step)
        self.conv1 = nn.Sequential(
            Conv2Plus1d(planes_in, planes_out, mid1, stride), nn.BatchNorm3d(planes_out), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(Conv2Plus1d(planes_out, planes_out, mid2), nn.BatchNorm3d(planes_out))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != (1, 1) or planes_in != planes_out:
            projection = (
                factored_shortcut(planes_in, planes_out, stride, step)
                if factored
                else Pointwise(planes_in, planes_out, stride)
            )
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(planes_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, planes_out, T / stride[0], H / stride[1], W / stride[1]), rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


class R2Plus1d(nn.Module):
    """R(2+1)D with `layers` blocks in its four stages and `width` times the published number of channels.

    `middle` says how wide the factored convolutions are between their factors: "paper" follows the paper's formula
    in each of them, "torchvision" as that library does (45 in the stem, and one middle width for both convolutions
    of a block). Stage l has round(64 * width) * 2**l channels.

    `factored`: the three shortcuts that change the size are factored as well.

    `strides` (in time, in space) are those of the stem and the four stages.

    (1, 1, 1, 1) with "paper" and `factored` is what both papers' programs train ("R(2+1)D-18" there: 10 convolution
    layers, 14.4 M parameters, 42.72 GFLOP for 16 x 112 x 112); without `factored` it has 174 parameters more and needs
    42.67 GFLOP. (2, 2, 2, 2) with "torchvision" is that library's r2plus1d_18 (31.3 M, 81.0).
    """

    def __init__(
        self,
        classes: int,
        layers: tuple[int, int, int, int] = (1, 1, 1, 1),
        width: float = 1.0,
        middle: Literal["paper", "torchvision"] = "paper",
        factored: bool = False,
        strides: tuple[Stride, ...] = PUBLISHED,
    ) -> None:
        super().__init__()
        self.strides = strides
        planes, shared = max(1, round(64 * width)), middle == "torchvision"
        # Batch norm on a CPU takes eight channels at a time, and five times as long where some are left over.
        step = 1 if width == 1 else 8
        # 83: the formula's value for 3 to 64 planes and 3x7x7
        stem_mid = max(1, round(width * (45 if shared else 83) / step)) * step
        self.stage_dims = tuple(planes * 2**level for level in range(4))
        self.feature_dim = self.stage_dims[-1]
        self.stem = nn.Sequential(
            Spatial(3, stem_mid, 7, strides[0][1]),
            nn.BatchNorm3d(stem_mid),
            nn.ReLU(inplace=True),
            Temporal(stem_mid, planes, strides[0][0]),
            nn.BatchNorm3d(planes),
            nn.ReLU(inplace=True),
        )
        for level, (planes_in, planes_out) in enumerate(zip((planes, *self.stage_dims), self.stage_dims, strict=False)):
            first = Block(planes_in, planes_out, strides[level + 1], shared, step, factored)
            rest = [Block(planes_out, planes_out, (1, 1), shared, step) for _ in range(layers[level] - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(self.feature_dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """T', H' and W' of the last feature map, whose T'·H'·W' positions lie in this order in `StudentOutput.map`."""
        time, space = (math.prod(each) for each in zip(*self.strides, strict=True))
        return -(-frames // time), -(-height // space), -(-width // space)

    def forward(self, clips: Tensor) -> StudentOutput:
        """`clips` (B, 3, T, H, W) float, normalised; any T, H and W from 1 up."""
        x = self.stem(clips)
        stages = []
        for level in range(1, 5):
            x = self.get_submodule(f"layer{level}")(x)
            stages.append(x.mean((2, 3, 4)))
        positions = x.flatten(2).transpose(1, 2)
        return StudentOutput(self.fc(stages[-1]), stages[-1], positions, tuple(stages))
