from __future__ import annotations

import numpy as np
import pytest

from avdistill.data.synthesis import scenes


def test_an_actor_covers_its_area() -> None:
    one = np.ones(1)
    layer = scenes.cover("disc", 40, 40, 20 * one, 20 * one, 0 * one, 10 * one)
    assert layer.sum() == pytest.approx(np.pi * 8.5**2, rel=0.01)
    bar = scenes.cover("bar", 60, 60, 30 * one, 30 * one, np.pi / 2 * one, 20 * one)[0]
    assert bar.sum() == pytest.approx(40 * 14, rel=0.05)
    assert bar[:, 30].sum() > 2 * bar[30].sum()  # turned by a quarter, it stands upright
    for shape in scenes.SHAPES:
        assert 10 < scenes.cover(shape, 40, 40, 20 * one, 20 * one, one, 10 * one).sum() < 400
