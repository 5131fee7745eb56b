"""KD against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.distillers.batches import Batch, array, make, total


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits))[np.arange(len(labels)), labels].mean()


def kl(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (p * np.log(p / q)).sum(1).mean()


@pytest.mark.parametrize(
    ("options", "t", "r", "a"),
    [({}, 4, 0.1, 0.9), ({"temperature": 2.5, "label_weight": 1, "weight": 0.3}, 2.5, 1, 0.3)],
)
def test_values(options, t, r, a):
    batch = Batch(teachers="AI")
    terms = make("kd", "AI", **options)(*batch.arguments())
    z, labels = array(batch.logits), batch.labels.numpy()
    assert all(teacher.mask.all() for teacher in batch.teachers.values())
    assert terms["ce"].item() == pytest.approx(r * cross_entropy(z, labels), rel=1e-5)
    for letter in "AI":
        expected = a * t**2 * kl(z, array(batch.teachers[letter].logits), t)
        assert terms[f"kd_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    single = make("kd", "A", **options)(batch.student, {"A": batch.teachers["A"]}, batch.labels, batch.index)
    assert set(single) == {"ce", "kd"}
    assert single["kd"].item() == terms["kd_A"].item()


def test_a_clip_that_no_teacher_knows_has_the_whole_weight_on_its_label():
    batch = Batch(teachers="AI")
    batch.teachers["A"].mask[:] = False
    batch.teachers["A"].mask[:4] = True
    batch.teachers["I"].mask[:] = False
    batch.teachers["I"].mask[2:6] = True
    ce = make("kd", "AI")(*batch.arguments())["ce"]
    z, labels = array(batch.logits), batch.labels.numpy()
    each = -np.log(softmax(z))[np.arange(len(labels)), labels]
    weights = np.where(np.arange(len(labels)) < 6, 0.1, 1.0)
    assert ce.item() == pytest.approx((weights * each).mean(), rel=1e-5)


def test_a_student_like_its_teacher_has_no_loss():
    batch = Batch()
    batch.logits.data = batch.teachers["A"].logits.detach() + 7
    assert make("kd")(*batch.arguments())["kd"].item() == pytest.approx(0, abs=1e-6)


def test_gradient_at_high_temperature():
    """For T far above the logits, d(T^2 KL)/dz is (z - z^t) / C for centred logits (Hinton 2015, Eq. 4)."""
    batch = Batch()
    teacher = batch.teachers["A"].logits
    for logits in (batch.logits, teacher):
        logits.data = (logits - logits.mean(1, keepdim=True)).double()
    method = make("kd", temperature=1e4, label_weight=0, weight=1)
    total(method.terms(batch.student, batch.teachers, batch.labels, batch.index)).backward()
    expected = (batch.logits - teacher).detach() / batch.logits.numel()
    torch.testing.assert_close(batch.logits.grad, expected, atol=1e-5, rtol=1e-2)
