"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, in its single-stage form.

    L = CE(z^s, y) + beta * mean( (r(s) - t)^2 ),   r = ReLU(BN(Linear(s)))

The mean is over clips and channels. The paper trains in two stages, first with the hint of a middle layer, then with
soft labels. Here both are one stage, as in the CRD benchmark (Tian 2020), which beta = 100 comes from. The hint is
the teacher's last feature.

The paper does not normalise t. PANNs' embeddings have a norm of about 16, so option `normalise` scales r(s) and t to
unit length first; a clip's mean over the Dt channels is then 2 (1 - cos(r(s), t)) / Dt.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def hint_loss(regressed: Tensor, teacher: Tensor, normalise: bool) -> Tensor:
    """Compute the mean squared difference of (N, Dt) features, N >= 1; `normalise` scales each to unit length first."""
    if normalise:
        regressed, teacher = functional.normalize(regressed, dim=1), functional.normalize(teacher, dim=1)
    return functional.mse_loss(regressed, teacher)


class FitNet(Distiller):
    """Regression of each teacher's feature from the student's, with one regressor per teacher.

    Clips without audio contribute to the cross-entropy only; the hint loss is the mean over the others."""

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
        """Compute `ce` and `hint`; with two teachers `hint_A` and `hint_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            regressed = self.regress[letter](student.feature[rows])
            return [self.weight * hint_loss(regressed, teachers[letter].feature[rows], self.normalise)]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["hint"], student, teachers, distil, least=2)  # batch norm needs two clips
