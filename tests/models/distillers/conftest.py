"""Fixtures that tests of several methods share."""

from __future__ import annotations

import pytest
import torch

from models.distillers import banks
from models.distillers.banks import draw


@pytest.fixture
def drawn(monkeypatch):
    """The masks (B, N) of the negatives that CRD or CMC draws, in order."""
    masks = []

    def recorded(candidates, most):
        slots, chosen = draw(candidates, most)
        masks.append(torch.zeros_like(candidates).index_copy(1, slots, chosen))
        return slots, chosen

    monkeypatch.setattr(banks, "draw", recorded)
    return masks
