"""CCKD against its equation in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.distillers.cckd import kernel
from tests.models.distillers.batches import Batch, array, make, total
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy


def matrix(e, gamma=0.4, order=2):
    cosines = unit(e) @ unit(e).T
    k = np.zeros_like(cosines)
    for i, j in np.ndindex(k.shape):
        k[i, j] = sum((2 * gamma * cosines[i, j]) ** p / math.factorial(p) for p in range(order + 1))
    return np.exp(-2 * gamma) * k


def correlation(method, s, t, letter="A", weight=20, **kernel_options):
    w = {name: array(value) for name, value in method.state_dict().items()}
    ours = s @ w[f"embed.{letter}.weight"].T + w[f"embed.{letter}.bias"]
    difference = matrix(ours, **kernel_options) - matrix(t @ w[f"projection_{letter}"], **kernel_options)
    return weight * np.linalg.norm(difference, "fro") ** 2 / len(s) ** 2


@pytest.mark.parametrize("options", [{}, {"weight": 3.0, "gamma": 0.9, "order": 3}])
def test_values(options):
    batch, method = Batch(teachers="AI", dim=10), make("cckd", "AI", dim=10, **options)
    terms = method(*batch.arguments())
    assert set(terms) == {"ce", "correlation_A", "correlation_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    for letter in "AI":
        expected = correlation(method, array(batch.feature), array(batch.teachers[letter].feature), letter, **options)
        assert terms[f"correlation_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    assert set(make("cckd")(*Batch().arguments())) == {"ce", "correlation"}


def test_gradient():
    batch, method = Batch(6), make("cckd")
    in_double(method, batch)["correlation"].backward()
    t = array(batch.teachers["A"].feature)
    expected = slopes(lambda s: correlation(method, s, t), array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert method.embed["A"].weight.grad.abs().sum() > 0


def test_the_series_is_that_of_the_gaussian_kernel():
    e = np.random.default_rng(0).normal(size=(6, 5))
    squared = ((unit(e)[:, None] - unit(e)[None]) ** 2).sum(2)
    ours = kernel(torch.from_numpy(e), 0.4, 30).numpy()
    np.testing.assert_allclose(ours, np.exp(-0.4 * squared), rtol=1e-12)


@pytest.mark.parametrize(("width", "embedding"), [(200, 128), (128, 128), (20, 128)])
def test_the_teacher_s_projection_keeps_lengths(width, embedding):
    projection = array(make("cckd", dim=width).get_buffer("projection_A"))
    assert projection.shape == (width, embedding)
    small = projection.T @ projection if width >= embedding else projection @ projection.T
    np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-5)


def test_the_projection_is_fixed_and_resumes():
    first, resumed = make("cckd", "AI", seed=0), make("cckd", "AI", seed=1)
    assert not torch.equal(first.projection_A, first.projection_I)
    assert not torch.equal(first.projection_A, resumed.projection_A)
    assert {name.split(".")[0] for name, _ in first.named_parameters()} == {"embed"}
    resumed.load_state_dict(first.state_dict())
    results = []
    for method in (first, resumed):
        batch = Batch(teachers="AI", seed=2)
        loss = total(method(*batch.arguments()))
        loss.backward()
        results.append([loss, batch.feature.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rotations_do_not_matter():
    e = torch.randn(6, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5))[0]
    torch.testing.assert_close(kernel(2 * e @ rotation, 0.4, 2), kernel(e, 0.4, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"weight": -1}, "weight"), ({"gamma": 0.0}, "gamma.*above 0"), ({"order": 0}, "order"), ({"dim": 0}, "dim")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("cckd", options)
    assert "\n" not in str(error.value)
