"""DKD: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.

The KL of KD, split in two. With b_i the probability of the label y_i at temperature T, and q_i the probabilities of the
other C - 1 classes among themselves, of student (s) and teacher (t):

    TC_i = b^t_i log(b^t_i / b^s_i) + (1 - b^t_i) log((1 - b^t_i) / (1 - b^s_i))     is it the label?
    NC_i = KL(q^t_i || q^s_i)                                                        if not, what else?
    KL_i = TC_i + (1 - b^t_i) NC_i                                                   what KD distils
    L    = CE(z^s, y) + w T^2 mean_i (alpha TC_i + beta NC_i)

KD weighs NC by 1 - b^t: it hardly counts where the teacher is sure. DKD gives it a weight of its own. The means are
over the clips that the teacher knows; w rises as (epoch + 1) / warmup to 1, epochs counted from 0.

Defaults alpha 1, beta 8, T 4 and a warm-up of 20 epochs are those of the authors' program on CIFAR-100, in recipes of
240 epochs: set `warmup` to a twelfth of a recipe's epochs. beta is chosen for each pair of networks: 2, 6 or 8 on
CIFAR-100, 0.5 or 2 with T 1 and no warm-up on ImageNet. No value is known for a teacher of another modality. The
teacher's logits come from its head.

`standardise: true` replaces both logits by Z(z) of models/distillers/logits.py (Sun et al., CVPR 2024). Their program
then has `temperature: 2` and nine times both weights (`alpha: 9`, `beta: 72` with the defaults here); CE keeps its
weight.

Choice of this implementation: log b and log(1 - b) are log-sum-exps of the classes that they cover, which remain finite
where b underflows or rounds to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.distillers.logits import confidence, kl_by_row, standardise, without_label
from models.outputs import StudentOutput, TeacherBatch


def label_or_not(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute [log b, log(1 - b)], (N, 2), of logits (N, C), C >= 2."""
    log_p = logits.log_softmax(1)
    label, others = log_p.gather(1, labels[:, None]), without_label(log_p, labels)
    return torch.cat([label, others.logsumexp(1, keepdim=True)], dim=1)


def target_class(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Compute mean_i TC_i of logits (N, C) that are already divided by T."""
    return kl_by_row(label_or_not(teacher, labels), label_or_not(student, labels)).mean()


def other_classes(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Compute mean_i NC_i of logits (N, C) that are already divided by T; the label's own logits do not count."""
    return kl_by_row(without_label(teacher, labels), without_label(student, labels)).mean()


class Dkd(Distiller):
    """Decoupled KD from the teacher head. Clips that the teacher does not know contribute to the cross-entropy only."""

    uses_logits = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        warmup: int = 20,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if sizes.classes < 2:
            raise ValueError(f"dkd needs two classes or more, found {sizes.classes}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if min(alpha, beta, warmup) < 0:
            raise ValueError("alpha, beta and warmup must not be negative")
        self.alpha, self.beta, self.temperature, self.warmup = alpha, beta, temperature, warmup
        self.standardise = standardise
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Set w. It depends on the epoch alone, so a checkpoint need not contain it."""
        self.rise = min((epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `tckd` and `nckd`; with two teachers `tckd_A`, `tckd_I` and so on."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            s, t, y = student.logits[rows], teachers[letter].logits[rows], labels[rows]
            if self.standardise:
                s, t = standardise(s), standardise(t)
            s, t = s / self.temperature, t / self.temperature
            scale = self.rise * self.temperature**2
            return [scale * self.alpha * target_class(s, t, y), scale * self.beta * other_classes(s, t, y)]

        if self.standardise:
            self.measured = confidence(teachers, labels)
        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["tckd", "nckd"], student, teachers, distil)
