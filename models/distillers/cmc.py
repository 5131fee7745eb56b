"""CMC: Tian, Krishnan, Isola, "Contrastive Multiview Coding", ECCV 2020; the frozen teacher is one of two views.

    L = CE(z^s, y) + weight * (contrast against banks, whose equation stands in banks.py)

Negatives are drawn from all other clips, those of the same class among them: all that sets it apart from CRD.

Defaults are those of CRD, so that the two differ in nothing else: 128 dimensions, temperature 0.07, 16384 negatives
(or all that there are), banks that keep half of the old vector, weight 0.8. Where the paper leaves a choice: its
program may draw a clip as its own negative, and one clip twice; here neither happens.
"""

from __future__ import annotations

from torch import Tensor

from models.distillers.banks import BankContrast, Banks


class Cmc(BankContrast):
    """Contrast with all other clips."""

    term = "cmc"

    def candidates(self, banks: Banks, labels: Tensor) -> Tensor:
        """All slots, (N,); a clip's own is never drawn."""
        return banks.usable
