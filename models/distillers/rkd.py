"""RKD: Park et al., "Relational Knowledge Distillation", CVPR 2019, with distances (RKD-D) and angles (RKD-A).

    d_ij  = ||x_i - x_j||,  mu = mean of d over i != j,   L_D = mean_ij  SmoothL1(d^s_ij / mu_s, d^t_ij / mu_t)
    e_ij  = n(x_j - x_i),  a_ijk = e_ij . e_ik,           L_A = mean_ijk SmoothL1(a^s_ijk, a^t_ijk)
    L     = CE(z^s, y) + 25 L_D + 50 L_A

Defaults are those of the CRD benchmark (Tian 2020). The means include equal indices, which add 0. Angles need three
different clips: with fewer, both terms are 0.

Distances are computed from differences, because a^2 + b^2 - 2ab loses half of the digits. Squared distances are
clamped at 1e-12, and the direction between clips nearer than that is 0, so that gradients stay finite. Memory grows
with B^3 + B^2 D.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch

NEAREST = 1e-12  # of squared distances


def relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute d / mu (N, N) and a (N, N, N) of (N, D) features, N >= 2."""
    difference = features - features[:, None]  # [i, j] is x_j - x_i
    squared = difference.square().sum(2)
    distance = squared.clamp_min(NEAREST).sqrt()
    direction = difference / distance.masked_fill(squared < NEAREST, torch.inf)[..., None]
    distance = distance.masked_fill(torch.eye(len(features), dtype=torch.bool, device=features.device), 0)
    mean = distance.sum() / (distance.numel() - len(features))
    return distance / mean, direction @ direction.mT


class Rkd(Distiller):
    """Relational distillation between features of any widths; it has no parameters.

    Clips without audio contribute to the cross-entropy only and are left out of distances and angles."""

    def __init__(self, sizes: Sizes, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        if min(distance_weight, angle_weight) < 0:
            raise ValueError("distance_weight and angle_weight must not be negative")
        self.weights = distance_weight, angle_weight

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `distance` and `angle`; with two teachers `distance_A`, `angle_A`, `distance_I`, `angle_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            ours, theirs = relations(student.feature[rows]), relations(teachers[letter].feature[rows])
            triples = zip(self.weights, ours, theirs, strict=True)
            return [weight * functional.smooth_l1_loss(s, t) for weight, s, t in triples]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["distance", "angle"], student, teachers, distil, least=3)
