"""CRD: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020.

    L = CE(z^s, y) + weight * (contrast against banks, whose equation stands in banks.py)

Negatives are clips of other classes only. A clip's class is noted when it is first seen; before that its slot holds
a random vector, which is of no class.

Defaults are those of the authors' program: 128 dimensions, temperature 0.07, 16384 negatives (or all that there are,
where there are fewer), banks that keep half of the old vector, weight 0.8 on the sum of both sides.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from models.distillers.banks import Banks
from models.distillers.base import Distiller, Sizes, heard, nothing
from models.outputs import StudentOutput, TeacherBatch


class Crd(Distiller):
    """Contrast with clips of other classes, with banks of its own for each teacher.

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
        """`ce` and `crd`, or `crd_A` and `crd_I`."""
        terms = {"ce": functional.cross_entropy(student.logits, labels)}
        for letter, teacher in teachers.items():
            rows = heard(teacher)
            crd = nothing(student)
            if len(rows):
                banks, y = cast(Banks, self.banks[letter]), labels[rows]
                candidates = banks.usable & (banks.labels != y[:, None])
                crd = self.weight * banks(student.feature[rows], teacher.feature[rows], y, index[rows], candidates)
            terms["crd" if len(teachers) == 1 else f"crd_{letter}"] = crd
        return terms
