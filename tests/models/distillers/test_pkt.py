"""PKT against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.distillers.pkt import neighbours, transfer_loss
from tests.models.distillers.batches import Batch, array, make
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy

EPS = 1e-7


def probabilities(x):
    c = (unit(x) @ unit(x).T + 1) / 2
    return c / c.sum(1, keepdims=True)


def divergences(s, t):
    """p^t log(p^t / p^s), (N, N), of which the equation takes a mean."""
    p, q = probabilities(t), probabilities(s)
    return p * np.log((p + EPS) / (q + EPS))


@pytest.mark.parametrize(("options", "weight"), [({}, 468.75), ({"weight": 2}, 2)])
def test_values(options, weight):
    batch = Batch(teachers="AI", dim=10)
    terms = make("pkt", "AI", dim=10, **options)(*batch.arguments())
    assert set(terms) == {"ce", "pkt_A", "pkt_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    for letter in "AI":
        expected = weight * divergences(array(batch.feature), array(batch.teachers[letter].feature)).sum(1).mean()
        assert terms[f"pkt_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    assert set(make("pkt")(*Batch().arguments())) == {"ce", "pkt"}


def test_the_published_weight_at_a_batch_of_64():
    """30000 times the mean over all pairs, as the benchmark has it."""
    rng = np.random.default_rng(0)
    s, t = rng.random((64, 6)), rng.random((64, 9))
    ours = 468.75 * transfer_loss(torch.from_numpy(s), torch.from_numpy(t)).item()
    assert ours == pytest.approx(30000 * divergences(s, t).mean(), rel=1e-5)


def test_the_size_of_the_batch_does_not_change_the_loss():
    s, t = torch.rand(7, 6, dtype=torch.double), torch.rand(7, 9, dtype=torch.double)
    once, twice = transfer_loss(s, t), transfer_loss(s.repeat(2, 1), t.repeat(2, 1))
    assert twice.item() == pytest.approx(once.item(), rel=1e-4)  # but for epsilon


def test_gradient():
    batch, method = Batch(6), make("pkt")
    in_double(method, batch)["pkt"].backward()
    t = array(batch.teachers["A"].feature)
    expected = slopes(lambda s: 468.75 * divergences(s, t).sum(1).mean(), array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_lengths_and_rotations_do_not_matter():
    s, t = torch.rand(7, 6), torch.rand(7, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    lengths = torch.rand(7, 1) + 0.1
    assert transfer_loss(3 * s @ rotation, t * lengths).item() == pytest.approx(transfer_loss(s, t).item(), rel=1e-3)
    assert transfer_loss(s, s * lengths).item() == pytest.approx(0, abs=1e-6)


def test_opposite_features_stay_finite():
    x = torch.tensor([[1.0, 0.1], [-1.0, -0.1], [-3.0, -0.3]], requires_grad=True)
    t = torch.rand(3, 4)
    loss = transfer_loss(x, t)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    assert loss.item() == pytest.approx(divergences(array(x), array(t)).sum(1).mean(), rel=0.1)  # float32, near log 0
    torch.testing.assert_close(neighbours(x.detach())[0], torch.tensor([1.0, 0.0, 0.0]))


def test_option_out_of_range():
    with pytest.raises(ValueError, match="weight must not be negative"):
        check_options("pkt", {"weight": -1})
