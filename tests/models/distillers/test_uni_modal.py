"""The uni-modal baseline against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from tests.models.distillers import reference
from tests.models.distillers.batches import CLASSES, Batch, array, make
from tests.models.distillers.numeric import in_double
from tests.models.distillers.test_kd import cross_entropy, softmax


def targets(labels, smoothing):
    """q: the label has 1 - e + e / C, every other class e / C."""
    return (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.6, 1])
def test_values_and_gradient(smoothing):
    batch, method = Batch(teachers=""), make("uni_modal", "", label_smoothing=smoothing)
    terms = in_double(method, batch)
    q, p = targets(batch.labels.numpy(), smoothing), softmax(array(batch.logits))
    assert set(terms) == {"ce"}
    assert terms["ce"].item() == pytest.approx(-(q * np.log(p)).sum(1).mean(), rel=1e-9)
    terms["ce"].backward()
    np.testing.assert_allclose(batch.logits.grad, (p - q) / len(q), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("smoothing", "expected"), [(0, 2.434133), (0.1, 2.424995)])
def test_the_written_down_values(smoothing, expected):
    x, batch = reference.logits(), Batch(4, teachers="")
    batch.logits, batch.labels = x.student, x.labels
    terms = make("uni_modal", "", label_smoothing=smoothing)(*batch.arguments())
    assert terms["ce"].item() == pytest.approx(expected, abs=1e-6)


def test_by_default_it_is_the_plain_cross_entropy():
    batch = Batch(teachers="")
    ce = make("uni_modal", "")(*batch.arguments())["ce"]
    assert torch.equal(ce, torch.nn.functional.cross_entropy(batch.logits, batch.labels))
    assert ce.item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_option_out_of_range(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in 0\.\.1, not"):
        check_options("uni_modal", {"label_smoothing": smoothing}, "")
