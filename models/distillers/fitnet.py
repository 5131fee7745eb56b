"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in its single-stage form.

    L = CE(z^s, y) + beta * mean( (r(s) - t)^2 ),   r = ReLU(BN(Linear(s)))

The mean is over clips and channels. The paper trains with the hint of a middle layer first and with soft labels
afterwards; here, as in the CRD benchmark (Tian 2020), from which beta = 100 comes, one stage does both. The hint is the
teacher's last feature.

The paper leaves the scale of t alone. PANNs' embeddings are long (16 on average), so `normalise` takes r(s) and t to
unit length first; a clip's mean over the Dt channels is then 2 (1 - cos(r(s), t)) / Dt.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def hint_loss(regressed: Tensor, teacher: Tensor, normalise: bool) -> Tensor:
    """Mean squared difference of (N, Dt) features, N >= 1, each of unit length first if `normalise`."""
    if normalise:
        regressed, teacher = functional.normalize(regressed, dim=1), functional.normalize(teacher, dim=1)
    return functional.mse_loss(regressed, teacher)


class FitNet(Distiller):
    """The student's feature, through a regressor for each teacher, shall be the teacher's.

    Clips without sound keep the cross-entropy alone; the hint is the mean over the others."""

    def __init__(self, sizes: Sizes, *, weight: float = 100.0, normalise: bool = False) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError("weight must not be negative")
        self.weight, self.normalise = weight, normalise
        self.regress = nn.ModuleDict(
            {
                letter: nn.Sequential(nn.Linear(sizes.student, width), nn.BatchNorm1d(width), nn.ReLU())
                for letter, width in sizes.teachers.items()
            }
        )

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """`ce` and `hint`, or `hint_A` and `hint_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            regressed = self.regress[letter](student.feature[rows])
            return [self.weight * hint_loss(regressed, teachers[letter].feature[rows], self.normalise)]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["hint"], student, teachers, distil, least=2)  # batch norm needs two
