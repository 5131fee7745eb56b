"""Residual stages (He et al., CVPR 2016) of any width, built from torchvision's blocks, for audio and for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = {10: (1, 1, 1, 1), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Shortcut(nn.Conv2d):
    """1x1 convolution that applies its stride by slicing the input.

    Works around a bug of oneDNN 3.10 (PyTorch 2.11): on a CPU with AVX2 but no AVX-512, a strided 1x1 convolution
    over fewer than eight channels in channels-last layout copies the pixels into a buffer that is too small, and
    backward corrupts memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H', W'), with H and W divided by the stride and rounded up."""
        rows, columns = self.stride
        return functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


class _MaxPool(torch.autograd.Function):
    """Max pooling whose backward adds the gradients of overlapping windows in a fixed order: that of a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int, padding: int) -> Tensor:
        pooled, places = functional.max_pool2d(x, size, stride, padding, return_indices=True)
        ctx.save_for_backward(places)
        ctx.shape, ctx.window = x.shape, (size, stride, padding)
        return pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        (size, stride, padding), (height, width) = ctx.window, ctx.shape[2:]
        rows, columns = (torch.arange(n, device=places.device) * stride - padding for n in places.shape[2:])
        within = (places // width - rows[:, None]) * size + places % width - columns  # 0 .. size**2 - 1
        total = functional.pad(gradient.new_zeros(ctx.shape), [padding] * 4)
        down, right = (stride * (n - 1) + 1 for n in places.shape[2:])
        # A window's last place belongs to the earliest window that covers a pixel.
        for place in reversed(range(size**2)):
            i, j = divmod(place, size)
            total[:, :, i : i + down : stride, j : j + right : stride] += gradient.where(within == place, 0)
        return total[:, :, padding : padding + height, padding : padding + width], None, None, None


class MaxPool2d(nn.MaxPool2d):
    """Max pooling that is deterministic on a GPU, too.

    PyTorch's own adds the gradients of overlapping windows there in any order, without the error that
    `use_deterministic_algorithms` promises."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H', W')."""
        if x.is_cuda and torch.is_grad_enabled():
            pooled: Tensor = _MaxPool.apply(x, self.kernel_size, self.stride, self.padding)
            return pooled
        return super().forward(x)


def residual_stages(depth: int, width: float = 1.0) -> tuple[list[nn.Sequential], int]:
    """Build the four stages of ResNet-10 (one basic block per stage), -34 or -50.

    Returns the stages and the number of input channels of the first. Channels are `width` times the published ones;
    with width 1 the stages load torchvision's state dicts. Call `initialise` on the network that contains them."""
    from torchvision.models import resnet  # imported here because it takes seconds

    block: Any = resnet.Bottleneck if depth == 50 else resnet.BasicBlock
    planes = entering = max(1, round(64 * width))
    stages = []
    for level, count in enumerate(LAYERS[depth]):
        leaving = block.expansion * planes * 2**level
        blocks = []
        for number in range(count):
            stride = 2 if level and not number else 1
            shortcut = None
            if entering != leaving:
                shortcut = nn.Sequential(Shortcut(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))
            blocks.append(block(entering, planes * 2**level, stride, shortcut))
            entering = leaving
        stages.append(nn.Sequential(*blocks))
    return stages, planes


def stage_dims(depth: int, width: float = 1.0) -> tuple[int, ...]:
    """Return the number of output channels of each of the four stages."""
    planes = max(1, round(64 * width)) * (4 if depth == 50 else 1)
    return tuple(planes * 2**level for level in range(4))


def initialise(network: nn.Module) -> None:
    """Apply He initialisation (fan out) to all convolutions, as torchvision's ResNets do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
