"""KD: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.

    L = r * CE(z^s, y) + a * T^2 * mean_i KL( softmax(z^t_i / T) || softmax(z^s_i / T) )

Defaults T = 4, r = 0.1, a = 0.9 are those of mdistiller and of the CRD benchmark (Tian 2020), tuned on CIFAR-100. The
paper itself recommends a small weight on the labels. The teacher's logits come from its head on the target classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def tempered_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over rows of KL(teacher || student) at temperature T; logits (N, C), N >= 1."""
    log_student = functional.log_softmax(student_logits / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class Kd(Distiller):
    """Tempered KL to the teacher head; with two teachers, one term for each.

    Clips without sound keep the weighted cross-entropy alone; the KL is the mean over the others."""

    def __init__(
        self, sizes: Sizes, *, temperature: float = 4.0, label_weight: float = 0.1, weight: float = 0.9
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if min(label_weight, weight) < 0:
            raise ValueError("label_weight and weight must not be negative")
        self.temperature, self.label_weight, self.weight = temperature, label_weight, weight

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """`ce` and `kd`, or `kd_A` and `kd_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            return [self.weight * tempered_kl(student.logits[rows], teachers[letter].logits[rows], self.temperature)]

        ce = self.label_weight * functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["kd"], student, teachers, distil)
