"""Student networks by name. Each maps a batch of clips to a `models.outputs.StudentOutput`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.students.audio_resnet import AudioResNet
from models.students.r2plus1d import R2Plus1d

Student = R2Plus1d | AudioResNet

# For frames of some 24 pixels: a coarser stem, of a third of the cost, and later stages that keep 4 x 4 positions.
SMALL = ((2, 3), (1, 1), (2, 2), (2, 1), (1, 1))

STUDENTS: dict[str, Callable[[int, float], Student]] = {
    "r2plus1d_10": lambda classes, width: R2Plus1d(classes, (1, 1, 1, 1), width, "paper"),
    "r2plus1d_10_factored": lambda classes, width: R2Plus1d(classes, (1, 1, 1, 1), width, "paper", factored=True),
    "r2plus1d_10_small": lambda classes, width: R2Plus1d(classes, (1, 1, 1, 1), width, "paper", strides=SMALL),
    "r2plus1d_18": lambda classes, width: R2Plus1d(classes, (2, 2, 2, 2), width, "torchvision"),
    "resnet10_audio": lambda classes, width: AudioResNet(classes, 10, width),
    "resnet34_audio": lambda classes, width: AudioResNet(classes, 34, width),
    "resnet50_audio": lambda classes, width: AudioResNet(classes, 50, width),
}


def build_student(name: str, classes: int, width: float = 1.0) -> Student:
    """Build a student, initialised from torch's global random state.

    `width` multiplies the published number of channels, 0 < width <= 1. The student has the attributes
    `feature_dim: int` and `stage_dims: tuple[int, ...]`, the channels of its four residual stages. Its weights have
    channels-last layout, which makes convolutions faster. Raises ValueError for an unknown name or a width out of
    range."""
    if name not in STUDENTS:
        raise ValueError(f"there is no student '{name}'; expected one of {', '.join(STUDENTS)}")
    if not 0 < width <= 1:
        raise ValueError(f"student {name}: width must be above 0 and at most 1, not {width}")
    student = STUDENTS[name](classes, width)
    last = torch.channels_last if isinstance(student, AudioResNet) else torch.channels_last_3d
    return student.to(memory_format=last)  # type: ignore[call-overload]
