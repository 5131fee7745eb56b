"""What students and teachers hand to a distillation method."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class StudentOutput(NamedTuple):
    """What a student makes of a batch of B clips.

    `logits` (B, C); `feature` (B, D), after ReLU and pooling, so never negative; `map` (B, P, D), the P positions
    of the last feature map, whose mean over P is `feature`; `stages`, the pooled output of each of the four
    residual stages, (B, D_l) each, the last of which is `feature`."""

    logits: Tensor
    feature: Tensor
    map: Tensor
    stages: tuple[Tensor, ...]

    def each(self, change: Callable[[Tensor], Tensor]) -> StudentOutput:
        """The same with every tensor changed."""
        stages = tuple(change(stage) for stage in self.stages)
        return StudentOutput(change(self.logits), change(self.feature), change(self.map), stages)

    def detach(self) -> StudentOutput:
        """The same values, through which no gradient flows."""
        return self.each(Tensor.detach)

    def float(self) -> StudentOutput:
        """The same values in float32 (gradients flow)."""
        return self.each(Tensor.float)


class TeacherBatch(NamedTuple):
    """What one frozen teacher knows about B clips: computed before training, so without gradient.

    `feature` (B, Dt); `logits` (B, C) of the teacher head; `mask` (B,) bool, False where the clip has no usable
    input for this teacher (no sound); `blocks`, the pooled output of each of its blocks, (B, D_l) each, empty where
    only the last is known. Rows where `mask` is False mean nothing and may hold any value."""

    feature: Tensor
    logits: Tensor
    mask: Tensor
    blocks: tuple[Tensor, ...] = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> TeacherBatch:
        """The same with every tensor changed."""
        blocks = tuple(change(block) for block in self.blocks)
        return TeacherBatch(change(self.feature), change(self.logits), change(self.mask), blocks)

    def take(self, rows: Tensor) -> TeacherBatch:
        """The clips with these numbers (N,)."""
        return self.each(lambda known: known[rows])

    def to(self, device: torch.device) -> TeacherBatch:
        """The same on another device."""
        return self.each(lambda known: known.to(device))


class TeacherOutput(NamedTuple):
    """What a teacher network makes of a batch: `embedding` (B, E), `logits` (B, classes) before any sigmoid or softmax,
    and `blocks`, its convolution blocks' outputs averaged over all positions, (B, D_l) each."""

    embedding: Tensor
    logits: Tensor
    blocks: tuple[Tensor, ...]
