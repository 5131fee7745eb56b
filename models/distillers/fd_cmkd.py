"""FD-CMKD: Liu et al., "Distilling Cross-Modal Knowledge via Feature Disentanglement", AAAI 2026.

The D channels of a pooled feature are read as a signal. Its low frequencies are taken for what the modalities share and
are matched strictly, its high frequencies for what is a modality's own and are matched loosely. With H = floor(D / 4),
in the spectrum rfft(x) of a feature x:

    low(x)  = irfft of bins 1 .. H,   high(x) = irfft of the bins above H;   bin 0, the mean, is in neither
    L_low   = 1/(N D) sum_i || n(low(s_i))  - n(low(t_i))  ||^2
    L_high  = 1/(N D) sum_i || psi(n(high(s_i))) - psi(n(high(t_i))) ||^2,   psi(v) = sign(v) log(1 + |v|)
    L_align = sum_b CE(Phi_b(b(s)), y) + CE(Phi_b(b(t)), y),   b in {low, high}
    L       = CE(z^s, y) + sum_b CE(Psi_b(b(s)), y) + L_align + low_weight L_low + high_weight L_high

n(v) = v / ||v||. Phi_b, shared by student and teacher, and Psi_b, the student's own, are each a linear layer after a
ReLU. Sums over i are over the N clips that the teacher knows. The student's prediction is z^s; the program reports the
best of z^s and both Psi_b on the test split.

Sources: the paper itself was not available. The equations are those of a program for CREMA-D that is published as the
authors', and agree with what others write about the paper, except that only the program has Psi_b. Both weights are 1
in the program.

What is different here: the program takes features before their last ReLU, and both networks are ResNet-18. Here s and
t are after it, and t is stored once by a frozen teacher. Where their widths differ, `projector: linear` maps t to the
student's width first and is trained with everything else. D may be odd, at least 4.

What to know before believing a gain:

- L_low = 2 (1 - cos) / D: at D = 512 about 0.004 for unrelated features, beside a cross-entropy near 2. psi is nearly
  the identity on entries of that size, so strict and loose hardly differ.
- The order of channels in a pooled feature is arbitrary, so low frequencies are a fixed half of an arbitrary basis.
  `permute: true` shuffles the teacher's channels, with one permutation for each training: the paper's reading needs
  this control to lose.
- Most of the loss is cross-entropy on additional heads. The control without a teacher has `low_weight: 0`,
  `high_weight: 0` and `align: student`, which leaves the teacher out of L_align. `heads: false` leaves out Psi_b.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def bands(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Split features (N, D), D >= 4, into low and high frequencies, (N, D) each. Their sum is x - mean(x)."""
    spectrum, dim = torch.fft.rfft(feature, dim=1), feature.shape[1]
    number = torch.arange(spectrum.shape[1], device=feature.device)
    low, high = (number >= 1) & (number <= dim // 4), number > dim // 4
    return torch.fft.irfft(spectrum * low, n=dim, dim=1), torch.fft.irfft(spectrum * high, n=dim, dim=1)


def low_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute L_low of the low frequencies, (N, D) each."""
    return functional.mse_loss(functional.normalize(student, dim=1), functional.normalize(teacher, dim=1))


def high_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute L_high of the high frequencies, (N, D) each."""
    s, t = (functional.normalize(x, dim=1) for x in (student, teacher))
    return functional.mse_loss(s.sign() * s.abs().log1p(), t.sign() * t.abs().log1p())


def classified(heads: nn.ModuleList, features: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Compute the sum over both bands, (N, D) each, of the cross-entropy of the band's head after a ReLU."""
    losses = [functional.cross_entropy(head(x.relu()), labels) for head, x in zip(heads, features, strict=True)]
    return torch.stack(losses).sum()


class FdCmkd(Distiller):
    """Distillation by frequency bands. Clips that the teacher does not know contribute to CE(z^s, y) only."""

    accepts = ("A", "I")
    order: Tensor  # of the teacher's channels, (D,), with `permute`

    def __init__(
        self,
        sizes: Sizes,
        *,
        low_weight: float = 1.0,
        high_weight: float = 1.0,
        align: Literal["shared", "student"] = "shared",
        heads: bool = True,
        permute: bool = False,
        projector: Literal["none", "linear"] = "none",
    ) -> None:
        super().__init__()
        dim, (teacher_dim,) = sizes.student, sizes.teachers.values()
        if min(low_weight, high_weight) < 0:
            raise ValueError("low_weight and high_weight must not be negative")
        if dim < 4:
            raise ValueError(f"fd_cmkd needs four channels or more, but the student has {dim}")
        if projector == "none" and teacher_dim != dim:
            raise ValueError(
                f"projector none needs equal widths, but the teacher has {teacher_dim} channels and the student {dim}; "
                "expected linear"
            )
        if permute and projector != "none":
            raise ValueError("permute has no effect with a projector, which learns any order; expected projector none")
        self.low_weight, self.high_weight = low_weight, high_weight
        self.shared, self.permute = align == "shared", permute
        self.project = nn.Linear(teacher_dim, dim) if projector == "linear" else nn.Identity()
        self.phi = nn.ModuleList(nn.Linear(dim, sizes.classes) for _ in range(2))
        self.psi = nn.ModuleList(nn.Linear(dim, sizes.classes) for _ in range(2)) if heads else None
        if permute:  # drawn last, so that the layers start from the same weights without it
            self.register_buffer("order", torch.randperm(dim))

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `low`, `high`, `align` and, with `heads`, `heads` (the sum over Psi_b)."""

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            y, t = labels[rows], self.project(teachers[letter].feature[rows])
            t = bands(t[:, self.order] if self.permute else t)
            s = bands(student.feature[rows])
            align = classified(self.phi, s, y)
            if self.shared:
                align = align + classified(self.phi, t, y)
            losses = [self.low_weight * low_loss(s[0], t[0]), self.high_weight * high_loss(s[1], t[1]), align]
            return losses if self.psi is None else [*losses, classified(self.psi, s, y)]

        names = ["low", "high", "align"] + ["heads"] * (self.psi is not None)
        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(names, student, teachers, distil)
