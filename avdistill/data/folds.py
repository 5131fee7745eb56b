"""Folds of clips for cross-fitting: whole groups, as clips of one source video are not independent."""

from __future__ import annotations

import numpy as np


def folds_of(groups: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return the fold (N,) of each clip: whole groups (N,), in random order, dealt out to the folds in turn.

    With fewer groups than folds, each group is a fold."""
    names, number = np.unique(groups, return_inverse=True)
    fold = np.empty(len(names), dtype=int)
    fold[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % min(folds, len(names))
    return fold[number]
