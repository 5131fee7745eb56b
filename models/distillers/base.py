"""What every way of distilling shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.outputs import StudentOutput, TeacherBatch


class Sizes(NamedTuple):
    """The dimensions that a method is built for: width of the student's feature, of its four stages and of each
    teacher's feature by letter; number of classes; number of training clips."""

    student: int
    stages: tuple[int, ...]
    teachers: Mapping[str, int]
    classes: int
    clips: int


class Distiller(nn.Module):
    """One way of distilling: a subclass, alone in a file that bears its name in params.yaml.

    A subclass lists in `accepts` the sets of teachers that it can listen to ("" for none, "A" audio, "I" image, "S" a
    student that was trained before, with the same seed),
    takes `Sizes` and then its options as annotated keyword-only arguments whose defaults are the published ones,
    raises ValueError for an option out of range, and implements `terms`.
    """

    accepts: ClassVar[tuple[str, ...]] = ("A", "I", "AI")

    def forward(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """The loss as `{term: weighted loss}`, scalars in float32 that the trainer adds up: one sum, one backward.

        `labels` (B,) are the classes, `index` (B,) the numbers of the clips within the training set. Runs in float32
        whatever the autocast: similarities, exponentials and logarithms lose too much in half precision."""
        with torch.autocast(labels.device.type, enabled=False):
            teachers = {letter: batch.each(_known) for letter, batch in teachers.items()}
            return self.terms(student.float(), teachers, labels, index)

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """The equation itself, on float32 tensors; see `forward`."""
        raise NotImplementedError

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The method's own parameters as an optimizer takes them, with their learning rate; empty if it has none."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": lr}] if parameters else []

    def scores(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> dict[str, Tensor]:
        """Diagnostics by clip, (B,) each, NaN where the teacher had no input.

        To be called in eval mode and without gradient."""
        return {}

    def start_epoch(self, epoch: int) -> None:
        """Told before each epoch, counted from 0: for warm-ups and weights that fade."""


def _known(tensor: Tensor) -> Tensor:
    """What a teacher says, as a fact in float32 (masks stay masks): no gradient leads to it."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor


def nothing(student: StudentOutput) -> Tensor:
    """A loss of exactly 0 that is connected to the student: for a batch in which no clip has what a term needs."""
    return student.feature.sum() * 0


def heard(batch: TeacherBatch) -> Tensor:
    """Numbers (N,) of the clips for which the teacher has something to say, in order."""
    return batch.mask.nonzero().flatten()


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Within it, batch norm normalises as ever but leaves its running statistics as they are: for a second look at
    the same batch."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
