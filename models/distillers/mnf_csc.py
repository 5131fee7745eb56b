"""MNF + CSC: Xia et al., "Robust Cross-Modal Knowledge Distillation for Unconstrained Videos", ICASSP 2023.

Modality noise filter (MNF): a mask purifies the teacher's feature, which then attends to the student's feature map M:

    g  = sigmoid(W2 ReLU(BN(W1 [t; s]))),   t~ = g * t
    h  = MultiHeadAttention(q = t~, k = v = M),   s~ = ReLU(BN(W3 h)),   z~ = W_c s~
    L_t    = mean_i max(cos(t_i, s_i) - cos(t~_i, s_i) + margin, 0)        (Eq. 3; trains the mask alone)
    L_ce^c = CE(z~, y)

Contrastive semantic calibration (CSC): the temperature of a pair grows with the similarity of s_i and t~_j:

    L_cl   = -mean_i mean_{j in Pos_i} log softmax_j( cos(s_i, s~_j) / tau_ij )                        (Eq. 5)
    tau_ij = stopgrad(cos(s_i, t~_j)) + delta                                                          (Eq. 6)
    L      = L_ce^v + lambda (L_t + L_ce^c + L_cl)                                                     (Eq. 8)

Defaults are those of the authors' program and are not given in the paper: margin 0.2, delta 0.07 on UCF51 (0.2 on
ActivityNet), lambda (option `weight`) 1, 2 heads, the module at 0.2 times the student's learning rate (`module_lr`),
`mask_l1` 1e-3. The stop-gradient in Eq. 6 is the program's, too.

`gradients: paper` is the sum L. `gradients: released` follows the authors' program: the student learns from
L_ce^v + L_cl only; the module learns from these and from L_t, L_ce^c and `mask_l1` / Dt * sum |W2|.

Choices of this implementation:

- The cosine in tau_ij is clamped at 0, so that tau_ij >= delta. This changes nothing while all features are
  non-negative, as they are after a ReLU, and keeps the loss defined if they are not.
- Strategy `audio_visual` (Xia, Fig. 3) distils ReLU(BN(Linear [t~; s~])) in place of s~. Strategy `audio` distils t
  itself, without mask and attention.
- A `projector`, needed if Dt differs from Ds, maps t to Ds first and ends in a ReLU, which keeps t non-negative.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, statistics_kept, valid_rows, zero_loss
from models.outputs import StudentOutput, TeacherBatch


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Compute cos(a_i, b_j) for all pairs: (N, D) and (M, D) to (N, M)."""
    return functional.normalize(a, dim=1) @ functional.normalize(b, dim=1).T


def triplet_loss(student: Tensor, teacher: Tensor, purified: Tensor, margin: float) -> Tensor:
    """Compute L_t (Eq. 3) of (N, D) features each: the purified teacher is to be nearer to the student than the raw."""
    raw, pure = (functional.cosine_similarity(x, student) for x in (teacher, purified))
    return functional.relu(raw - pure + margin).mean()


def temperature(cosine: Tensor, delta: float) -> Tensor:
    """Compute tau (Eq. 6) from cos(s, t~), elementwise, without gradient and at least `delta`."""
    return cosine.detach().clamp(min=0) + delta


def temperatures(student: Tensor, purified: Tensor, delta: float) -> Tensor:
    """Compute tau_ij (Eq. 6) of all pairs, (N, N)."""
    return temperature(cosines(student, purified), delta)


def calibrated_contrast(student: Tensor, target: Tensor, tau: Tensor, labels: Tensor) -> Tensor:
    """Compute L_cl (Eq. 5), the supervised contrast of (N, D) features with a temperature tau_ij per pair."""
    log_p = functional.log_softmax(cosines(student, target) / tau, dim=1)
    positive = (labels[:, None] == labels).to(log_p.dtype)
    return -((positive * log_p).sum(1) / positive.sum(1)).mean()


class Mask(nn.Module):
    """The mask g = sigmoid(W2 ReLU(BN(W1 [t; s])))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = max(1, dim // 2)
        self.w1, self.norm, self.w2 = nn.Linear(2 * dim, half), nn.BatchNorm1d(half), nn.Linear(half, dim)

    def forward(self, teacher: Tensor, feature: Tensor) -> Tensor:
        """Compute g (N, D), in 0..1, of the teacher's and the student's features, (N, D) each."""
        return torch.sigmoid(self.w2(functional.relu(self.norm(self.w1(torch.cat([teacher, feature], dim=1))))))


class Filtered(NamedTuple):
    """Outputs of the module for N clips: purified t~ (N, Ds), target of the contrast (N, Ds), logits z~ (N, C)."""

    purified: Tensor
    target: Tensor
    logits: Tensor


class MnfCsc(Distiller):
    """Modality noise filter with contrastive semantic calibration. Clips without audio contribute to L_ce^v only."""

    accepts = ("A", "I")

    def __init__(
        self,
        sizes: Sizes,
        *,
        margin: float = 0.2,
        delta: float = 0.07,
        weight: float = 1.0,
        triplet: bool = True,
        contrast: bool = True,
        mask: bool = True,
        strategy: Literal["visual", "audio_visual", "audio"] = "visual",
        gradients: Literal["paper", "released"] = "paper",
        module_lr: float = 0.2,
        mask_l1: float = 1e-3,
        heads: int = 2,
        projector: Literal["none", "linear", "linear_bn"] = "none",
    ) -> None:
        super().__init__()
        (teacher_dim,), dim = sizes.teachers.values(), sizes.student
        if delta <= 0 or module_lr <= 0:
            raise ValueError("delta and module_lr must be above 0")
        if min(margin, weight, mask_l1) < 0:
            raise ValueError("margin, weight and mask_l1 must not be negative")
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide the student's {dim} channels, but is {heads}")
        if projector == "none" and teacher_dim != dim:
            raise ValueError(
                f"projector none needs equal widths, but the teacher has {teacher_dim} channels and the student {dim}; "
                "expected linear or linear_bn"
            )
        self.margin, self.delta, self.weight, self.mask_l1, self.module_lr = margin, delta, weight, mask_l1, module_lr
        self.strategy, self.released = strategy, gradients == "released"
        self.contrast = contrast
        self.project = nn.Sequential()
        if projector != "none":
            norm = [nn.BatchNorm1d(dim)] if projector == "linear_bn" else []
            self.project = nn.Sequential(nn.Linear(teacher_dim, dim), *norm, nn.ReLU())
        self.mask = Mask(dim) if mask and strategy != "audio" else None
        self.triplet = triplet and self.mask is not None
        if strategy != "audio":
            self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
            self.select = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU())
        if strategy == "audio_visual":
            self.fuse = nn.Sequential(nn.Linear(2 * dim, dim), nn.BatchNorm1d(dim), nn.ReLU())
        self.classify = nn.Linear(dim, sizes.classes)

    def purify(self, feature: Tensor, teacher: Tensor) -> Tensor:
        """Compute t~ (N, Ds) from the student's and the projected teacher's feature, (N, Ds) each; t without a mask."""
        return teacher if self.mask is None else self.mask(teacher, feature) * teacher

    def filter(self, feature: Tensor, positions: Tensor, teacher: Tensor) -> Filtered:
        """Run the module on the student's feature (N, Ds) and map (N, P, Ds) and the projected teacher (N, Ds)."""
        purified = self.purify(feature, teacher)
        target = purified
        if self.strategy != "audio":
            picked, _ = self.attention(purified[:, None], positions, positions, need_weights=False)
            target = self.select(picked[:, 0])
        if self.strategy == "audio_visual":
            target = self.fuse(torch.cat([purified, target], dim=1))
        return Filtered(purified, target, self.classify(target))

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` (L_ce^v), `guided_ce` (L_ce^c), `triplet`, `contrast` and, in released mode, `mask_l1`."""
        (teacher,) = teachers.values()
        rows = valid_rows(teacher)
        terms = {"ce": functional.cross_entropy(student.logits, labels)}
        names = ["guided_ce"] + ["triplet"] * self.triplet + ["contrast"] * self.contrast
        names += ["mask_l1"] * (self.released and self.mask is not None)
        if len(rows) < 2:  # batch norm needs two clips
            return terms | {name: zero_loss(student) for name in names}

        labels = labels[rows]
        s, m = student.feature[rows], student.map[rows]
        t = self.project(teacher.feature[rows])
        live = self.filter(s, m, t)
        with statistics_kept(self):
            # Terms that only the module learns from use detached inputs, so that the student gets no gradient.
            own = self.filter(s.detach(), m.detach(), t) if self.released else live
            purified = self.purify(s.detach(), t.detach()) if self.triplet else t
        loss = {"guided_ce": functional.cross_entropy(own.logits, labels)}
        # How well the guided classifier fits the training clips: the curves of Xia's Fig. 3.
        self.measured = {"guided_accuracy": (own.logits.detach().argmax(1) == labels).float().mean()}
        if self.triplet:
            loss["triplet"] = triplet_loss(s.detach(), t.detach(), purified, self.margin)
        if self.contrast:
            tau = temperatures(s, live.purified, self.delta)
            loss["contrast"] = calibrated_contrast(s, live.target, tau, labels)
        terms |= {name: self.weight * value for name, value in loss.items()}
        if self.released and self.mask is not None:
            terms["mask_l1"] = self.mask_l1 * self.mask.w2.weight.abs().sum(1).mean()
        return terms

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the module's parameters, at `module_lr` times the student's learning rate in both gradient modes."""
        return [{"params": list(self.parameters()), "lr": self.module_lr * lr}]

    def scores(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> dict[str, Tensor]:
        """Compute `tau` (tau_ii) and, if there is a mask, `mask` (mean of g) per clip, (B,) each.

        Both are meant to be low where the audio does not belong to the action. NaN for clips without audio."""
        rows, s, _, t = self._valid_inputs(student, teachers)
        with torch.autocast(s.device.type, enabled=False):
            t = self.project(t)
            values = {"tau": temperature(functional.cosine_similarity(s, self.purify(s, t)), self.delta)}
            if self.mask is not None:
                values["mask"] = self.mask(t, s).mean(1)
        missing = {name: s.new_full((len(student.feature),), torch.nan) for name in values}
        return {name: missing[name].index_copy(0, rows, value) for name, value in values.items()}

    def attend(self, student: StudentOutput, teachers: dict[str, TeacherBatch]) -> Tensor:
        """Compute the attention (B, P) over map positions, averaged over heads; NaN without audio or attention."""
        rows, s, m, t = self._valid_inputs(student, teachers)
        weights = m.new_full(student.map.shape[:2], torch.nan)
        if self.strategy == "audio" or len(rows) == 0:
            return weights
        with torch.autocast(s.device.type, enabled=False):
            query = self.purify(s, self.project(t))[:, None]
            return weights.index_copy(0, rows, self.attention(query, m, m)[1][:, 0])

    @staticmethod
    def _valid_inputs(
        student: StudentOutput, teachers: dict[str, TeacherBatch]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the indices (N,) of the clips where the mask is true, and their s, M and t in float32."""
        (teacher,) = teachers.values()
        rows = valid_rows(teacher)
        return rows, student.feature[rows].float(), student.map[rows].float(), teacher.feature[rows].float()
