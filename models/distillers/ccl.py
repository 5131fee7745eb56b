"""CCL: Chen et al., "Distilling Audio-Visual Knowledge by Compositional Contrastive Learning", CVPR 2021.

For each teacher x, a composition of its feature t with the student's feature s closes the semantic gap between them:

    f_x = t + W [n(t); n(s)] + b,   z_x = W_c f_x + b_c

The losses relate s, t and f_x. N is the paper's multi-class NCE, J its "JSD":

    P_ij   = softmax_j( cos(u_i, w_j) / tau_x )
    N(u,w) = mean_i [ mean_{j in Pos_i} -log P_ij + mean_{j in Neg_i} -log(1 - P_ij) ],   S(u,w) = N(u,w) + N(w,u)
    J(a,b) = mean_i (KL(p_i || q_i) + KL(q_i || p_i)) / 2,   p = softmax(a), q = softmax(b)
    L      = l_cls (CE(z^s) + sum_x CE(z_x)) + sum_x [ l N(s, t) + (1 - l) N(s, f_x) + J(z^s, z_x) ]

Defaults are those of the authors' program: tau 0.5 for the audio and 0.1 for the image teacher, equal weights of both
contrasts (l, option `teacher_share`, is 0.5), l_cls (`label_weight`) 1, the composition at the student's learning rate.

`gradients: paper` is the sum L above. `gradients: released` follows the authors' program; with X teachers:

    student      learns from CE(z^s) + 1/X sum_x [ S(s, t) + S(s, f_x) + J(z^s, z_x) ]
    composition  learns from the same and from CE(z_x) + S(s, f_x) + S(f_x, t) + J(z^s, z_x)

Choices of this implementation:

- The released form has no l; here S(s, t) and S(s, f_x) have weights 2 l and 2 (1 - l), which are 1 by default.
- The second half of N is 0 for clips without a clip of another class in the batch.
- Without `composition` f_x is t: N(s, t) has weight 1 and z_x is a linear layer on t. The two S of the composition are
  then left out, because they train nothing.
- A `projector`, needed if Dt differs from Ds, maps t to Ds first.
- The composition's learning rate follows the student's schedule; in the authors' program it stays constant.

Ablations (Chen, Table 3): `composition: false` is "w/o composition"; `contrast: infonce` is "w/ L_ct", where a clip's
only positive is itself; `contrast: none` is "w/o L_nce"; `jsd: false` is "w/o L_JSD".
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def similarities(u: Tensor, w: Tensor, temperature: float) -> Tensor:
    """Compute cos(u_i, w_j) / tau for all pairs of (N, D) and (N, D) features: (N, N)."""
    return functional.normalize(u, dim=1) @ functional.normalize(w, dim=1).T / temperature


def log_complement(x: Tensor) -> Tensor:
    """Compute log(1 - P) for P = softmax(x) by row, (N, M); finite however close P is to 1."""
    p = x.softmax(1)
    top = torch.arange(x.shape[1], device=x.device) == p.argmax(1, keepdim=True)
    # Only the largest P can exceed 1/2; its 1 - P is the sum of the others. -1e9 keeps a row of one entry finite.
    others = x.masked_fill(top, -1e9).logsumexp(1, keepdim=True) - x.logsumexp(1, keepdim=True)
    return torch.where(top, others, torch.log1p(-p.masked_fill(top, 0)))


def nce_of_logits(x: Tensor, same: Tensor) -> Tensor:
    """Compute N from the logits x (N, M) of P, M >= 1, and `same` (N, M) in x's dtype: 1 for Pos_i, 0 for Neg_i.

    The first half is 0 for clips without any Pos_i, the second for those without any Neg_i."""
    positive = (x.log_softmax(1) * same).sum(1) / same.sum(1).clamp(min=1)
    negative = (log_complement(x) * (1 - same)).sum(1) / (1 - same).sum(1).clamp(min=1)
    return -(positive + negative).mean()


def multiclass_nce(u: Tensor, w: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute N(u, w) of (N, D) features and (N,) labels: same class attracts, other classes repel."""
    x = similarities(u, w, temperature)
    return nce_of_logits(x, (labels[:, None] == labels).to(x.dtype))


def info_nce(u: Tensor, w: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute L_ct: the same clip attracts, all others repel; labels are not used."""
    return -similarities(u, w, temperature).log_softmax(1).diag().mean()


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """Compute J of logits (N, C), from log-softmax because the quotient of confident probabilities overflows."""
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2


class Composition(nn.Module):
    """Composition of features s and t, (N, D) each; without `composed`, a linear classifier on t."""

    def __init__(self, dim: int, classes: int, composed: bool) -> None:
        super().__init__()
        self.residual = nn.Linear(2 * dim, dim) if composed else None
        self.classify = nn.Linear(dim, classes)

    def forward(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute f_x (N, D) and z_x (N, C)."""
        f = t
        if self.residual is not None:
            f = t + self.residual(torch.cat([functional.normalize(t, dim=1), functional.normalize(s, dim=1)], dim=1))
        return f, self.classify(f)


class Ccl(Distiller):
    """Compositional contrastive learning. Clips without audio contribute to CE(z^s) only."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        composition: bool = True,
        contrast: Literal["multiclass", "infonce", "none"] = "multiclass",
        jsd: bool = True,
        gradients: Literal["paper", "released"] = "paper",
        temperature_A: float = 0.5,
        temperature_I: float = 0.1,
        teacher_share: float = 0.5,
        label_weight: float = 1.0,
        projector: Literal["none", "linear", "linear_bn"] = "none",
    ) -> None:
        super().__init__()
        dim = sizes.student
        if min(temperature_A, temperature_I) <= 0:
            raise ValueError("temperature_A and temperature_I must be above 0")
        if not 0 <= teacher_share <= 1:
            raise ValueError(f"teacher_share must be in 0..1, not {teacher_share}")
        if label_weight < 0:
            raise ValueError(f"label_weight must not be negative, but is {label_weight}")
        for letter, width in sizes.teachers.items():
            if projector == "none" and width != dim:
                raise ValueError(
                    f"projector none needs equal widths, but teacher {letter} has {width} channels and the student "
                    f"{dim}; expected linear or linear_bn"
                )
        self.temperature = {"A": temperature_A, "I": temperature_I}
        self.teacher_share, self.label_weight, self.released = teacher_share, label_weight, gradients == "released"
        self.contrast_weight = 2 / len(sizes.teachers) if self.released else 1.0
        self.jsd_weight = 1 / len(sizes.teachers) if self.released else 1.0
        self.least = 2 if projector == "linear_bn" else 1  # clips; batch norm needs two
        self.nce = {"multiclass": multiclass_nce, "infonce": info_nce, "none": None}[contrast]
        self.names = ["composed_ce"] + ["teacher_contrast", "composed_contrast"] * (contrast != "none") + ["jsd"] * jsd
        if self.released:
            self.names += ["own_contrast"] * (contrast != "none" and composition) + ["own_jsd"] * jsd
        self.project, self.compose = nn.ModuleDict(), nn.ModuleDict()
        for letter, width in sizes.teachers.items():
            norm = [nn.BatchNorm1d(dim)] if projector == "linear_bn" else []
            self.project[letter] = nn.Sequential(*([nn.Linear(width, dim), *norm] if projector != "none" else []))
            self.compose[letter] = Composition(dim, sizes.classes, composition)

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `composed_ce`, `teacher_contrast`, `composed_contrast` and `jsd`.

        Released mode adds `own_contrast` and `own_jsd`, which only the composition learns from. With two teachers all
        names but `ce` end in `_A` or `_I`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            t = self.project[letter](teachers[letter].feature[rows])
            return self.compare(letter, student.feature[rows], student.logits[rows], t, labels[rows])

        ce = self.label_weight * functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(self.names, student, teachers, distil, self.least)

    def compare(self, letter: str, s: Tensor, z: Tensor, t: Tensor, labels: Tensor) -> list[Tensor]:
        """Compute the terms of one teacher from features s (N, D), logits z (N, C) and projected teacher t (N, D)."""
        f, z_f = self.compose[letter](s, t)
        loss = {}
        if self.nce is not None:
            weight, share = self.contrast_weight, self.teacher_share
            loss["teacher_contrast"] = weight * share * self.contrast(s, t, labels, letter)
            loss["composed_contrast"] = weight * (1 - share) * self.contrast(s, f, labels, letter)
        loss["jsd"] = self.jsd_weight * symmetric_kl(z, z_f)
        if self.released:  # terms for the composition alone: detached, so that the student gets no gradient
            s, z = s.detach(), z.detach()
            f, z_f = self.compose[letter](s, t)
            if self.nce is not None:
                loss["own_contrast"] = self.contrast(s, f, labels, letter) + self.contrast(f, t, labels, letter)
            loss["own_jsd"] = symmetric_kl(z, z_f)
        loss["composed_ce"] = self.label_weight * functional.cross_entropy(z_f, labels)
        return [loss[name] for name in self.names]

    def contrast(self, u: Tensor, w: Tensor, labels: Tensor, letter: str) -> Tensor:
        """Compute N(u, w), or S(u, w) in released mode, at the temperature of teacher `letter`."""
        assert self.nce is not None
        loss = self.nce(u, w, labels, self.temperature[letter])
        return loss + self.nce(w, u, labels, self.temperature[letter]) if self.released else loss
