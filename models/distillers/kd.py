"""KD: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.

    L = mean_i r_i * CE(z^s_i, y_i) + a * T^2 * mean_i KL( softmax(z^t_i / T) || softmax(z^s_i / T) )

The second mean is over the clips that a teacher knows; their r_i is r. A clip that no teacher knows (a silent one) has
r_i = r + a, so that it is not learned at a tenth of the rate of the others, but not more than max(r, 1).

Defaults T = 4, r = 0.1, a = 0.9 are those of mdistiller and of the CRD benchmark (Tian 2020), tuned on CIFAR-100. The
paper itself recommends a small weight on the labels. The teacher's logits come from its head on the target classes.
With these weights the student learns what its teacher knows: a teacher below the student's own accuracy pulls it down.
A teacher about as good as the student, or worse, needs a smaller `weight`, chosen on the validation split
(docs/findings.md).

`standardise: true` replaces both logits in the KL by Z(z) of models/distillers/logits.py (Sun et al., CVPR 2024). Their
program then has `temperature: 2`, `label_weight: 0.1`, `weight: 9`, tuned on CIFAR-100; set them beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.distillers.logits import confidence, standardise
from models.outputs import StudentOutput, TeacherBatch


def tempered_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over rows of KL(teacher || student) at temperature T; logits (N, C), N >= 1."""
    log_student = functional.log_softmax(student_logits / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class Kd(Distiller):
    """Tempered KL to the teacher head; with two teachers, one term for each."""

    uses_logits = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        temperature: float = 4.0,
        label_weight: float = 0.1,
        weight: float = 0.9,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if min(label_weight, weight) < 0:
            raise ValueError("label_weight and weight must not be negative")
        if standardise and sizes.classes < 2:
            raise ValueError(f"standardise needs two classes or more, found {sizes.classes}")
        self.temperature, self.label_weight, self.weight = temperature, label_weight, weight
        self.standardise = standardise

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """`ce` and `kd`, or `kd_A` and `kd_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            logits = student.logits[rows], teachers[letter].logits[rows]
            if self.standardise:
                logits = standardise(logits[0]), standardise(logits[1])
            return [self.weight * tempered_kl(*logits, self.temperature)]

        if self.standardise:
            self.measured = confidence(teachers, labels)
        known = torch.stack([teacher.mask for teacher in teachers.values()]).any(0)
        alone = min(self.label_weight + self.weight, max(self.label_weight, 1.0))
        weights = self.label_weight + (alone - self.label_weight) * (~known).float()
        ce = (weights * functional.cross_entropy(student.logits, labels, reduction="none")).mean()
        return {"ce": ce} | by_teacher(["kd"], student, teachers, distil)
