"""CRD: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020.

    L = CE(z^s, y) + weight * (contrast against banks; see banks.py for the equation)

Negatives are clips of other classes only. A clip's class is recorded when the clip is first seen; before that its
slot holds a random vector and counts as a slot of another class.

Defaults are those of the authors' program: 128 dimensions, temperature 0.07, 16384 negatives (or all that there are,
if fewer), momentum 0.5 of the banks, weight 0.8 on the sum of both sides.
"""

from __future__ import annotations

from torch import Tensor

from models.distillers.banks import BankContrast, Banks


class Crd(BankContrast):
    """Contrast with negatives from other classes."""

    term = "crd"

    def candidates(self, banks: Banks, labels: Tensor) -> Tensor:
        """Return the usable slots of other classes, (B, N)."""
        return banks.usable & (banks.labels != labels[:, None])
