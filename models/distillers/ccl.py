"""CCL: Chen et al., "Distilling Audio-Visual Knowledge by Compositional Contrastive Learning", CVPR 2021.

Each teacher x has a composition of its feature t with the student's s, which closes the gap between their meanings:

    f_x = t + W [n(t); n(s)] + b,   z_x = W_c f_x + b_c

Three losses tie s, t and f together; N is their multi-class NCE, J their "JSD":

    P_ij   = softmax_j( cos(u_i, w_j) / tau_x )
    N(u,w) = mean_i [ mean_{j in Pos_i} -log P_ij + mean_{j in Neg_i} -log(1 - P_ij) ],   S(u,w) = N(u,w) + N(w,u)
    J(a,b) = mean_i (KL(p_i || q_i) + KL(q_i || p_i)) / 2,   p = softmax(a), q = softmax(b)
    L      = l_cls (CE(z^s) + sum_x CE(z_x)) + sum_x [ l N(s, t) + (1 - l) N(s, f_x) + J(z^s, z_x) ]

Defaults: tau 0.5 for the audio and 0.1 for the image teacher, l (`teacher_share`) 0.5, l_cls (`label_weight`) 1, the
module at the student's learning rate, as in the paper and its program. `gradients: released` follows that program;
with X teachers:

    student      CE(z^s) + 1/X sum_x [ S(s, t) + S(s, f_x) + J(z^s, z_x) ]
    composition  the same, and CE(z_x) + S(s, f_x) + S(f_x, t) + J(z^s, z_x), which the student does not learn from

Where the paper leaves a choice: S(s, t) and S(s, f_x) of the released form, which has no l, weigh 2 l and 2 (1 - l), 1
each by default. Clips that have no other class beside them have no second half of N. Without `composition` f_x is t,
so that N(s, t) weighs 1 and z_x is a linear layer on t; the last line's two S, which have nothing to teach then, are
left out. A `projector` (where Dt is not Ds) takes t to Ds before all else. The module's learning rate falls with the
student's; in the program it stays where it starts.

Chen's Table 3: `composition: false` is "w/o composition", `contrast: infonce` is "w/ L_ct" (a clip's only positive is
itself, in place of N), `contrast: none` is "w/o L_nce", `jsd: false` is "w/o L_JSD".
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def similarities(u: Tensor, w: Tensor, temperature: float) -> Tensor:
    """cos(u_i, w_j) / tau for all pairs of (N, D) and (N, D): (N, N)."""
    return functional.normalize(u, dim=1) @ functional.normalize(w, dim=1).T / temperature


def log_complement(x: Tensor) -> Tensor:
    """log(1 - P) for P = softmax(x) by row, (N, M): finite however near to 1 the largest P is."""
    p = x.softmax(1)
    top = torch.arange(x.shape[1], device=x.device) == p.argmax(1, keepdim=True)
    # Only the largest can be above 1/2; there 1 - P is the share of the others. A row of one entry has no others.
    others = x.masked_fill(top, -1e9).logsumexp(1, keepdim=True) - x.logsumexp(1, keepdim=True)
    return torch.where(top, others, torch.log1p(-p.masked_fill(top, 0)))


def multiclass_nce(u: Tensor, w: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """N(u, w) of (N, D) features and (N,) labels: clips of a class attract, clips of two classes repel each other."""
    x = similarities(u, w, temperature)
    same = (labels[:, None] == labels).to(x.dtype)
    positive = (x.log_softmax(1) * same).sum(1) / same.sum(1)
    negative = (log_complement(x) * (1 - same)).sum(1) / (1 - same).sum(1).clamp(min=1)
    return -(positive + negative).mean()


def info_nce(u: Tensor, w: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """L_ct: the same clip attracts, all others repel; labels do not matter."""
    return -similarities(u, w, temperature).log_softmax(1).diag().mean()


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """J of logits (N, C), from log-softmax: the quotient of probabilities overflows where both are certain."""
    log_p, log_q = a.log_softmax(1), b.log_softmax(1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(1).mean() / 2


class Composition(nn.Module):
    """(N, D) features s and t to the composed feature (N, D) and its class logits (N, C)."""

    def __init__(self, dim: int, classes: int, composed: bool) -> None:
        super().__init__()
        self.residual = nn.Linear(2 * dim, dim) if composed else None
        self.classify = nn.Linear(dim, classes)

    def forward(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """f_x and z_x."""
        f = t
        if self.residual is not None:
            f = t + self.residual(torch.cat([functional.normalize(t, dim=1), functional.normalize(s, dim=1)], dim=1))
        return f, self.classify(f)


class Ccl(Distiller):
    """Compositional contrastive learning. Clips without sound keep CE(z^s) alone."""

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
            raise ValueError(f"label_weight must not be negative, {label_weight} is")
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
        self.least = 2 if projector == "linear_bn" else 1  # clips: batch norm needs two
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
        """`ce`; with _A and _I after the name where there are two teachers, `composed_ce`, `teacher_contrast`,
        `composed_contrast` and `jsd`; in released mode what the composition alone learns from, `own_contrast` and
        `own_jsd`."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            t = self.project[letter](teachers[letter].feature[rows])
            return self.compare(letter, student.feature[rows], student.logits[rows], t, labels[rows])

        ce = self.label_weight * functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(self.names, student, teachers, distil, self.least)

    def compare(self, letter: str, s: Tensor, z: Tensor, t: Tensor, labels: Tensor) -> list[Tensor]:
        """The terms of one teacher: student's features (N, D) and logits (N, C), projected teacher (N, D)."""
        f, z_f = self.compose[letter](s, t)
        loss = {}
        if self.nce is not None:
            weight, share = self.contrast_weight, self.teacher_share
            loss["teacher_contrast"] = weight * share * self.contrast(s, t, labels, letter)
            loss["composed_contrast"] = weight * (1 - share) * self.contrast(s, f, labels, letter)
        loss["jsd"] = self.jsd_weight * symmetric_kl(z, z_f)
        if self.released:  # What the composition alone learns from, on detached copies of what it must not change.
            s, z = s.detach(), z.detach()
            f, z_f = self.compose[letter](s, t)
            if self.nce is not None:
                loss["own_contrast"] = self.contrast(s, f, labels, letter) + self.contrast(f, t, labels, letter)
            loss["own_jsd"] = symmetric_kl(z, z_f)
        loss["composed_ce"] = self.label_weight * functional.cross_entropy(z_f, labels)
        return [loss[name] for name in self.names]

    def contrast(self, u: Tensor, w: Tensor, labels: Tensor, letter: str) -> Tensor:
        """N(u, w), or S(u, w) in released mode, at the temperature of a teacher."""
        assert self.nce is not None
        loss = self.nce(u, w, labels, self.temperature[letter])
        return loss + self.nce(w, u, labels, self.temperature[letter]) if self.released else loss
