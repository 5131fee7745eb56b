"""Teacher networks by kind. Each maps a batch to a `models.outputs.TeacherOutput`; extract features in eval mode."""

from __future__ import annotations

import torch

from models.teachers.cnn14 import Cnn14
from models.teachers.resnet import ImageResNet

Teacher = Cnn14 | ImageResNet

KINDS = ("cnn14", "resnet10", "resnet34", "resnet50")


def build_teacher(kind: str, classes: int, width: float = 1.0, embedding: int | None = None) -> Teacher:
    """Build a teacher, initialised from torch's global random state.

    `classes` is the number of classes of its own head: 527 for AudioSet, 1000 for ImageNet. `width` multiplies the
    published number of channels, 0 < width <= 1. `embedding` is the width of CNN14's embedding (see `Cnn14`); that of
    a ResNet follows from `width`. The teacher has the attributes `feature_dim: int` and `block_dims: tuple[int, ...]`.
    Raises ValueError for an unknown kind, or for a width or an embedding that the kind does not support."""
    if kind not in KINDS:
        raise ValueError(f"there is no teacher '{kind}'; expected one of {', '.join(KINDS)}")
    if not 0 < width <= 1:
        raise ValueError(f"teacher {kind}: width must be above 0 and at most 1, not {width}")
    if kind == "cnn14":
        return Cnn14(classes, embedding, width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = ImageResNet(classes, {"resnet10": 10, "resnet34": 34, "resnet50": 50}[kind], width)
    if embedding not in (None, model.feature_dim):
        raise ValueError(f"teacher {kind}: width {width} gives embedding {model.feature_dim}, not {embedding}")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
