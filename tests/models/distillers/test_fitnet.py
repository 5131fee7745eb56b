"""FitNet against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from tests.models.distillers.batches import Batch, array, make, total
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy


def regressed(method, feature, letter="A"):
    w = {name: array(value) for name, value in method.state_dict().items()}
    x = feature @ w[f"regress.{letter}.0.weight"].T + w[f"regress.{letter}.0.bias"]
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return np.maximum(x * w[f"regress.{letter}.1.weight"] + w[f"regress.{letter}.1.bias"], 0)


def hint(r, t, weight=100, normalise=False):
    if normalise:
        r, t = unit(r), unit(t)
    return weight * sum((a - b) ** 2 for a, b in zip(r.flat, t.flat, strict=True)) / t.size


OPTIONS = [{}, {"normalise": True}, {"weight": 3.0, "normalise": True}]


@pytest.mark.parametrize("options", OPTIONS)
def test_values(options):
    batch, method = Batch(teachers="AI", dim=10), make("fitnet", "AI", dim=10, **options)
    terms = method(*batch.arguments())
    assert set(terms) == {"ce", "hint_A", "hint_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    for letter in "AI":
        r, t = regressed(method, array(batch.feature), letter), array(batch.teachers[letter].feature)
        assert terms[f"hint_{letter}"].item() == pytest.approx(hint(r, t, **options), rel=1e-5)
    single = make("fitnet", "A", dim=10, **options)(*Batch(dim=10).arguments())
    assert set(single) == {"ce", "hint"}


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient(options):
    batch, method = Batch(6), make("fitnet", **options)
    in_double(method, batch)["hint"].backward()
    t = array(batch.teachers["A"].feature)
    expected = slopes(lambda s: hint(regressed(method, s), t, **options), array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_the_teacher_s_length_counts_unless_normalised():
    values = {}
    for normalise in (False, True):
        for scale in (1, 7):
            batch = Batch()
            batch.teachers["A"].feature.data *= scale
            values[normalise, scale] = make("fitnet", normalise=normalise)(*batch.arguments())["hint"].item()
    assert values[False, 7] > 5 * values[False, 1]
    assert values[True, 7] == pytest.approx(values[True, 1], rel=1e-5)


def test_no_loss_where_the_regressor_meets_the_teacher():
    batch, method = Batch(), make("fitnet")
    with torch.no_grad():
        batch.teachers["A"].feature.data = method.regress["A"](batch.feature)
    assert method(*batch.arguments())["hint"].item() == 0


def test_a_resumed_method_goes_on_with_the_same_bits():
    first, resumed = make("fitnet", "AI", seed=0), make("fitnet", "AI", seed=1)
    first(*Batch(teachers="AI", seed=1).arguments())
    resumed.load_state_dict(first.state_dict())
    results = []
    for method in (first, resumed):
        batch = Batch(teachers="AI", seed=2)
        loss = total(method(*batch.arguments()))
        loss.backward()
        results.append([loss, batch.feature.grad, *method.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_option_out_of_range():
    with pytest.raises(ValueError, match="weight must not be negative"):
        check_options("fitnet", {"weight": -1})
