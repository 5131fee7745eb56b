"""KD-noise against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import build, check_options
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
        ({}, 0.99, 0.1, 20, 1),
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
    assert terms["kd"].item() == pytest.approx(a * m * divergence, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "a", "t", "m"),
    [({}, 0.95, 6, 0.5), ({"self_share": 0.4, "self_temperature": 2, "self_multiplier": 3}, 0.4, 2, 3)],
)
def test_values_with_an_earlier_student(options, a, t, m):
    batch = Batch(teachers="S")
    z, labels, teacher = array(batch.logits), batch.labels.numpy(), array(batch.teachers["S"].logits)
    terms = make("kd_noise", "S", **options)(*batch.arguments())
    assert terms["ce"].item() == pytest.approx((1 - a) * cross_entropy(z, labels), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(a * m * t**2 * kl(z, teacher, t), rel=1e-5)


@pytest.mark.parametrize("teachers", ["", "S"])
def test_the_strength_is_the_program_s_at_its_own_number_of_classes(teachers):
    """CIFAR-100: multipliers 100 and 50, over the mean of 100 classes."""
    batch = Batch(teachers=teachers)
    (a, t, m) = (0.1, 20, 100) if not teachers else (0.95, 6, 50)
    z = torch.randn(12, 100, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12)
    if teachers:
        teacher = torch.randn(12, 100, generator=torch.Generator().manual_seed(1))
        p, q, scale = softmax(teacher.numpy() / t), softmax(z.numpy() / t), t**2
        known = {"S": TeacherBatch(batch.teachers["S"].feature, teacher, batch.teachers["S"].mask)}
    else:
        hard = np.full((12, 100), 0.01 / 99)
        hard[np.arange(12), labels] = 0.99
        p, q, scale, known = softmax(hard / t), softmax(z.numpy()), 1, {}
    program = (p * np.log(p / q)).mean() * scale * m * a  # nn.KLDivLoss() takes the mean over clips and classes
    found = make("kd_noise", teachers)(batch.student._replace(logits=z), known, labels, labels)["kd"]
    assert found.item() == pytest.approx(program, rel=1e-4)


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="two classes"):
        build("kd_noise", student_dim=8, stage_dims=(1, 2, 4, 8), teacher_dims={}, classes=1, clips=9, options={})


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
    np.testing.assert_allclose(array(batch.logits.grad), 0.1 * (q - p) / 12, rtol=1e-9, atol=1e-12)


def test_gradient_of_the_earlier_student_s_kl():
    """d T^2 KL / dz = T (q - p), in double precision; none reaches the teacher."""
    batch = Batch(teachers="S")
    batch.logits.data = batch.logits.data.double()
    teacher = batch.teachers["S"].each(lambda x: x.detach().double() if x.is_floating_point() else x)
    make("kd_noise", "S").terms(batch.student, {"S": teacher}, batch.labels, batch.index)["kd"].backward()
    p, q = softmax(array(teacher.logits) / 6), softmax(array(batch.logits) / 6)
    np.testing.assert_allclose(array(batch.logits.grad), 0.95 * 0.5 * 6 * (q - p) / 12, rtol=1e-9, atol=1e-12)


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
