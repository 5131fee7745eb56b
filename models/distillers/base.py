"""What every way of distilling shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class Distiller(nn.Module, ABC):
    """One way of distilling: a subclass, alone in a file that bears its name in params.yaml.

    A subclass lists in `accepts` the sets of teachers that it can listen to ("" for none, "A" audio, "I" image, "S" a
    student that was trained before, with the same seed),
    takes `Sizes` and then its options as annotated keyword-only arguments whose defaults are the published ones,
    raises ValueError for an option out of range, and implements `terms`.
    """

    accepts: ClassVar[tuple[str, ...]] = ("A", "I", "AI")
    uses_blocks: ClassVar[bool] = False  # whether teachers have to bring their blocks, which are large

    def forward(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """The loss as `{term: weighted loss}`, scalars in float32 that the trainer adds up: one sum, one backward.

        `labels` (B,) are the classes, `index` (B,) the numbers of the clips within the training set. Runs in float32
        whatever the autocast: similarities, exponentials and logarithms lose too much in half precision."""
        with torch.autocast(labels.device.type, enabled=False):
            teachers = {letter: batch.each(_detached) for letter, batch in teachers.items()}
            return self.terms(student.float(), teachers, labels, index)

    @abstractmethod
    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """The equation itself, on float32 tensors; see `forward`."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The method's own parameters as an optimizer takes them, with their learning rate; empty if it has none."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": lr}] if parameters else []

    def scores(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> dict[str, Tensor]:
        """Diagnostics by clip, (B,) each, NaN where the teacher had no input.

        To be called in eval mode and without gradient."""
        return {}

    def attend(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> Tensor | None:
        """Where in the student's map (B, P, D) the method looks, (B, P), NaN where nowhere; None if it never does.

        To be called in eval mode and without gradient."""
        return None

    def start_epoch(self, epoch: int) -> None:
        """Told before each epoch, counted from 0: for warm-ups and weights that fade."""


def _detached(tensor: Tensor) -> Tensor:
    """What a teacher says, as a fact in float32 (masks stay masks): no gradient leads to it."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor


def zero_loss(student: StudentOutput) -> Tensor:
    """A loss of exactly 0 that is connected to the student: for a batch in which no clip has what a term needs."""
    return student.feature.sum() * 0


def valid_rows(batch: TeacherBatch) -> Tensor:
    """Numbers (N,) of the clips for which the teacher has something to say, in order."""
    return batch.mask.nonzero().flatten()


def term_name(name: str, letter: str, teachers: Mapping[str, TeacherBatch]) -> str:
    """What a teacher's term is called: its plain name, with `_A` or `_I` after it where there are two teachers."""
    return name if len(teachers) == 1 else f"{name}_{letter}"


def by_teacher(
    names: Sequence[str],
    student: StudentOutput,
    teachers: Mapping[str, TeacherBatch],
    distil: Callable[[str, Tensor], Sequence[Tensor]],
    least: int = 1,
) -> dict[str, Tensor]:
    """The terms `names` of each teacher, called as `term_name` says.

    `distil(letter, rows)` gives their values on the clips (N,) for which that teacher has something to say. A batch
    with fewer than `least` of them has terms of 0."""
    terms: dict[str, Tensor] = {}
    for letter, teacher in teachers.items():
        rows = valid_rows(teacher)
        values = distil(letter, rows) if len(rows) >= least else [zero_loss(student)] * len(names)
        terms |= {term_name(name, letter, teachers): value for name, value in zip(names, values, strict=True)}
    return terms


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
