"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.

The student need not have its teacher's probabilities, only be correlated with them: clip by clip over the classes, and
class by class over the clips of the batch. With p = softmax(z / tau) and Pearson's correlation rho:

    inter = 1 - mean_i rho(p^s_i., p^t_i.)      over the classes of a clip
    intra = 1 - mean_k rho(p^s_.k, p^t_.k)      over the clips, for a class
    L     = CE(z^s, y) + weight * tau^2 * (inter_weight * inter + intra_weight * intra)

Means and correlations are over the clips that the teacher knows, of which the batch must have two; else both are 0.

Defaults weight 2, both inner weights 1 and tau 1 are those of the authors' program on ImageNet; on CIFAR-100 it has
tau 4. The factor tau^2 is the program's. The teacher's logits come from its head on the target classes.

`intra` depends on the size of the batch. In a small batch most classes have no clip, their columns of p are nearly
constant, and their rho is close to noise: `classes_present`, the share of classes with a clip, is measured for that
reason.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher, term_name, valid_rows
from models.distillers.logits import correlation
from models.outputs import StudentOutput, TeacherBatch


def uncorrelated(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute 1 - mean_i rho of the rows of (N, D) matrices, in 0..2."""
    return 1 - correlation(student, teacher).mean()


class Dist(Distiller):
    """Correlation with the teacher head. Clips that the teacher does not know contribute to the cross-entropy only."""

    uses_logits = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float = 2.0,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if min(weight, inter_weight, intra_weight) < 0:
            raise ValueError("weight, inter_weight and intra_weight must not be negative")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.inter_weight, self.intra_weight = weight * inter_weight, weight * intra_weight
        self.temperature, self.classes = temperature, sizes.classes

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `inter` and `intra`; with two teachers `inter_A`, `inter_I` and so on."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            logits = student.logits[rows], teachers[letter].logits[rows]
            p, q = ((z / self.temperature).softmax(1) for z in logits)
            inter, intra = uncorrelated(p, q), uncorrelated(p.T, q.T)
            return [self.temperature**2 * x for x in (self.inter_weight * inter, self.intra_weight * intra)]

        self.measured = {
            term_name("classes_present", letter, teachers): self._present(labels[valid_rows(teacher)])
            for letter, teacher in teachers.items()
        }
        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["inter", "intra"], student, teachers, distil, least=2)

    def _present(self, labels: Tensor) -> Tensor:
        """Return the share of classes, in 0..1, that have a clip among `labels` (N,)."""
        return (labels[:, None] == torch.arange(self.classes, device=labels.device)).any(0).float().mean()
