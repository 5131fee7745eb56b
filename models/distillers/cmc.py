"""CMC: Tian, Krishnan, Isola, "Contrastive Multiview Coding", ECCV 2020; the frozen teacher is one of two views.

    L = CE(z^s, y) + weight * (contrast against banks, whose equation stands in banks.py)

Negatives are drawn from all other clips, those of the same class among them: all that sets it apart from CRD.

Defaults are those of CRD, so that the two differ in nothing else: 128 dimensions, temperature 0.07, 16384 negatives
(or all that there are), banks that keep half of the old vector, weight 0.8. Where the paper leaves a choice: its
program may draw a clip as its own negative, and one clip twice; here neither happens.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from models.distillers.banks import Banks
from models.distillers.base import Distiller, Sizes, heard, nothing
from models.outputs import StudentOutput, TeacherBatch


class Cmc(Distiller):
    """Contrast with all other clips, with banks of its own for each teacher.

    Clips without sound keep the cross-entropy alone."""

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
            raise ValueError(f"weight must not be negative, not {weight}")
        self.weight = weight
        self.banks = nn.ModuleDict(
            {
                letter: Banks(sizes, width, temperature, negatives, momentum, dim)
                for letter, width in sizes.teachers.items()
            }
        )

    def start_epoch(self, epoch: int) -> None:
        """From the second epoch on, clips that have not been seen with sound are no negatives."""
        for banks in self.banks.values():
            cast(Banks, banks).first_epoch = epoch == 0

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """`ce` and `cmc`, or `cmc_A` and `cmc_I`."""
        terms = {"ce": functional.cross_entropy(student.logits, labels)}
        for letter, teacher in teachers.items():
            rows = heard(teacher)
            cmc = nothing(student)
            if len(rows):
                banks = cast(Banks, self.banks[letter])
                s, t = student.feature[rows], teacher.feature[rows]
                cmc = self.weight * banks(s, t, labels[rows], index[rows], banks.usable)
            terms["cmc" if len(teachers) == 1 else f"cmc_{letter}"] = cmc
        return terms
