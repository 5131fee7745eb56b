"""C2KD (frozen encoder): after Huo et al., "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge Distillation",
CVPR 2024. With a frozen teacher this is a part of that method, and its result is no evidence on C2KD as published.

Student and teacher (m in {S, T}) have a proxy each, a small classifier on a pooled feature x_m:

    p_m = V_m phi(BN(U_m x_m)) + c_m,   U_m of x_m's width, without a bias;   phi LeakyReLU with slope `slope`

Knowledge passes from proxy to proxy (on-the-fly selection distillation, OFSD), and only for the classes that are not
the label, ^p, and only for clips whose proxies rank the C classes alike, by Kendall's tau-b:

    eta_i = 1 if tau_b(p^T_i, p^S_i) > threshold else 0;   0 where tau-b is undefined
    ofsd  = mean_i eta_i [ KL(sg ^p^T_i || ^p^S_i) + KL(sg ^p^S_i || ^p^T_i) ]     over all clips, not the chosen ones
    L     = CE(z^s, y) + student_weight [ KL(sg z^s || p_S) + KL(sg p_S || z^s) ]
            + teacher_weight KL(z^t || p_T) + weight * ofsd

KL is of softmaxes at temperature 1, sg stops the gradient. No term joins z^s and z^t: the teacher reaches the student
through the proxies and the layers of the student below x_S. Means are over the clips that the teacher knows.

What a frozen encoder changes: in the paper the teacher goes on training with everything else, so that its knowledge is
"customised" to the student. Here its encoder stays as it is, in both forms of the option `teacher`:

- `fixed`: z^t are the logits of the teacher's head, computed before training. The other two terms of the paper,
  CE(z^t, y) and KL(sg p_T || z^t), are constant and left out.
- `head`: the head goes on training: z^t = W t + b on the teacher's feature t, and

      L = ... + CE(z^t, y) + teacher_weight [ KL(sg z^t || p_T) + KL(sg p_T || z^t) ] + ...

  W and b start from the least squares fit to the stored logits of the training clips: from the stored head itself if
  those are its own (`cross_fit: 0` of the features' entry), from the mean of the folds' heads, about, if they are out
  of fold. Whatever it starts from, the head then learns the labels of the clips that it teaches.

x_T is the teacher's feature; the program taps the third stage of the teacher, too.

From the authors' program: the tap x_S after the third residual stage (`tap: stage`), phi with slope 0.1 (CREMA-D, AVE;
0 on VGGSound), tau-b of the proxies, threshold 0, all weights 1, temperature 1. The paper, as it is cited elsewhere,
taps the last feature (`tap: feature`) and ranks the predictions z^t and z^s in place of the proxies (`agreement:
predictions`). Its own weights and threshold were not available.

`nontarget`: the program does not remove the label's logit but multiplies it by 0, so that its softmax keeps C entries,
one of them made up (`zeroed`). `removed`, the default, is what the paper describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, valid_rows, zero_loss
from models.distillers.logits import kl_by_row, without_label
from models.outputs import StudentOutput, TeacherBatch


def rank_agreement(a: Tensor, b: Tensor) -> Tensor:
    """Compute Kendall's tau-b of each row of logits, (N, C) to (N,), in -1..1; 0 where a row is constant.

    The result has no gradient."""
    first, second = torch.triu_indices(a.shape[1], a.shape[1], 1, device=a.device)
    a, b = ((x[:, first] - x[:, second]).detach().sign() for x in (a, b))
    return ((a * b).sum(1) / (a.abs().sum(1) * b.abs().sum(1)).sqrt()).nan_to_num(0)


def selected_kl(teacher: Tensor, student: Tensor, labels: Tensor, gate: Tensor, nontarget: str) -> Tensor:
    """Compute mean_i eta_i [KL(sg ^p^T || ^p^S) + KL(sg ^p^S || ^p^T)] of proxies (N, C) and a gate (N,) of 0 and 1.

    `nontarget` is `removed` (^p has C - 1 entries) or `zeroed` (C entries, the label's logit 0)."""
    if nontarget == "removed":
        t, s = without_label(teacher, labels), without_label(student, labels)
    else:
        label = labels[:, None] == torch.arange(teacher.shape[1], device=labels.device)
        t, s = teacher.masked_fill(label, 0), student.masked_fill(label, 0)
    return (gate * (kl_by_row(t.detach(), s) + kl_by_row(s.detach(), t))).mean()


class Proxy(nn.Module):
    """The classifier p = V phi(BN(U x)) + c on features (N, D); N >= 2 in training mode."""

    def __init__(self, dim: int, classes: int, slope: float) -> None:
        super().__init__()
        self.u, self.norm = nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim)
        self.v, self.slope = nn.Linear(dim, classes), slope

    def forward(self, feature: Tensor) -> Tensor:
        """Compute logits (N, C)."""
        return self.v(functional.leaky_relu(self.norm(self.u(feature)), self.slope))


def fitted_head(feature: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight (C, D) and the bias (C,) for which W t + b is nearest to the logits (N, C) of features (N, D).

    Of several such, the one of the smallest norm: directions that hardly vary among the features stay 0."""
    feature, logits = feature.detach().double().cpu(), logits.detach().double().cpu()
    mean, shift = feature.mean(0), logits.mean(0)
    weight = torch.linalg.lstsq(feature - mean, logits - shift, rcond=1e-6, driver="gelsd").solution.T
    return weight, shift - weight @ mean


class C2kd(Distiller):
    """C2KD with a frozen encoder. Clips that the teacher does not know contribute to the cross-entropy only."""

    accepts = ("A", "I")
    uses_logits = True

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float = 1.0,
        student_weight: float = 1.0,
        teacher_weight: float = 1.0,
        threshold: float = 0.0,
        slope: float = 0.1,
        tap: Literal["stage", "feature"] = "stage",
        agreement: Literal["proxies", "predictions"] = "proxies",
        nontarget: Literal["removed", "zeroed"] = "removed",
        teacher: Literal["fixed", "head"] = "fixed",
    ) -> None:
        super().__init__()
        if min(weight, student_weight, teacher_weight) < 0:
            raise ValueError("weight, student_weight and teacher_weight must not be negative")
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold must be in -1..1, but is {threshold}")
        if not 0 <= slope <= 1:
            raise ValueError(f"slope must be in 0..1, but is {slope}")
        if sizes.classes < 3:
            raise ValueError(f"c2kd distils the classes that are not the label and needs three, found {sizes.classes}")
        self.weight, self.student_weight, self.teacher_weight = weight, student_weight, teacher_weight
        self.threshold, self.tap, self.agreement, self.nontarget = threshold, tap, agreement, nontarget
        (teacher_dim,) = sizes.teachers.values()
        student_dim = sizes.stages[2] if tap == "stage" else sizes.student
        self.student_proxy = Proxy(student_dim, sizes.classes, slope)
        self.teacher_proxy = Proxy(teacher_dim, sizes.classes, slope)
        self.head = nn.Linear(teacher_dim, sizes.classes) if teacher == "head" else None

    def check_teachers(self, teachers: Mapping[str, TeacherBatch]) -> None:
        """Start the head from the teacher's logits; a teacher that knows no clip leaves it as it is."""
        (teacher,) = teachers.values()
        rows = valid_rows(teacher)
        if self.head is not None and len(rows):
            weight, bias = fitted_head(teacher.feature[rows], teacher.logits[rows])
            with torch.no_grad():
                self.head.weight.copy_(weight)
                self.head.bias.copy_(bias)

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `student_proxy`, `teacher_proxy`, `ofsd` and, with `teacher: head`, `teacher_ce`.

        Measures `chosen` (mean eta), `agreement` (mean tau-b) and the accuracy of both proxies, and of the teacher's
        head if it trains, on the training clips; 0 in a batch with fewer than two clips that the teacher knows."""
        (teacher,) = teachers.values()
        rows, ce = valid_rows(teacher), functional.cross_entropy(student.logits, labels)
        trained = ["teacher_ce"] * (self.head is not None)
        if len(rows) < 2:  # batch norm needs two clips
            names = ["student_proxy_accuracy", "teacher_proxy_accuracy"] + ["head_accuracy"] * len(trained)
            self.measured = dict.fromkeys(["chosen", "agreement", *names], ce.new_zeros(()))
            return {"ce": ce} | dict.fromkeys(["student_proxy", "teacher_proxy", "ofsd", *trained], zero_loss(student))

        labels, z_s, x_t = labels[rows], student.logits[rows], teacher.feature[rows]
        z_t = teacher.logits[rows] if self.head is None else self.head(x_t)
        x_s = (student.stages[2] if self.tap == "stage" else student.feature)[rows]
        p_s, p_t = self.student_proxy(x_s), self.teacher_proxy(x_t)
        tau = rank_agreement(p_t, p_s) if self.agreement == "proxies" else rank_agreement(z_t, z_s)
        gate = (tau > self.threshold).to(tau.dtype)
        self.measured = {"chosen": gate.mean(), "agreement": tau.mean()}
        classifiers = {"student_proxy": p_s, "teacher_proxy": p_t} | ({} if self.head is None else {"head": z_t})
        for name, logits in classifiers.items():
            self.measured[f"{name}_accuracy"] = (logits.detach().argmax(1) == labels).float().mean()
        of_student = kl_by_row(z_s.detach(), p_s).mean() + kl_by_row(p_s.detach(), z_s).mean()
        of_teacher = kl_by_row(z_t.detach(), p_t).mean()
        terms = {
            "ce": ce,
            "student_proxy": self.student_weight * of_student,
            "teacher_proxy": self.teacher_weight * of_teacher,
            "ofsd": self.weight * selected_kl(p_t, p_s, labels, gate, self.nontarget),
        }
        if self.head is not None:
            terms["teacher_proxy"] = self.teacher_weight * (of_teacher + kl_by_row(p_t.detach(), z_t).mean())
            terms["teacher_ce"] = functional.cross_entropy(z_t, labels)
        return terms
