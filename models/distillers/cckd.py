"""CCKD: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (COR in Chen's tables).

The similarity matrix of the batch, under a Gaussian kernel, is matched between student and teacher:

    e    = n(x W) in 128 dimensions
    K_ij = exp(-2 gamma) * sum_{p=0..P} (2 gamma)^p / p! * (e_i . e_j)^p      (exp(-gamma ||e_i - e_j||^2) for P -> inf)
    L    = CE(z^s, y) + w * ||K^s - K^t||_F^2 / B^2

gamma = 0.4 and P = 2 are given in the paper. No published weight carries over: the 0.003 of a widely used program
belongs to the unsquared norm of embeddings that are not normalised. The default of 20 is ours, chosen so
that the gradient is of the order of CE's; the report's table of gradients has its share.

The paper does not specify W. Here it is a linear layer for the student and, for the teacher, a fixed random projection
with orthonormal columns (rows if Dt < 128), initialised with the seed. If the teacher's were learned, both sides could
collapse to a constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def kernel(embedding: Tensor, gamma: float, order: int) -> Tensor:
    """Compute K (N, N) of (N, E) embeddings, after normalising them to unit length."""
    unit = functional.normalize(embedding, dim=1)
    cosines = unit @ unit.T
    series = [(2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(0)


def congruence_loss(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """Compute the mean squared difference of the kernels of (N, E) embeddings, N >= 1."""
    return functional.mse_loss(kernel(student, gamma, order), kernel(teacher, gamma, order))


class Cckd(Distiller):
    """Correlation congruence. Clips without audio contribute to the cross-entropy only and are not part of K."""

    def __init__(
        self, sizes: Sizes, *, weight: float = 20.0, gamma: float = 0.4, order: int = 2, dim: int = 128
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError("weight must not be negative")
        if gamma <= 0:
            raise ValueError(f"gamma must be above 0, not {gamma}")
        if order < 1 or dim < 1:
            raise ValueError("order and dim must be at least 1")
        self.weight, self.gamma, self.order = weight, gamma, order
        self.embed = nn.ModuleDict({letter: nn.Linear(sizes.student, dim) for letter in sizes.teachers})
        for letter, width in sizes.teachers.items():
            self.register_buffer(f"projection_{letter}", nn.init.orthogonal_(torch.empty(width, dim)))

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` and `correlation`; with two teachers `correlation_A` and `correlation_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            ours = self.embed[letter](student.feature[rows])
            theirs = teachers[letter].feature[rows] @ self.get_buffer(f"projection_{letter}")
            return [self.weight * congruence_loss(ours, theirs, self.gamma, self.order)]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["correlation"], student, teachers, distil)
