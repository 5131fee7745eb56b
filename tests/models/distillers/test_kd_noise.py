"""KD-noise against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.outputs import TeacherBatch
from tests.models.distillers.batches import CLASSES, Batch, array, make
from tests.models.distillers.test_kd import cross_entropy, kl, softmax


def virtual(labels, confidence):
    p = np.full((len(labels), CLASSES), (1 - confidence) / (CLASSES - 1))
    p[np.arange(len(labels)), labels] = confidence
    return p


@pytest.mark.parametrize(
    ("options", "u", "a", "t", "m"),
    [
        ({}, 0.99, 0.1, 20, 100),
        (
            {"confidence": 0.7, "virtual_share": 0.4, "virtual_temperature": 0.5, "virtual_multiplier": 3},
            0.7, 0.4, 0.5, 3,
        ),
    ],
)  # fmt: skip
def test_values_with_a_virtual_teacher(options, u, a, t, m):
    batch = Batch(teachers="")
    z, labels = array(batch.logits), batch.labels.numpy()
    terms = make("kd_noise", "", **options)(*batch.arguments())
    p, q = softmax(virtual(labels, u) / t), softmax(z)
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert set(terms) == {"ce", "kd"}
    assert terms["ce"].item() == pytest.approx((1 - a) * cross_entropy(z, labels), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(a * m / CLASSES * divergence, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "a", "t", "m"),
    [({}, 0.95, 6, 50), ({"self_share": 0.4, "self_temperature": 2, "self_multiplier": 3}, 0.4, 2, 3)],
)
def test_values_with_an_earlier_student(options, a, t, m):
    batch = Batch(teachers="S")
    z, labels, teacher = array(batch.logits), batch.labels.numpy(), array(batch.teachers["S"].logits)
    terms = make("kd_noise", "S", **options)(*batch.arguments())
    assert terms["ce"].item() == pytest.approx((1 - a) * cross_entropy(z, labels), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(a * m * t**2 / CLASSES * kl(z, teacher, t), rel=1e-5)


def test_log_probabilities_stand_for_logits():
    """An earlier student hands over log-probabilities: its logits less a constant for each clip."""
    batch = Batch(teachers="S")
    logits = batch.teachers["S"].logits
    expected = make("kd_noise", "S")(*batch.arguments())["kd"]
    batch.teachers["S"] = TeacherBatch(
        batch.teachers["S"].feature, logits.log_softmax(1).detach(), batch.teachers["S"].mask
    )
    torch.testing.assert_close(make("kd_noise", "S")(*batch.arguments())["kd"], expected)


def test_a_student_like_its_teacher_has_no_loss():
    batch = Batch(teachers="S")
    batch.logits.data = batch.teachers["S"].logits.detach() - 3
    assert make("kd_noise", "S")(*batch.arguments())["kd"].item() == pytest.approx(0, abs=1e-5)


def test_gradient_of_the_virtual_kl():
    """d KL / dz = q - p, in double precision."""
    batch = Batch(teachers="")
    batch.logits.data = batch.logits.data.double()
    make("kd_noise", "").terms(batch.student, {}, batch.labels, batch.index)["kd"].backward()
    p, q = softmax(virtual(batch.labels.numpy(), 0.99) / 20), softmax(array(batch.logits))
    np.testing.assert_allclose(array(batch.logits.grad), 0.1 * 100 / CLASSES * (q - p) / 12, rtol=1e-9, atol=1e-12)


def test_gradient_of_the_earlier_student_s_kl():
    """d T^2 KL / dz = T (q - p), in double precision; none reaches the teacher."""
    batch = Batch(teachers="S")
    batch.logits.data = batch.logits.data.double()
    teacher = batch.teachers["S"].each(lambda x: x.detach().double() if x.is_floating_point() else x)
    make("kd_noise", "S").terms(batch.student, {"S": teacher}, batch.labels, batch.index)["kd"].backward()
    p, q = softmax(array(teacher.logits) / 6), softmax(array(batch.logits) / 6)
    np.testing.assert_allclose(array(batch.logits.grad), 0.95 * 50 / CLASSES * 6 * (q - p) / 12, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("teachers", "options", "words"),
    [
        ("", {"virtual_share": 1.1}, "virtual_share"),
        ("", {"confidence": -0.1}, "confidence"),
        ("", {"virtual_temperature": 0}, "virtual_temperature"),
        ("", {"virtual_multiplier": -1}, "virtual_multiplier"),
        ("", {"self_share": 0.5}, "self_.*teacher S.*virtual_"),
        ("S", {"self_share": -0.1}, "self_share"),
        ("S", {"self_temperature": -1}, "self_temperature"),
        ("S", {"self_multiplier": -1}, "self_multiplier"),
        ("S", {"virtual_temperature": 10}, "virtual_.*without a teacher.*self_"),
        ("S", {"confidence": 0.9}, "confidence.*without a teacher"),
    ],
)
def test_options_out_of_range_or_of_the_other_variant(teachers, options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("kd_noise", options, teachers)
    assert "\n" not in str(error.value)
