"""IFD: Passalis, Tzelepi, Tefas, "Heterogeneous Knowledge Distillation using Information Flow Modeling", CVPR 2020.

The affinities between the clips of a batch, layer by layer, are matched between student and teacher:

    c_ij = (cos(x_i, x_j) + 1) / 2,   k_ij = 1 / (1 + ||x_i - x_j||),   each divided by its row's sum
    J(p, q) = (p - q) (log p - log q)
    L = CE(z^s, y) + w * sum_l alpha_l * [ mean_ij J(c^t_ij, c^s_ij) + mean_ij J(k^t_ij, k^s_ij) ]
    alpha = 1 for the last layer, 100 * 0.7^epoch for the inner ones (a critical period that fades)

alpha is given in the paper. w = 1 is ours, the plain sum with CE. The last layer then has little weight: the mean of J
over pairs falls as 1 / B. The report's table of gradients has its share beside CE.

Differences from the paper: it trains an auxiliary teacher with the student's layers; here the frozen teacher is used
directly. The last layer pairs the student's feature with the teacher's. The inner layers pair stage l of the student's
L, for l = 1 to L - 1, with the block at the same relative depth, number ceil(l n / L) of the teacher's n: R(2+1)D's
stages 1, 2, 3 with blocks 2, 3, 5 of CNN14's six, or 1, 2, 3 of a ResNet's four. For a teacher without blocks only the
last layer is used, with a warning. Distances are sqrt(d^2 + 1e-6), computed from differences (a^2 + b^2 - 2ab loses
half of the digits), and 0 for i = j.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, term_name, valid_rows, zero_loss
from models.outputs import StudentOutput, TeacherBatch


def affinities(features: Tensor) -> Tensor:
    """Compute c and k, (2, N, N), of (N, D) features; entries are above 0 and rows sum to 1."""
    unit = functional.normalize(features, dim=1)
    cosine = ((unit @ unit.T + 1) / 2).clamp_min(1e-7)  # opposite features give 0, which has no logarithm
    distance = ((features - features[:, None]).square().sum(2) + 1e-6).sqrt()
    distance = distance.masked_fill(torch.eye(len(features), dtype=torch.bool, device=features.device), 0)
    both = torch.stack([cosine, 1 / (1 + distance)])
    return both / both.sum(2, keepdim=True)


def flow_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute mean J(c) + mean J(k) of one layer with features (N, Ds) and (N, Dt), N >= 1."""
    p, q = affinities(teacher), affinities(student)
    return ((p - q) * (p.log() - q.log())).mean((1, 2)).sum()


def pairs(stages: tuple[Tensor, ...], blocks: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Pair each inner stage of the student with the teacher's block at the same relative depth; needs a block."""
    count, depth = len(blocks), len(stages)
    return [(stages[l - 1], blocks[-(-l * count // depth) - 1]) for l in range(1, depth)]


class Ifd(Distiller):
    """Information flow of all layers; the inner layers count in the first epochs. It has no parameters.

    Clips without audio contribute to the cross-entropy only and are left out of the affinities."""

    uses_blocks = True

    def __init__(self, sizes: Sizes, *, weight: float = 1.0, inner_weight: float = 100.0, decay: float = 0.7) -> None:
        super().__init__()
        if min(weight, inner_weight) < 0:
            raise ValueError("weight and inner_weight must not be negative")
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, not {decay}")
        self.weight, self.inner_weight, self.decay = weight, inner_weight, decay
        self.without_blocks: set[str] = set()
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Set alpha of the inner layers. It depends on the epoch alone, so a checkpoint need not contain it."""
        self.alpha = self.inner_weight * self.decay**epoch

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `last_layer` and `inner_layers` (absent without blocks); two teachers add `_A` and `_I`."""
        terms = {"ce": functional.cross_entropy(student.logits, labels)}
        for letter, teacher in teachers.items():
            rows = valid_rows(teacher)
            layers = {"last_layer": (self.weight, [(student.feature, teacher.feature)])}
            if teacher.blocks:
                layers["inner_layers"] = (self.weight * self.alpha, pairs(student.stages, teacher.blocks))
            elif letter not in self.without_blocks:
                self.without_blocks.add(letter)
                warnings.warn(f"ifd: teacher {letter} has no blocks; only its last layer is distilled", stacklevel=2)
            for name, (weight, layer_pairs) in layers.items():
                loss = zero_loss(student)
                if len(rows):
                    loss = weight * torch.stack([flow_loss(s[rows], t[rows]) for s, t in layer_pairs]).sum()
                terms[term_name(name, letter, teachers)] = loss
        return terms
