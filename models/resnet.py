"""Residual stages (He et al., CVPR 2016) of any width, made of torchvision's blocks: for ears and for eyes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

LAYERS = {10: (1, 1, 1, 1), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Shortcut(nn.Conv2d):
    """A 1x1 convolution that first picks the pixels which its stride asks for.

    Left to itself, oneDNN 3.10 (PyTorch 2.11) picks them into a buffer that is too small where there are fewer than
    eight channels, which lie last, and the CPU has AVX2 but no AVX-512: backward then corrupts memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H', W'), sizes divided by the stride and rounded up."""
        rows, columns = self.stride
        return functional.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def residual_stages(depth: int, width: float = 1.0) -> tuple[list[nn.Sequential], int]:
    """The four stages of ResNet-10 (one basic block a stage), -34 or -50, and the channels that enter the first.

    Channels are `width` times the published ones; at 1 the stages take torchvision's state dicts as they are.
    Convolutions are initialised as there (He, fan out) by `initialise`."""
    from torchvision.models import resnet  # here, because the import takes seconds

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
    """Channels that leave each of the four stages."""
    planes = max(1, round(64 * width)) * (4 if depth == 50 else 1)
    return tuple(planes * 2**level for level in range(4))


def initialise(network: nn.Module) -> None:
    """He initialisation of all convolutions, as torchvision's ResNets have it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
