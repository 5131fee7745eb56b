"""Operations on logits that several methods share; no method itself.

Logit standardisation: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024. The logits of a clip
are centred and divided by their standard deviation over the C classes, for student and teacher alike:

    Z(z) = (z - mean(z)) / (1e-7 + std(z)),   std with C - 1 in the denominator

The constant and the unbiased std are those of the authors' program; NumPy's biased std would give other values. A
student then has to match its teacher only up to a factor above 0 and a constant. Two consequences:

- How sure the teacher is of a clip is lost. A flat z, as sound gives that does not belong to the action, is blown up to
  the scale of a sure one. Whether that discards knowledge shows in `confidence`, which is measured in each epoch.
- With two classes Z has no gradient: only the sign of z_1 - z_2 is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import term_name, valid_rows
from models.outputs import TeacherBatch


def standardise(logits: Tensor) -> Tensor:
    """Compute Z (N, C) of logits (N, C), C >= 2. Rows of equal logits become 0."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (1e-7 + centred.std(1, keepdim=True))


def kl_by_row(teacher: Tensor, student: Tensor) -> Tensor:
    """Compute KL(softmax(teacher_i) || softmax(student_i)), (N,), of logits (N, C)."""
    log_teacher, log_student = teacher.log_softmax(1), student.log_softmax(1)
    return functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Remove the entry of the label (N,) from each row of logits (N, C): (N, C - 1), the other classes in order."""
    left = torch.arange(logits.shape[1] - 1, device=logits.device) < labels[:, None]
    return torch.where(left, logits[:, :-1], logits[:, 1:])


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation over the last dimension, in -1..1; 0 where either side is constant.

    1e-8 is added to the denominator, as in DIST."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-8)


def confidence(teachers: Mapping[str, TeacherBatch], labels: Tensor) -> dict[str, Tensor]:
    """Correlate std(z^t_i) with whether the teacher is right, over the clips of the batch that it knows.

    Returns `{teacher_confidence: scalar in -1..1}`, with `_A` and `_I` for two teachers; 0 without such clips. Well
    above 0: the teacher is more often right where its logits differ more, which standardisation hides."""
    found = {}
    for letter, teacher in teachers.items():
        rows = valid_rows(teacher)
        logits = teacher.logits[rows]
        value = logits.new_zeros(())
        if len(rows):
            right = (logits.argmax(1) == labels[rows]).to(logits.dtype)
            value = correlation(logits.std(1), right)
        found[term_name("teacher_confidence", letter, teachers)] = value.detach()
    return found
