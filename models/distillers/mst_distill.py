"""MST-Distill (stored features): after Li et al., "MST-Distill: Mixture of Specialized Teachers for Cross-Modal
Knowledge Distillation", ACM MM 2025, with small teachers on features that were stored before training.

A multi-modal teacher M sees the features of the audio and of the image teacher side by side, a cross-modal teacher A
those of the audio teacher alone. Each has three linear layers (`hidden`, half of it, C) with ReLU between them. With

    K(p || q) = temperature^2 KL( softmax(p / temperature) || softmax(q / temperature) ),   mean over clips

the training has two phases. In the first `warmup` epochs student S and teachers train together, all of them on all:

    L = sum_m CE(z^m, y) + sum_{m != n} K(z^m || z^n) + sum_r K(sg z^S || z*_r),   m and n of S, M, A

The last sum trains the masks alone. A mask on the output u of a teacher's first or second layer, before its ReLU, makes
a specialised teacher z*_r of it; r counts the R = 4 pairs of teacher and layer:

    mask(u) = sigmoid( w MHSA(reshape(E u)) + c ) * u,   E from D to D tokens of width h = 3 floor(D / 6), 3 heads

Afterwards teachers and masks stay as they are, and a gate G chooses teachers for each clip: g = softmax(G(z^S)), two
linear layers from C to 2C to R. With top_i, the `top` teachers of largest g_i, and u = 1/R,

    L = label_weight CE(z^S, y) + weight mean_i 1/top sum_{r in top_i} K(z*_ri || z^S_i)
        + balance_weight 1/R sum_r u log(u / mean_i g_ir)

From the authors' program: `hidden` 320, temperature 4, `top` 1, all weights 1, `warmup` 1. `weight` is halved after the
first epoch of the second phase and then every `weight_period` = 30 epochs, so it is 0.5 nearly from the beginning;
`balance_weight` is multiplied by 0.9 in the same way, with `balance_period` = 10.

What is reduced, and why the name says so: in the paper the teachers' encoders train along in the first phase, and so
adapt to the student; stored features cannot. (The authors' own experiment on VGGSound starts from stored features, too,
for the student as well.) The program trains the masks in an epoch of their own, in which nothing else moves. Here they
train beside the teachers, whose weights are detached for them, as the student's logits are: in an epoch of their own,
momentum or weight decay would move a student whose gradient is 0. In the program a teacher's second mask works on top
of its first; here each works alone, as it was trained.

What to know before believing a gain: the choice of the largest g has no gradient, so G learns from the balance alone,
and nothing makes it choose a teacher that helps. The control `routing: random` chooses at random; the paper's reading
needs it to lose. A mask has about D^3 / 2 parameters, 16 million at D = 320.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, valid_rows, zero_loss
from models.distillers.logits import kl_by_row
from models.outputs import StudentOutput, TeacherBatch

LAYERS = 2  # of a teacher that can have a mask


class TeacherMask(nn.Module):
    """Scale the outputs of a layer (N, D), D >= 6, by factors between 0 and 1 that depend on all of them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.width = 3 * (dim // 6)
        self.tokens = nn.Linear(dim, dim * self.width)
        self.attention = nn.MultiheadAttention(self.width, 3, batch_first=True)
        self.factor = nn.Linear(self.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute sigmoid(w MHSA(E x) + c) * x."""
        tokens = self.tokens(x).unflatten(1, (-1, self.width))
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.factor(attended).squeeze(2).sigmoid() * x


class SmallTeacher(nn.Module):
    """A classifier of three linear layers on stored features (N, Dt)."""

    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, hidden // 2)
        self.last = nn.Linear(hidden // 2, classes)

    def forward(self, feature: Tensor, mask: nn.Module | None = None, layer: int = 0) -> Tensor:
        """Compute logits (N, C), with `mask` on the output of the first (0) or second (1) layer."""
        x = feature
        for number, linear in enumerate((self.first, self.second)):
            x = linear(x)
            x = (mask(x) if mask is not None and number == layer else x).relu()
        return self.last(x)


def balance(log_mean: Tensor) -> Tensor:
    """Compute 1/R sum_r u log(u / g_r), u = 1/R, of the logarithms (R,) of the mean gates g; 0 if all are equal."""
    count = len(log_mean)
    return (-math.log(count) - log_mean).sum() / count**2


class MstDistill(Distiller):
    """Specialised teachers on stored features, routed by clip. Of one stored teacher, M and A would be the same.

    Clips that one of the teachers does not know contribute to CE(z^S, y) only."""

    accepts = ("AI",)

    def __init__(
        self,
        sizes: Sizes,
        *,
        weight: float = 1.0,
        label_weight: float = 1.0,
        balance_weight: float = 1.0,
        temperature: float = 4.0,
        top: int = 1,
        routing: Literal["gate", "random"] = "gate",
        hidden: int = 320,
        warmup: int = 1,
        weight_period: int = 30,
        balance_period: int = 10,
    ) -> None:
        super().__init__()
        if min(weight, label_weight, balance_weight) < 0:
            raise ValueError("weight, label_weight and balance_weight must not be negative")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if hidden < 12:
            raise ValueError(f"hidden must be 12 or more, so that a mask has three heads, but is {hidden}")
        if not 1 <= top <= 2 * LAYERS:
            raise ValueError(f"top must be in 1..{2 * LAYERS}, the number of specialised teachers, but is {top}")
        if min(warmup, weight_period, balance_period) < 1:
            raise ValueError("warmup, weight_period and balance_period must be 1 or more")
        self.weight, self.label_weight, self.balance_weight = weight, label_weight, balance_weight
        self.temperature, self.top, self.routing, self.warmup = temperature, top, routing, warmup
        self.weight_period, self.balance_period = weight_period, balance_period
        dims = {"M": sizes.teachers["A"] + sizes.teachers["I"], "A": sizes.teachers["A"]}
        self.teachers = nn.ModuleDict({name: SmallTeacher(dim, hidden, sizes.classes) for name, dim in dims.items()})
        # One for each teacher and layer, in this order.
        self.masks = nn.ModuleList(TeacherMask(width) for _ in dims for width in (hidden, hidden // 2))
        self.gate = nn.Sequential(
            nn.Linear(sizes.classes, 2 * sizes.classes), nn.Linear(2 * sizes.classes, len(self.masks))
        )
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Set the phase and its weights."""
        self.epoch = epoch

    def factors(self) -> tuple[float, float]:
        """Return what `weight` and `balance_weight` are multiplied by in this epoch of the second phase."""
        since = self.epoch - self.warmup
        return 0.5 ** -(-since // self.weight_period), 0.9 ** -(-since // self.balance_period)

    def distance(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Compute K of each row of logits (N, C): (N,)."""
        return self.temperature**2 * kl_by_row(teacher / self.temperature, student / self.temperature)

    def specialised(self, features: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits (R, N, C) of the teachers with a mask each; of their parameters only the masks' learn."""
        logits = []
        for number, mask in enumerate(self.masks):
            name = "MA"[number // LAYERS]
            frozen = {key: value.detach() for key, value in self.teachers[name].named_parameters()}
            logits += [functional_call(self.teachers[name], frozen, (features[name], mask, number % LAYERS))]
        return torch.stack(logits)

    def chosen(self, gates: Tensor) -> Tensor:
        """Return the `top` teachers of each clip, (N, top), by the gates (N, R) or at random."""
        order = torch.rand_like(gates) if self.routing == "random" else gates.detach()
        return order.topk(self.top, dim=1).indices

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, and in the first phase `teachers`, `mutual`, `masks`, in the second `distil` and `balance`."""
        together = self.epoch < self.warmup
        ce = functional.cross_entropy(student.logits, labels) * (1.0 if together else self.label_weight)
        rows = valid_rows(teachers["A"])
        if not len(rows):
            names = ("teachers", "mutual", "masks") if together else ("distil", "balance")
            return {"ce": ce} | dict.fromkeys(names, zero_loss(student))

        # The clips that both know, without waiting for the device to count them: the others have the weight 0.
        known = teachers["I"].mask[rows]
        share = known.to(ce.dtype) / known.sum().clamp(min=1)
        image = teachers["I"].feature[rows].where(known[:, None], 0)
        audio, labels, z_s = teachers["A"].feature[rows], labels[rows], student.logits[rows]
        features = {"M": torch.cat([audio, image], 1), "A": audio}
        if together:
            logits = [z_s, *(teacher(features[name]) for name, teacher in self.teachers.items())]
            of_labels = [functional.cross_entropy(z, labels, reduction="none") @ share for z in logits[1:]]
            pairs = [self.distance(p, q) @ share for p in logits for q in logits if p is not q]
            masked = [self.distance(z_s.detach(), z) @ share for z in self.specialised(features)]
            sums = {"teachers": of_labels, "mutual": pairs, "masks": masked}
            return {"ce": ce} | {name: torch.stack(values).sum() for name, values in sums.items()}

        gates = self.gate(z_s).log_softmax(1)
        with torch.no_grad():
            specialised = self.specialised(features).transpose(0, 1)  # (N, R, C)
        best = self.chosen(gates)
        taught = specialised.gather(1, best[..., None].expand(-1, -1, z_s.shape[1])).flatten(0, 1)
        distil = self.distance(taught, z_s.repeat_interleave(self.top, 0)).unflatten(0, (-1, self.top)).mean(1) @ share
        of_weight, of_balance = self.factors()
        # As logarithms, because a gate may be 0 in float32. If no clip is known, the mean of all has the weight 0.
        counted = known | ~known.any()
        log_mean = gates.where(counted[:, None], -torch.inf).logsumexp(0) - counted.sum().log()
        return {
            "ce": ce,
            "distil": self.weight * of_weight * distil,
            "balance": self.balance_weight * of_balance * balance(log_mean) * known.any(),
        }
