"""KD-noise: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020 (Tf-KD).

Distillation without a stronger teacher. By default the teacher is virtual: it is right with probability `confidence`
u, and spreads the rest evenly; only its side is tempered:

    p_i(k) = u if k = y_i, else (1 - u) / (C - 1)
    L      = (1 - a) CE(z^s, y) + a m * mean_i KL( softmax(p_i / T) || softmax(z^s_i) )

With teacher S, an earlier student of the same seed and kind whose log-probabilities are z^t, both sides are tempered:

    L      = (1 - a) CE(z^s, y) + a m T^2 * mean_i KL( softmax(z^t_i / T) || softmax(z^s_i / T) )

Defaults: u 0.99, a 0.1, T 20, m 1 for the virtual teacher; a 0.95, T 6, m 0.5 for the earlier student. They are those
of the authors' program, tuned on CIFAR-100. That program takes the mean of the KL over the C classes, with multipliers
100 and 50, so its strength falls as 1 / C; here it is what it was at its own C = 100, whatever the number of classes.
The program also takes the softmax of the probabilities p_i, which at T = 20 is close to uniform. Each variant has
options of its own, because their defaults differ so much; options of the other one than the run uses are an error, so
that none is silently without effect.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, valid_rows, zero_loss
from models.outputs import StudentOutput, TeacherBatch


class Variant(NamedTuple):
    """Share a of the KL, temperature T and multiplier m of a variant."""

    share: float
    temperature: float
    multiplier: float


VIRTUAL, SELF, CONFIDENCE = Variant(0.1, 20.0, 1.0), Variant(0.95, 6.0, 0.5), 0.99


def virtual_teacher(logits: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """p, in the shape (N, C) of the logits: `confidence` for the label, the rest spread over the C - 1 others."""
    rest = (1 - confidence) / (logits.shape[1] - 1)
    return torch.full_like(logits, rest).scatter(1, labels[:, None], confidence)


def mean_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """mean_i KL(teacher || student) of logits (N, C), N >= 1."""
    log_student, log_teacher = student_logits.log_softmax(1), teacher_logits.log_softmax(1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class KdNoise(Distiller):
    """KL to a virtual teacher, or to an earlier student (teachers: S)."""

    accepts = ("", "S")
    uses_logits = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        confidence: float = CONFIDENCE,
        virtual_share: float = VIRTUAL.share,
        virtual_temperature: float = VIRTUAL.temperature,
        virtual_multiplier: float = VIRTUAL.multiplier,
        self_share: float = SELF.share,
        self_temperature: float = SELF.temperature,
        self_multiplier: float = SELF.multiplier,
    ) -> None:
        super().__init__()
        if sizes.classes < 2:
            raise ValueError(f"kd_noise needs two classes or more, found {sizes.classes}")
        virtual = Variant(virtual_share, virtual_temperature, virtual_multiplier)
        earlier = Variant(self_share, self_temperature, self_multiplier)
        if "S" in sizes.teachers and (virtual, confidence) != (VIRTUAL, CONFIDENCE):
            raise ValueError("options virtual_* and confidence are for runs without a teacher; with S, expected self_*")
        if "S" not in sizes.teachers and earlier != SELF:
            raise ValueError("options self_* are for runs with teacher S; without, expected virtual_* or confidence")
        kind, setting = ("self", earlier) if "S" in sizes.teachers else ("virtual", virtual)
        if not 0 <= setting.share <= 1 or not 0 <= confidence <= 1:
            raise ValueError(f"{kind}_share and confidence must be in 0..1, not {setting.share} and {confidence}")
        if setting.temperature <= 0 or setting.multiplier < 0:
            raise ValueError(f"{kind}_temperature must be above 0 and {kind}_multiplier not negative")
        self.share, self.temperature, self.multiplier = setting
        self.confidence = confidence

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """`ce` and `kd`."""
        z, t, kd = student.logits, self.temperature, zero_loss(student)
        if "S" not in teachers:
            kd = self.share * self.multiplier * mean_kl(z, virtual_teacher(z, labels, self.confidence) / t)
        elif len(rows := valid_rows(teachers["S"])):
            kl = mean_kl(z[rows] / t, teachers["S"].logits[rows] / t)
            kd = self.share * self.multiplier * t**2 * kl
        return {"ce": (1 - self.share) * functional.cross_entropy(z, labels), "kd": kd}
