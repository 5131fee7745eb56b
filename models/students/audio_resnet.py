"""Audio students: residual networks on log-mel spectrograms, for audio tagging (Xia 2023, Table 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from models.logmel import MELS
from models.outputs import StudentOutput
from models.resnet import MaxPool2d, initialise, residual_stages, stage_dims


class AudioResNet(nn.Module):
    """ResNet-10, -34 or -50 with one input channel and `width` times the published number of channels.

    A batch norm over the mel bands normalises the decibels, as in PANNs."""

    def __init__(self, classes: int, depth: Literal[10, 34, 50], width: float = 1.0) -> None:
        super().__init__()
        stages, planes = residual_stages(depth, width)
        self.bands = nn.BatchNorm2d(MELS)
        self.stem = nn.Sequential(
            nn.Conv2d(1, planes, 7, 2, 3, bias=False),
            nn.BatchNorm2d(planes),
            nn.ReLU(inplace=True),
            MaxPool2d(3, 2, 1),
        )
        self.stages = nn.ModuleList(stages)
        self.stage_dims = stage_dims(depth, width)
        self.feature_dim = self.stage_dims[-1]
        self.fc = nn.Linear(self.feature_dim, classes)
        initialise(self)

    def forward(self, logmel: Tensor) -> StudentOutput:
        """Compute the output for `logmel` (B, 1, T, 64) in dB, one frame every 10 ms."""
        x = self.stem(self.bands(logmel.transpose(1, 3)).transpose(1, 3))
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        return StudentOutput(self.fc(pooled[-1]), pooled[-1], x.flatten(2).transpose(1, 2), tuple(pooled))
