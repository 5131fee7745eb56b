"""CMC: Tian, Krishnan, Isola, "Contrastive Multiview Coding", ECCV 2020. The frozen teacher is the second view.

    L = CE(z^s, y) + weight * (contrast against banks; see banks.py for the equation)

Negatives are sampled from all other clips, including those of the same class. This is the only difference from CRD.

Defaults are those of our CRD, so that the two differ in nothing else: 128 dimensions, temperature 0.07, 16384
negatives (or all that there are, if fewer), momentum 0.5 of the banks, weight 0.8. The authors' program may sample a
clip as its own negative, and one clip twice; here neither happens.
"""

from __future__ import annotations

from torch import Tensor

from models.distillers.banks import BankContrast, Banks


class Cmc(BankContrast):
    """Contrast with negatives from all other clips."""

    term = "cmc"

    def candidates(self, banks: Banks, labels: Tensor) -> Tensor:
        """Return all usable slots, (N,); `Banks` excludes a clip's own."""
        return banks.usable
