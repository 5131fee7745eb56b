"""Teachers by kind. Each maps a batch to a `models.outputs.TeacherOutput`; features are taken in eval mode."""

from __future__ import annotations

import torch

from models.teachers.cnn14 import Cnn14
from models.teachers.resnet import ImageResNet

Teacher = Cnn14 | ImageResNet

KINDS = ("cnn14", "resnet10", "resnet34", "resnet50")


def build_teacher(kind: str, classes: int, width: float = 1.0, embedding: int | None = None) -> Teacher:
    """A new teacher, initialised from torch's random state, with `feature_dim: int` and `block_dims: tuple[int, ...]`.

    `classes`: what its own head tells apart (527 AudioSet classes, 1000 of ImageNet). `width` multiplies the published
    number of channels, 0 < width <= 1; `embedding` is CNN14's (see there), a ResNet's is given by its width. Raises
    ValueError for an unknown kind, or a width or embedding that the kind cannot have."""
    if kind not in KINDS:
        raise ValueError(f"there is no teacher '{kind}'; valid: {', '.join(KINDS)}")
    if not 0 < width <= 1:
        raise ValueError(f"teacher {kind} cannot have width {width}; expected 0 < width <= 1")
    if kind == "cnn14":
        return Cnn14(classes, embedding, width).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = ImageResNet(classes, {"resnet10": 10, "resnet34": 34, "resnet50": 50}[kind], width)
    if embedding not in (None, model.feature_dim):
        raise ValueError(f"teacher {kind} of width {width} has embedding {model.feature_dim}, not {embedding}")
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
