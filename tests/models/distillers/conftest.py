"""Fixtures that tests of several methods share."""

from __future__ import annotations

import pytest

from models.distillers import banks
from models.distillers.banks import draw


@pytest.fixture
def drawn(monkeypatch):
    """The masks (B, N) of the negatives that CRD or CMC draws, in order."""
    masks = []

    def recorded(*args):
        masks.append(draw(*args))
        return masks[-1]

    monkeypatch.setattr(banks, "draw", recorded)
    return masks
