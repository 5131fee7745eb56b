"""Inputs given by formulas, for which values of several losses were computed with NumPy and written down."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Logits(NamedTuple):
    """Logits and proxies of student and teacher, (4, 5) each in float64, and labels (4,)."""

    student: Tensor
    teacher: Tensor
    student_proxy: Tensor
    teacher_proxy: Tensor
    labels: Tensor


def logits() -> Logits:
    n = torch.arange(20, dtype=torch.double).view(4, 5)
    student, teacher = 2 * n.sin(), 3 * (0.7 * n).cos()
    proxies = 1.5 * (0.5 * n + 1).sin(), 2 * (0.3 * n - 1).cos()
    return Logits(student, teacher, *proxies, torch.tensor([0, 1, 2, 0]))


def features() -> tuple[Tensor, Tensor]:
    """Features of student and teacher, (4, 8) each in float64, not negative."""
    n = torch.arange(32, dtype=torch.double).view(4, 8)
    return (1 + n).sin().abs(), (0.7 * n).cos().abs()
