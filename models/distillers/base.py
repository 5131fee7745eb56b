"""Base class and helpers that all distillation methods share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.outputs import StudentOutput, TeacherBatch


class Sizes(NamedTuple):
    """Dimensions that a method is built for.

    `student` is the width of the student's feature, `stages` the widths of its four stages, `teachers` the width of
    each teacher's feature by letter, `classes` the number of classes, `clips` the number of training clips."""

    student: int
    stages: tuple[int, ...]
    teachers: Mapping[str, int]
    classes: int
    clips: int


class Distiller(nn.Module, ABC):
    """Base class of a distillation method; each subclass has a file of its own, named as in params.yaml.

    A subclass lists in `accepts` the sets of teachers that it supports ("" for none, "A" audio, "I" image, "S" a
    student trained earlier with the same seed). It takes `Sizes` and then its options as annotated keyword-only
    arguments whose defaults are the published ones, raises ValueError for an option out of range, and implements
    `terms`. What is to be logged beside the terms, `terms` leaves in `measured`: scalars of the last batch by name.
    """

    accepts: ClassVar[tuple[str, ...]] = ("A", "I", "AI")
    uses_blocks: ClassVar[bool] = False  # whether teachers must provide their blocks, which are large
    uses_logits: ClassVar[bool] = False  # whether teachers must predict the target classes
    measured: Mapping[str, Tensor] = MappingProxyType({})

    def forward(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute the loss as `{term: weighted loss}`, float32 scalars that the trainer adds up for one backward pass.

        `labels` (B,) are class indices, `index` (B,) the indices of the clips in the training set. Runs in float32
        even under autocast, because similarities, exponentials and logarithms lose too much in half precision."""
        with torch.autocast(labels.device.type, enabled=False):
            teachers = {letter: batch.each(_detached) for letter, batch in teachers.items()}
            return self.terms(student.float(), teachers, labels, index)

    @abstractmethod
    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute the terms on float32 tensors; arguments and result as in `forward`."""

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the method's own parameters as optimizer groups with learning rate `lr`; empty if it has none."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": lr}] if parameters else []

    def scores(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> dict[str, Tensor]:
        """Compute diagnostics per clip, (B,) each, NaN where the teacher had no input.

        Call it in eval mode and without gradient."""
        return {}

    def attend(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> Tensor | None:
        """Compute the attention weights (B, P) over the positions of the student's map (B, P, D).

        Rows without attention are NaN; the result is None if the method has none at all. Call it in eval mode and
        without gradient."""
        return None

    def check_teachers(self, teachers: Mapping[str, TeacherBatch]) -> None:
        """Raise ValueError if the method cannot use these outputs, of all training clips; what the method starts from
        them, it sets here. Called once, because a check in `terms` would wait for the device in every step."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, counted from 0; for warm-ups and weights that decay. Called before each epoch."""


def _detached(tensor: Tensor) -> Tensor:
    """Detach a tensor and cast it to float32; masks, which are bool, are returned unchanged."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor


def zero_loss(student: StudentOutput) -> Tensor:
    """Return a zero that keeps the graph to the student, for a batch without a clip that a term applies to."""
    return student.feature.sum() * 0


def valid_rows(batch: TeacherBatch) -> Tensor:
    """Return the indices (N,) where the teacher's mask is true, in ascending order."""
    return batch.mask.nonzero().flatten() if batch.valid is None else batch.valid


def term_name(name: str, letter: str, teachers: Mapping[str, TeacherBatch]) -> str:
    """Return the name of a teacher's term: `name`, with `_A` or `_I` appended if there are two teachers."""
    return name if len(teachers) == 1 else f"{name}_{letter}"


def by_teacher(
    names: Sequence[str],
    student: StudentOutput,
    teachers: Mapping[str, TeacherBatch],
    distil: Callable[[str, Tensor], Sequence[Tensor]],
    least: int = 1,
) -> dict[str, Tensor]:
    """Compute the terms `names` for each teacher; `term_name` gives their names in the result.

    `distil(letter, rows)` returns their values on the clips `rows` (N,) where that teacher's mask is true. With fewer
    than `least` such clips in the batch, the terms are 0."""
    terms: dict[str, Tensor] = {}
    for letter, teacher in teachers.items():
        rows = valid_rows(teacher)
        values = distil(letter, rows) if len(rows) >= least else [zero_loss(student)] * len(names)
        terms |= {term_name(name, letter, teachers): value for name, value in zip(names, values, strict=True)}
    return terms


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms unchanged inside the `with` block.

    For a second forward pass over the same batch: it is normalised as usual but must not be counted twice."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
