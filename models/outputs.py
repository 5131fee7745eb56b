"""Outputs of students and teachers, which are the inputs of a distillation method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class StudentOutput(NamedTuple):
    """Outputs of a student network for a batch of B clips.

    `logits` (B, C); `feature` (B, D), taken after ReLU and pooling and therefore non-negative; `map` (B, P, D), the
    P positions of the last feature map, whose mean over P is `feature`; `stages`, the pooled output of each of the
    four residual stages, (B, D_l) each, the last of which is `feature`."""

    logits: Tensor
    feature: Tensor
    map: Tensor
    stages: tuple[Tensor, ...]

    def each(self, change: Callable[[Tensor], Tensor]) -> StudentOutput:
        """Return a copy with `change` applied to every tensor."""
        stages = tuple(change(stage) for stage in self.stages)
        return StudentOutput(change(self.logits), change(self.feature), change(self.map), stages)

    def detach(self) -> StudentOutput:
        """Return a copy that is detached from the graph."""
        return self.each(Tensor.detach)

    def float(self) -> StudentOutput:
        """Return a copy in float32, through which gradients still flow."""
        return self.each(Tensor.float)


class TeacherBatch(NamedTuple):
    """Outputs of one frozen teacher for B clips, computed before training and therefore without gradient.

    `feature` (B, Dt); `logits` (B, C) of the teacher head; `mask` (B,) bool, False where the clip has no usable
    input for this teacher (no audio); `blocks`, the pooled output of each of its blocks, (B, D_l) each, empty if
    only the last feature is stored. Rows where `mask` is False hold arbitrary values. `valid` (N,) are the indices
    where `mask` is True, in ascending order, if they are known: to count them, the host has to wait for the device."""

    feature: Tensor
    logits: Tensor
    mask: Tensor
    blocks: tuple[Tensor, ...] = ()
    valid: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> TeacherBatch:
        """Return a copy with `change`, which keeps the order of clips, applied to every tensor with a row per clip."""
        blocks = tuple(change(block) for block in self.blocks)
        return self._replace(
            feature=change(self.feature), logits=change(self.logits), mask=change(self.mask), blocks=blocks
        )

    def take(self, rows: Tensor, valid: Tensor | None = None) -> TeacherBatch:
        """Select the clips at the indices `rows` (N,); `valid` are the positions of those whose mask is True."""
        return self.each(lambda tensor: tensor[rows])._replace(valid=valid)

    def to(self, device: torch.device) -> TeacherBatch:
        """Return a copy on `device`."""
        return self.each(lambda tensor: tensor.to(device))


class TeacherOutput(NamedTuple):
    """Outputs of a teacher network for a batch of B inputs.

    `embedding` (B, E); `logits` (B, classes), before any sigmoid or softmax; `blocks`, the output of each convolution
    block averaged over all positions, (B, D_l) each."""

    embedding: Tensor
    logits: Tensor
    blocks: tuple[Tensor, ...]
