"""xID: Morgado, Misra, Vasconcelos, "Robust Audio-Visual Instance Discrimination", CVPR 2021.

Cross-modal instance discrimination of each clip against the others of its batch:

    v = n(W_s s),   a = n(W_t t),   P(j|i) = softmax_j( v_i.a_j / tau )
    L_i = -sum_j T(j|i) log P(j|i),   L = sum_i w_i L_i / sum_i w_i,   averaged over the directions v to a and a to v

Pairs whose audio may not belong to the video (faulty positives) get a lower weight w. Negatives that may be positives
(faulty negatives) become soft targets T:

    w_i    = w_min + (1 - w_min) Phi( (v_i.a_i - (mu + delta sigma)) / (sigma sqrt(kappa)) )
    T(j|i) = (1 - lambda) [i = j] + lambda S(j|i)
    S(j|i) ~ exp( v_i.a_i / tau_t + a_i.v_j / tau_s + v_j.a_j / tau_t )        (cycle consistency, j = i included)

Phi is the Gaussian distribution function. Neither w nor T carries a gradient; in the first `warmup` epochs w = 1 and
T(j|i) = [i = j]. Total loss: CE(z^s, y) + weight * L.

Defaults are the paper's: tau 0.07; w_min (`min_weight`) 0.25, kappa 0.5, delta 0; lambda (`softness`) 0.5, tau_s 0.02,
tau_t 0.07; 128 dimensions; one epoch of warm-up. `weight` 1 is ours, because the paper trains without labels.

Choices of this implementation: negatives come from the batch instead of a bank, so none is out of date and nothing has
to be stored. mu and sigma are taken over the training set, from the latest v_i.a_i of each clip seen so far.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def positive_weights(agreement: Tensor, known: Tensor, least: float, spread: float, shift: float) -> Tensor:
    """Compute w_i from v_i.a_i of the batch (B,) and of the training set (N,), which is infinite for unseen clips."""
    known = known.masked_fill(known.isinf(), torch.nan)
    mean = known.nanmean()
    deviation = (known - mean).square().nanmean().sqrt().clamp(min=1e-6)
    z = (agreement - mean - shift * deviation) / (deviation * spread**0.5)
    return least + (1 - least) * torch.special.ndtr(z)


def soft_targets(similarity: Tensor, softness: float, tau_s: float, tau_t: float) -> Tensor:
    """Compute T(j|i) (B, B) for one direction with similarities v_i.a_j (B, B); the constant v_i.a_i cancels."""
    cycle = similarity.T / tau_s + similarity.diag() / tau_t
    hard = torch.eye(len(similarity), dtype=similarity.dtype, device=similarity.device)
    return (1 - softness) * hard + softness * cycle.softmax(1)


def weighted_cross_entropy(similarity: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Compute L of one direction from similarities and targets (B, B) and weights (B,)."""
    losses = -(targets * functional.log_softmax(similarity / temperature, dim=1)).sum(1)
    return (weights * losses).sum() / weights.sum()


class Pair(nn.Module):
    """Embeddings of the student and one teacher, and the latest similarity v_i.a_i of each training clip."""

    agreement: Tensor

    def __init__(self, sizes: Sizes, teacher_dim: int, dim: int) -> None:
        super().__init__()
        self.embed_student, self.embed_teacher = nn.Linear(sizes.student, dim), nn.Linear(teacher_dim, dim)
        self.register_buffer("agreement", torch.full((sizes.clips,), torch.inf))  # infinite until the clip is seen

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Compute the similarities v_i.a_j (B, B) of features (B, Ds) and (B, Dt), and store each clip's v_i.a_i."""
        v = functional.normalize(self.embed_student(student), dim=1)
        a = functional.normalize(self.embed_teacher(teacher), dim=1)
        similarity = v @ a.T
        self.agreement = self.agreement.index_copy(0, index, similarity.detach().diag())
        return similarity


class Xid(Distiller):
    """Robust instance discrimination, with separate embeddings for each teacher.

    Clips without audio contribute to the cross-entropy only."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float = 1.0,
        temperature: float = 0.07,
        min_weight: float = 0.25,
        kappa: float = 0.5,
        delta: float = 0.0,
        softness: float = 0.5,
        tau_s: float = 0.02,
        tau_t: float = 0.07,
        warmup: int = 1,
        dim: int = 128,
    ) -> None:
        super().__init__()
        if min(temperature, tau_s, tau_t, kappa) <= 0:
            raise ValueError("temperature, tau_s, tau_t and kappa must be above 0")
        if min(weight, warmup) < 0:
            raise ValueError("weight and warmup must not be negative")
        if not 0 < min_weight <= 1:
            raise ValueError(f"min_weight must be above 0 and at most 1, not {min_weight}")
        if not 0 <= softness <= 1:
            raise ValueError(f"softness must be in 0..1, not {softness}")
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.weight, self.temperature, self.warmup = weight, temperature, warmup
        self.min_weight, self.kappa, self.delta = min_weight, kappa, delta
        self.softness, self.tau_s, self.tau_t = softness, tau_s, tau_t
        self.pairs = nn.ModuleDict({letter: Pair(sizes, width, dim) for letter, width in sizes.teachers.items()})
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Switch weights and soft targets on after `warmup` epochs."""
        self.warm = epoch >= self.warmup

    def contrast(self, pair: Pair, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        """Compute L of features (B, Ds) and (B, Dt) of the clips at these indices (B,) of the training set."""
        similarity = pair(student, teacher, index)
        fixed = similarity.detach()
        weights, softness = torch.ones_like(fixed[0]), 0.0
        if self.warm:
            weights = positive_weights(fixed.diag(), pair.agreement, self.min_weight, self.kappa, self.delta)
            softness = self.softness
        sides = []
        for x in (similarity, similarity.T):
            targets = soft_targets(x.detach(), softness, self.tau_s, self.tau_t)
            sides.append(weighted_cross_entropy(x, targets, weights, self.temperature))
        return torch.stack(sides).mean()

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` and `xid`; with two teachers `xid_A` and `xid_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            pair, s, t = cast(Pair, self.pairs[letter]), student.feature[rows], teachers[letter].feature[rows]
            return [self.weight * self.contrast(pair, s, t, index[rows])]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["xid"], student, teachers, distil)
