"""PKT: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.

Similarities between the clips of a batch, normalised to probabilities, are matched between student and teacher:

    c_ij = (cos(x_i, x_j) + 1) / 2,   p_ij = c_ij / sum_k c_ik     (j = i included)
    L    = CE(z^s, y) + w * mean_i sum_j p^t_ij log( (p^t_ij + eps) / (p^s_ij + eps) ),   eps = 1e-7

The CRD benchmark (Tian 2020) weights the mean over all pairs by 30000, so its loss depends on the batch size B. The
mean over rows does not; w = 468.75 is 30000 / B at that benchmark's B = 64.

With v_ij = (p^s_ij - p^t_ij) / (p^t_ij + eps), the sum over j is computed as that of p^t_ij (v_ij - log(1 + v_ij)). The
added p^t_ij v_ij sum to 0 (up to eps); without them the small differences are lost in float32's rounding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch

EPSILON = 1e-7


def neighbours(features: Tensor) -> Tensor:
    """Compute p (N, N) of (N, D) features; rows sum to 1."""
    unit = functional.normalize(features, dim=1)
    affinity = ((unit @ unit.T + 1) / 2).clamp_min(0)  # rounding can give values below 0
    return affinity / affinity.sum(1, keepdim=True)


def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean over rows of KL(teacher || student) between p of (N, Ds) and of (N, Dt) features, N >= 1."""
    p, q = neighbours(teacher), neighbours(student)
    v = (q - p) / (p + EPSILON)
    return (p * (v - v.log1p())).sum(1).mean()


class Pkt(Distiller):
    """Probabilistic knowledge transfer between features of any widths; it has no parameters.

    Clips without audio contribute to the cross-entropy only and are left out of p."""

    def __init__(self, sizes: Sizes, *, weight: float = 468.75) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError("weight must not be negative")
        self.weight = weight

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` and `pkt`; with two teachers `pkt_A` and `pkt_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            return [self.weight * transfer_loss(student.feature[rows], teachers[letter].feature[rows])]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["pkt"], student, teachers, distil)
