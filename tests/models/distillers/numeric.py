"""What the tests against NumPy share: formulas in float64, and derivatives by differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from models.distillers import Distiller
from tests.models.distillers.batches import Batch


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slopes(value: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a scalar function at x, by central differences."""
    gradient = np.empty_like(x)
    for place in np.ndindex(x.shape):
        around = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            around.append(value(moved))
        gradient[place] = (around[0] - around[1]) / (2 * step)
    return gradient


def in_double(method: Distiller, batch: Batch) -> dict:
    """The terms of a method on a batch, both of which this takes to float64."""
    method.double()
    for leaf in (batch.logits, batch.feature, batch.map, *batch.stages):
        leaf.data = leaf.data.double()
    for letter, teacher in batch.teachers.items():
        batch.teachers[letter] = teacher.each(lambda x: x.detach().double() if x.is_floating_point() else x)
    return method.terms(*batch.arguments())
