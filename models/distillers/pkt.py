"""PKT: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.

How near the clips of a batch are to each other, as probabilities, shall be the same for the student and the teacher:

    c_ij = (cos(x_i, x_j) + 1) / 2,   p_ij = c_ij / sum_k c_ik     (j = i included)
    L    = CE(z^s, y) + w * mean_i sum_j p^t_ij log( (p^t_ij + eps) / (p^s_ij + eps) ),   eps = 1e-7

The CRD benchmark (Tian 2020) weights the mean over all pairs by 30000, which makes the loss depend on the batch's size
B. The mean over rows does not; w = 468.75 is 30000 / B at that benchmark's B = 64.

With v_ij = (p^s_ij - p^t_ij) / (p^t_ij + eps), the sum over j is computed as that of p^t_ij (v_ij - log(1 + v_ij)):
p^t_ij v_ij adds up to 0 (but for what eps changes), and without it the small differences drown in float32's rounding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch

EPSILON = 1e-7


def neighbours(features: Tensor) -> Tensor:
    """p (N, N) of (N, D) features, rows that sum to 1."""
    unit = functional.normalize(features, dim=1)
    affinity = ((unit @ unit.T + 1) / 2).clamp_min(0)  # rounding
    return affinity / affinity.sum(1, keepdim=True)


def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(teacher || student) between the neighbours in (N, Ds) and in (N, Dt), N >= 1."""
    p, q = neighbours(teacher), neighbours(student)
    v = (q - p) / (p + EPSILON)
    return (p * (v - v.log1p())).sum(1).mean()


class Pkt(Distiller):
    """Probabilistic knowledge transfer between features of any widths; no parameters of its own.

    Clips without sound keep the cross-entropy alone and are nobody's neighbours."""

    def __init__(self, sizes: Sizes, *, weight: float = 468.75) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError("weight must not be negative")
        self.weight = weight

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """`ce` and `pkt`, or `pkt_A` and `pkt_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            return [self.weight * transfer_loss(student.feature[rows], teachers[letter].feature[rows])]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["pkt"], student, teachers, distil)
