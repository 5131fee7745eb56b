"""CRD: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020.

    L = CE(z^s, y) + weight * (contrast against banks, whose equation stands in banks.py)

Negatives are clips of other classes only. A clip's class is noted when it is first seen; before that its slot holds
a random vector, which is of no class.

Defaults are those of the authors' program: 128 dimensions, temperature 0.07, 16384 negatives (or all that there are,
where there are fewer), banks that keep half of the old vector, weight 0.8 on the sum of both sides.
"""

from __future__ import annotations

from torch import Tensor

from models.distillers.banks import BankContrast, Banks


class Crd(BankContrast):
    """Contrast with clips of other classes."""

    term = "crd"

    def candidates(self, banks: Banks, labels: Tensor) -> Tensor:
        """The slots of other classes, (B, N)."""
        return banks.usable & (banks.labels != labels[:, None])
