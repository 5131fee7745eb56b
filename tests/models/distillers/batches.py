"""Batches that the tests of all methods share, and what must hold for each method whatever its equation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.distillers import Distiller, build
from models.outputs import StudentOutput, TeacherBatch

DIM, STAGES, BLOCKS, CLASSES, CLIPS = 16, (2, 4, 8, 16), (3, 5, 7, 9), 5, 40
SMALL: dict[str, dict[str, Any]] = {"mst_distill": {"hidden": 12}}  # options of methods that would be large


def make(name: str, teachers: str = "A", dim: int = DIM, seed: int = 0, **options: Any) -> Distiller:
    """A method on the shared sizes; `dim` is the width of the teachers."""
    torch.manual_seed(seed)
    return build(
        name,
        student_dim=DIM,
        stage_dims=STAGES,
        teacher_dims=dict.fromkeys(teachers, dim),
        classes=CLASSES,
        clips=CLIPS,
        options=SMALL.get(name, {}) | options,
    )


class Batch:
    """A student's output with leaves that gather gradients, teachers, labels and index."""

    def __init__(self, size: int = 12, teachers: str = "A", dim: int = DIM, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.map = torch.rand(size, 6, DIM, generator=rng).sub(0.3).relu().requires_grad_()
        self.logits = torch.randn(size, CLASSES, generator=rng).mul(2).requires_grad_()
        self.feature = self.map.detach().mean(1).requires_grad_()
        self.stages = tuple(torch.rand(size, width, generator=rng).requires_grad_() for width in STAGES[:-1])
        self.teachers = {
            letter: TeacherBatch(
                torch.rand(size, dim, generator=rng).requires_grad_(),
                torch.randn(size, CLASSES, generator=rng).mul(3).requires_grad_(),
                torch.ones(size, dtype=torch.bool),
                tuple(torch.rand(size, width, generator=rng).requires_grad_() for width in BLOCKS),
            )
            for letter in teachers
        }
        self.labels = torch.randint(CLASSES, (size,), generator=rng)
        self.index = torch.randperm(CLIPS, generator=rng)[:size]

    @property
    def student(self) -> StudentOutput:
        return StudentOutput(self.logits, self.feature, self.map, (*self.stages, self.feature))

    def arguments(self) -> tuple[StudentOutput, dict[str, TeacherBatch], Tensor, Tensor]:
        return self.student, self.teachers, self.labels, self.index

    def silence(self, rows: list[int]) -> Batch:
        """Marks clips as without input; what stands in their rows must not matter, so it is NaN."""
        for letter, teacher in self.teachers.items():
            mask = teacher.mask.clone()
            feature, logits = teacher.feature.detach().clone(), teacher.logits.detach().clone()
            mask[rows], feature[rows], logits[rows] = False, torch.nan, torch.nan
            blocks = tuple(block.detach().index_fill(0, torch.tensor(rows), torch.nan) for block in teacher.blocks)
            self.teachers[letter] = TeacherBatch(feature.requires_grad_(), logits.requires_grad_(), mask, blocks)
        return self

    def rows(self, rows: list[int]) -> Batch:
        """The batch of these clips, in this order."""
        part = Batch.__new__(Batch)
        take = torch.tensor(rows, dtype=torch.long)
        for name in ("map", "logits", "feature"):
            setattr(part, name, getattr(self, name).detach()[take].requires_grad_())
        part.stages = tuple(stage.detach()[take].requires_grad_() for stage in self.stages)
        part.teachers = {
            letter: teacher.each(lambda x: x.detach()[take].requires_grad_(x.is_floating_point()))
            for letter, teacher in self.teachers.items()
        }
        part.labels, part.index = self.labels[take], self.index[take]
        return part


def total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def array(tensor: Tensor) -> Any:
    return tensor.detach().double().numpy()


def all_finite(method: nn.Module, batch: Batch) -> None:
    """Every term and every gradient is a finite number, and none reaches a teacher."""
    terms = method(*batch.arguments())
    for name, term in terms.items():
        assert term.shape == (), name
        assert term.isfinite(), name
        assert term.requires_grad, name
    total(terms).backward()
    for leaf in (batch.logits, batch.feature, batch.map, *batch.stages, *method.parameters()):
        assert leaf.grad is None or leaf.grad.isfinite().all()
    for teacher in batch.teachers.values():
        assert teacher.feature.grad is None and teacher.logits.grad is None
        assert all(block.grad is None for block in teacher.blocks)


def hard_batches(teachers: str = "A") -> dict[str, Batch]:
    """Inputs on which careless formulas give NaN."""
    saturated = Batch(teachers=teachers)
    saturated.logits.data *= 1e4
    for teacher in saturated.teachers.values():
        teacher.logits.data *= 1e4
    large = Batch(teachers=teachers)
    large.feature.data *= 1e4
    large.map.data *= 1e4
    for teacher in large.teachers.values():
        teacher.feature.data *= 1e4
    zero = Batch(teachers=teachers)
    zero.feature.data[:2] = 0
    for teacher in zero.teachers.values():
        teacher.feature.data[1:3] = 0
    one_class = Batch(teachers=teachers)
    one_class.labels[:] = 2
    every_class = Batch(teachers=teachers).rows([0, 1, 2, 3, 4])
    every_class.labels = torch.arange(5)
    return {
        "saturated logits": saturated,
        "large features": large,
        "features of zeros": zero,
        "duplicate rows": Batch(teachers=teachers).rows([0, 0, 0, 1, 1, 2]),
        "one class": one_class,
        "no two of a class": every_class,
        "some without sound": Batch(teachers=teachers).silence([0, 5, 11]),
        "two with sound": Batch(teachers=teachers).silence(list(range(10))),
        "one with sound": Batch(teachers=teachers).silence(list(range(11))),
        "none with sound": Batch(teachers=teachers).silence(list(range(12))),
    }
