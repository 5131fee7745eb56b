"""Contrast against memory banks, shared by `crd` and `cmc`, which differ in the slots that negatives come from.

    L = CE(z^s, y) + weight * (contrast)

Each training clip has a slot in each of two banks, m^s and m^t. The contrast identifies a clip's own slot among K
others, by noise-contrastive estimation with uniform noise over the N clips:

    v^s = n(W_s s),   v^t = n(W_t t)
    o^s_k = exp(v^s.m^t_k / tau) / Z_s,   o^t_k = exp(v^t.m^s_k / tau) / Z_t
    L = -mean_i [ log o_ii / (o_ii + K/N) + sum_k log (K/N) / (o_ik + K/N) ],   both sides added
    m_y <- n(momentum m_y + (1 - momentum) v)

Z is N times the mean exponential of the first batch, over positives and negatives, and constant from then on. With
x = log(o N / K), the two fractions are sigmoid(x) and sigmoid(-x). In this form they need no epsilon (the authors'
program adds 1e-7) and do not overflow. K is the number of negatives sampled, which may be less than `negatives`.

A slot holds a random vector until its clip has been seen with audio. Such slots serve as negatives during the first
epoch, as in the authors' program, but not afterwards. Clips without audio take no part in the contrast.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch

SPARE = 256  # slots sampled beyond twice the negatives, for small numbers of them


def draw(candidates: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Sample at most `most` candidates per row, uniformly and without replacement, from bool (B, N).

    Returns the slots (M,) that any row may use, and which of them each row uses, bool (B, M). All rows share one random
    permutation of the slots, so a sample does not depend on the order of the clips. M is twice `most` and some, or N if
    that is less: a number that the host knows. Only a row of which more than half of all slots are no candidates can
    get fewer than `most` from those."""
    total, pool = candidates.shape[1], 2 * most + SPARE
    order = torch.rand(total, device=candidates.device).argsort()
    shuffled = candidates[:, order[:pool]]
    chosen = shuffled & (shuffled.cumsum(1) <= most)
    if pool < total:
        return order[:pool], chosen
    return torch.arange(total, device=candidates.device), chosen[:, order.argsort()]


def log_normaliser(logits: Tensor, used: Tensor, clips: int) -> Tensor:
    """Compute log(N mean exp(logits)) over the `used` pairs, without gradient; logits (B, M), used bool (B, M).

    `clips` is N."""
    total = logits.detach().masked_fill(~used, -torch.inf).flatten().logsumexp(0)
    return total - used.sum().log() + math.log(clips)


def noise_contrast(logits: Tensor, own: Tensor, drawn: Tensor, log_z: Tensor, clips: int) -> Tensor:
    """Compute one side of L from the logits v.m / tau (B, M) and the logarithm of Z; `clips` is N.

    `own` and `drawn`, bool (B, M), mark each clip's own slot and its negatives."""
    share = drawn.sum(1, keepdim=True).clamp(min=1) / clips
    odds = logits - log_z - share.log()
    losses = functional.softplus(torch.where(own, -odds, odds))
    return torch.where(own | drawn, losses, 0).sum(1).mean()


class Banks(nn.Module):
    """Embeddings and banks of the student and one teacher; side 0 is the student's, side 1 the teacher's."""

    vectors: Tensor
    log_z: Tensor
    labels: Tensor

    def __init__(
        self, sizes: Sizes, teacher_dim: int, temperature: float, negatives: int, momentum: float, dim: int
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if min(negatives, dim) < 1:
            raise ValueError("negatives and dim must be at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {momentum}")
        self.temperature, self.negatives, self.momentum = temperature, negatives, momentum
        self.embed_student, self.embed_teacher = nn.Linear(sizes.student, dim), nn.Linear(teacher_dim, dim)
        bound = math.sqrt(3 / dim)  # gives vectors of about unit length
        self.register_buffer("vectors", torch.empty(2, sizes.clips, dim).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), -torch.inf))  # -inf until the first batch sets it
        self.register_buffer("labels", torch.full((sizes.clips,), -1))  # -1 until the clip has been seen with audio
        self.first_epoch = True

    @property
    def usable(self) -> Tensor:
        """Slots that may be sampled as negatives, bool (N,)."""
        return torch.ones_like(self.labels, dtype=torch.bool) if self.first_epoch else self.labels >= 0

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, index: Tensor, candidates: Tensor) -> Tensor:
        """Compute L of features (B, Ds) and (B, Dt), B >= 1, then update the slots of these clips.

        `candidates`, bool (N,) or (B, N), are the slots to sample negatives from; a clip's own slot is excluded."""
        v = functional.normalize(torch.stack([self.embed_student(student), self.embed_teacher(teacher)]), dim=2)
        clips = len(self.labels)
        own = index[:, None] == torch.arange(clips, device=index.device)
        slots, drawn = draw(candidates & ~own, self.negatives)
        bank = self.vectors.flip(0)  # each side against the other's
        if len(slots) < clips:  # score the slots that are drawn from, and after them those of the clips themselves
            bank = torch.cat([bank[:, slots], bank[:, index]], dim=1)
            own = torch.cat([torch.zeros_like(drawn), index[:, None] == index], dim=1)
            drawn = torch.cat([drawn, torch.zeros_like(own[:, len(slots) :])], dim=1)
        logits = v @ bank.mT / self.temperature  # (2, B, M)
        found = torch.stack([log_normaliser(side, own | drawn, clips) for side in logits])
        self.log_z = torch.where(self.log_z.isinf(), found, self.log_z)
        sides = zip(logits, self.log_z, strict=True)
        loss = torch.stack([noise_contrast(side, own, drawn, z, clips) for side, z in sides])
        # Assign new tensors instead of writing in place, because backward still needs the old ones.
        mixed = self.momentum * self.vectors[:, index] + (1 - self.momentum) * v.detach()
        self.vectors = self.vectors.index_copy(1, index, functional.normalize(mixed, dim=2))
        self.labels = self.labels.index_copy(0, index, labels)
        return loss.sum()


class BankContrast(Distiller):
    """Contrast with separate banks for each teacher; a subclass names the term and chooses the candidate negatives.

    Clips without audio contribute to the cross-entropy only."""

    term: ClassVar[str]

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float = 0.8,
        temperature: float = 0.07,
        negatives: int = 16384,
        momentum: float = 0.5,
        dim: int = 128,
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must not be negative, but is {weight}")
        self.weight = weight
        self.banks = nn.ModuleDict(
            {
                letter: Banks(sizes, width, temperature, negatives, momentum, dim)
                for letter, width in sizes.teachers.items()
            }
        )

    @abstractmethod
    def candidates(self, banks: Banks, labels: Tensor) -> Tensor:
        """Return the slots that clips with `labels` (B,) may use as negatives: bool (N,) or (B, N)."""

    def start_epoch(self, epoch: int) -> None:
        """Restrict negatives to clips that have been seen with audio, from the second epoch on."""
        for banks in self.banks.values():
            cast(Banks, banks).first_epoch = epoch == 0

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` and the contrast, whose name ends in `_A` or `_I` if there are two teachers."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            banks, y = cast(Banks, self.banks[letter]), labels[rows]
            s, t = student.feature[rows], teachers[letter].feature[rows]
            return [self.weight * banks(s, t, y, index[rows], self.candidates(banks, y))]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher([self.term], student, teachers, distil)
