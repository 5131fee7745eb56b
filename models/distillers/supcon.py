"""Supervised contrast without a teacher: the losses of MNF+CSC and CCL on the student's own features.

A control that neither paper has: what a method gains over it comes from its teacher, and not from the labels.

    L    = CE(z^s, y) + weight * C
    P_ij = softmax_{j != i}( cos(s_i, s_j) / tau )

    supcon       C = mean_i mean_{j in Pos_i} -log P_ij
    multiclass   C = mean_i [ mean_{j in Pos_i} -log P_ij + mean_{j in Neg_i} -log(1 - P_ij) ]

Pos_i are the *other* clips of the batch with the class of clip i, Neg_i the clips of other classes.

`contrast: supcon` is L_out of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2. It is the form of
L_cl in MNF+CSC (Xia 2023, Eq. 5) with one temperature and with the student in place of the teacher. The mean is over
the clips whose Pos_i is not empty.

`contrast: multiclass` is the multi-class NCE N(s, s) of CCL (Chen 2021; models/distillers/ccl.py). CCL counts the pair
of a clip with itself as a positive. That pair is left out here, from Pos_i and from the softmax: cos(s_i, s_i) is 1
whatever the student does, so the pair has no gradient and would only take most of the probability. The first half of C
is 0 for clips whose Pos_i is empty, the second for clips whose Neg_i is.

Defaults: tau 0.1 is the value in the command of the authors' program (Khosla 2020; its argument's default is 0.07),
weight 1 that of the contrast in MNF+CSC and CCL. CCL's tau is 0.5 for its audio and 0.1 for its image teacher.

Choices of this implementation: as in MNF+CSC and CCL, the contrast is on the student's feature itself, of one window of
each clip. Khosla et al. have a projection head and two views of each image, and train the classifier afterwards. In a
batch of fewer than three clips C is 0, since P is 1 for the only other clip.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, zero_loss
from models.distillers.ccl import nce_of_logits, similarities
from models.outputs import StudentOutput, TeacherBatch


def without_diagonal(x: Tensor) -> Tensor:
    """Remove the entries (i, i) of a matrix (N, N), N >= 2; returns (N, N - 1)."""
    n = len(x)
    return x.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def supcon_of_logits(x: Tensor, same: Tensor) -> Tensor:
    """Compute L_out from the logits x (N, M) of P, M >= 1, and `same` (N, M) in x's dtype, 1 for Pos_i; 0 if all are
    empty."""
    positives = same.sum(1)
    loss = -(x.log_softmax(1) * same).sum(1) / positives.clamp(min=1)
    return loss.sum() / (positives > 0).sum().clamp(min=1)


CONTRASTS = {"supcon": supcon_of_logits, "multiclass": nce_of_logits}


class SupCon(Distiller):
    """Cross-entropy and supervised contrast of the student's features, without a teacher."""

    accepts = ("",)

    def __init__(
        self,
        sizes: Sizes,
        *,
        contrast: Literal["supcon", "multiclass"] = "supcon",
        temperature: float = 0.1,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if weight < 0:
            raise ValueError(f"weight must not be negative, but is {weight}")
        self.contrast, self.temperature, self.weight = CONTRASTS[contrast], temperature, weight

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce` and `contrast`."""
        contrast = zero_loss(student)
        if len(labels) > 2:
            x = without_diagonal(similarities(student.feature, student.feature, self.temperature))
            same = without_diagonal(labels[:, None] == labels).to(x.dtype)
            contrast = self.weight * self.contrast(x, same)
        return {"ce": functional.cross_entropy(student.logits, labels), "contrast": contrast}
