"""Prediction of the teacher's feature against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from tests.models.distillers.batches import Batch, array, make
from tests.models.distillers.numeric import in_double, slopes
from tests.models.distillers.test_kd import cross_entropy, softmax


def auxiliary(method, s, t, weight=1.0, letter="A"):
    w = {name: array(value) for name, value in method.state_dict().items()}
    q = softmax(s @ w[f"predict.{letter}.weight"].T + w[f"predict.{letter}.bias"])
    loss = 0.0
    for row, feature in zip(q, t, strict=True):
        if feature.sum():
            loss -= (feature / feature.sum() * np.log(row)).sum()
    return weight * loss / len(t)


@pytest.mark.parametrize("options", [{}, {"weight": 0.3}])
def test_values(options):
    batch, method = Batch(teachers="AI", dim=10), make("privileged", "AI", dim=10, **options)
    terms = method(*batch.arguments())
    assert set(terms) == {"ce", "auxiliary_A", "auxiliary_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    for letter in "AI":
        value = auxiliary(method, array(batch.feature), array(batch.teachers[letter].feature), letter=letter, **options)
        assert terms[f"auxiliary_{letter}"].item() == pytest.approx(value, rel=1e-5)
    assert set(make("privileged", dim=10, **options)(*Batch(dim=10).arguments())) == {"ce", "auxiliary"}


@pytest.mark.parametrize("one_hot", [False, True])
def test_gradient(one_hot):
    batch, method = Batch(6, dim=3), make("privileged", dim=3, weight=0.7)
    if one_hot:
        batch.teachers["A"].feature.data = torch.eye(3)[[0, 2, 1, 1, 0, 2]]
    in_double(method, batch)["auxiliary"].backward()
    t = array(batch.teachers["A"].feature)
    expected = slopes(lambda s: auxiliary(method, s, t, 0.7), array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert batch.logits.grad is None


def test_of_a_one_hot_feature_it_is_the_cross_entropy_of_a_classifier():
    batch, method = Batch(dim=3), make("privileged", dim=3)
    hidden = torch.arange(12) % 3
    batch.teachers["A"].feature.data = 7 * torch.eye(3)[hidden]
    expected = torch.nn.functional.cross_entropy(method.predict["A"](batch.feature), hidden)
    torch.testing.assert_close(method(*batch.arguments())["auxiliary"], expected)


def test_the_teacher_s_length_does_not_count_and_zeros_have_no_loss():
    batch, method = Batch(), make("privileged")
    before = method(*batch.arguments())["auxiliary"]
    batch.teachers["A"].feature.data *= torch.arange(1.0, 13)[:, None]
    torch.testing.assert_close(method(*batch.arguments())["auxiliary"], before)
    batch.teachers["A"].feature.data[:] = 0
    assert method(*batch.arguments())["auxiliary"].item() == 0


def test_a_teacher_that_knows_one_value_only_teaches_nothing():
    batch, method = Batch(dim=1), make("privileged", dim=1)
    batch.teachers["A"].feature.data[:] = 1
    term = method(*batch.arguments())["auxiliary"]
    term.backward()
    assert term.item() == 0 and not batch.feature.grad.any()


def test_negative_features_are_refused_unless_the_teacher_had_no_input():
    batch, method = Batch(), make("privileged")
    batch.teachers["A"].feature.data[3, 2] = -0.25
    with pytest.raises(ValueError, match=r"not negative, found -0\.25 \(teacher A\)"):
        method.check_teachers(batch.teachers)
    batch.teachers["A"].mask[3] = False
    method.check_teachers(batch.teachers)
    assert method(*batch.arguments())["auxiliary"].isfinite()


def test_option_out_of_range():
    with pytest.raises(ValueError, match="weight must not be negative"):
        check_options("privileged", {"weight": -1})
