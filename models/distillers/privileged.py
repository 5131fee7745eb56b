"""Privileged information as an auxiliary task: the student also predicts what its teacher knows.

    L = CE(z^s, y) + weight * mean_i CE(W s_i + b, p_i),   p_i = t_i / sum_k t_ik

W and b are a linear layer on the student's feature s, and the teacher's feature t_i is not negative. If t_i is one-hot,
as with a teacher of kind `truth`, the layer classifies a hidden variable of the clip, which the student cannot observe
at test time. So the method asks whether a student gains at all from knowing that variable while it is trained.

Learning with privileged information: Vapnik & Vashist, "A new learning paradigm: Learning using privileged
information", Neural Networks 22, 2009. Lopez-Paz et al., "Unifying distillation and privileged information", ICLR 2016,
fit a teacher to the privileged information and distil its soft labels (generalised distillation), as `kd` does with a
teacher of kind `truth`. Here the student predicts the privileged information itself, a second task of the same network
(Caruana, "Multitask Learning", Machine Learning 28, 1997). The default of `weight` is not from a paper.

p is a share of the sum, not a softmax, so a one-hot feature remains one-hot. The loss of a feature of zeros is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher, valid_rows
from models.outputs import StudentOutput, TeacherBatch


def shares(feature: Tensor) -> Tensor:
    """Compute p (N, Dt) of features t (N, Dt), which are not negative; rows of zeros remain zeros."""
    return functional.normalize(feature, p=1, dim=1)


class Privileged(Distiller):
    """Cross-entropy, and prediction of each teacher's feature, with one linear layer per teacher.

    Clips without input for the teacher contribute to CE(z^s, y) only."""

    def __init__(self, sizes: Sizes, *, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, but is {weight}")
        self.weight = weight
        self.predict = nn.ModuleDict({x: nn.Linear(sizes.student, width) for x, width in sizes.teachers.items()})

    def check_teachers(self, teachers: Mapping[str, TeacherBatch]) -> None:
        """Raise ValueError for a negative feature of a clip that its teacher knows."""
        for letter, teacher in teachers.items():
            feature = teacher.feature[valid_rows(teacher)]
            if (feature < 0).any():
                least = float(feature.detach().min())
                raise ValueError(
                    f"privileged needs features that are not negative, found {least:.3g} (teacher {letter})"
                )

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` and `auxiliary`; with two teachers `auxiliary_A` and `auxiliary_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            predicted = self.predict[letter](student.feature[rows])
            return [self.weight * functional.cross_entropy(predicted, shares(teachers[letter].feature[rows]))]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["auxiliary"], student, teachers, distil)
