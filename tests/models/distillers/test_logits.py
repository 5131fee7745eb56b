"""Operations on logits against NumPy, and logit standardisation in KD and DKD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import build, check_options
from models.distillers.kd import tempered_kl
from models.distillers.logits import confidence, correlation, kl_by_row, standardise, without_label
from models.outputs import StudentOutput
from tests.models.distillers import reference
from tests.models.distillers.batches import Batch, all_finite, array, hard_batches, make, total
from tests.models.distillers.numeric import in_double, slopes
from tests.models.distillers.test_kd import kl


def z_scores(x):
    return (x - x.mean(1, keepdims=True)) / (1e-7 + x.std(1, ddof=1, keepdims=True))


def test_the_written_down_value():
    x = reference.logits()
    found = tempered_kl(standardise(x.student), standardise(x.teacher), 2.0)
    assert found.item() == pytest.approx(0.777271, abs=1e-6)
    assert 9 * found.item() == pytest.approx(6.995436, abs=1e-5)
    biased = tempered_kl(
        standardise(x.student) * (5 / 4) ** 0.5, standardise(x.teacher) * (5 / 4) ** 0.5, 2.0
    )  # what NumPy's std would give
    assert biased.item() == pytest.approx(0.961952, abs=1e-6)


def test_kl_by_row():
    x = reference.logits()
    assert kl_by_row(x.teacher, x.student).mean().item() == pytest.approx(1.613770, abs=1e-6)
    assert kl_by_row(x.teacher, x.teacher).abs().max() == 0


def test_without_label_keeps_the_other_classes_in_order():
    logits = torch.arange(12).view(3, 4)
    assert without_label(logits, torch.tensor([0, 3, 2])).tolist() == [[1, 2, 3], [4, 5, 6], [8, 9, 11]]


def test_correlation():
    a, b = torch.randn(6, 9, dtype=torch.double), torch.randn(6, 9, dtype=torch.double)
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(array(a), array(b), strict=True)]
    np.testing.assert_allclose(correlation(a, b), expected, rtol=1e-6)
    np.testing.assert_allclose(correlation(a, 3 * a - 1), 1, rtol=1e-6)
    assert correlation(torch.ones(2, 5), torch.randn(2, 5)).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-3, 0.2, 5.0])
def test_the_scale_and_the_mean_of_logits_do_not_count(scale):
    z = 3 * torch.randn(7, 5, dtype=torch.double)
    shifts = torch.randn(7, 1, dtype=torch.double)
    torch.testing.assert_close(standardise(scale * z + shifts), standardise(z), atol=1e-3, rtol=1e-3)
    assert tempered_kl(standardise(scale * z + shifts), standardise(z), 2.0).item() == pytest.approx(0, abs=1e-6)
    assert tempered_kl(standardise(-scale * z), standardise(z), 2.0) > 0.1


def test_a_flat_teacher_is_blown_up_to_the_scale_of_a_sure_one():
    sure = torch.tensor([[9.0, -3.0, -2.0, -2.0, -2.0]])
    torch.testing.assert_close(standardise(0.01 * sure), standardise(sure), atol=1e-4, rtol=1e-4)


def with_logits(name, z_s, z_t, labels, **options):
    """A method of as many classes as the logits have, and its terms."""
    batch = Batch(len(labels))
    student = StudentOutput(z_s, batch.feature, batch.map, batch.student.stages)
    teacher = batch.teachers["A"]._replace(logits=z_t)
    dims = {"student_dim": 16, "stage_dims": (2, 4, 8, 16), "teacher_dims": {"A": 16}}
    method = build(name, **dims, classes=z_s.shape[1], clips=40, options=options)
    return method(student, {"A": teacher}, labels, batch.index)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_two_classes_leave_no_gradient(name):
    z_s, z_t = (torch.randn(8, 2) for _ in range(2))
    z_s.requires_grad_()
    terms = with_logits(name, z_s, z_t, torch.arange(8) % 2, standardise=True)
    total({term: value for term, value in terms.items() if term != "ce"}).backward()
    assert z_s.grad.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["kd", "dkd", "dist"])
@pytest.mark.parametrize("extreme", [1e4, 0.0])
def test_values_and_gradients_of_extreme_logits_are_finite(name, extreme):
    signs = torch.randn(8, 5, generator=torch.Generator().manual_seed(2)).sign()
    for ours, theirs in ((extreme, extreme), (extreme, 1.0), (1.0, extreme)):
        for standardised in {"kd": (False, True), "dkd": (False, True), "dist": (None,)}[name]:
            options = {} if standardised is None else {"standardise": standardised}
            z_s, z_t = (ours * signs).requires_grad_(), theirs * signs.flip(0)
            terms = with_logits(name, z_s, z_t, torch.arange(8) % 5, **options)
            total(terms).backward()
            assert total(terms).isfinite() and z_s.grad.isfinite().all()


@pytest.mark.parametrize("teachers", ["A", "AI"])
def test_kd_on_standardised_logits(teachers):
    batch = Batch(teachers=teachers)
    options = {"standardise": True, "temperature": 2, "weight": 9}
    terms = make("kd", teachers, **options)(*batch.arguments())
    for letter in teachers:
        expected = 9 * 4 * kl(z_scores(array(batch.logits)), z_scores(array(batch.teachers[letter].logits)), 2)
        assert terms["kd" if teachers == "A" else f"kd_{letter}"].item() == pytest.approx(expected, rel=1e-5)


def test_gradient_of_kd_on_standardised_logits():
    batch, method = Batch(5), make("kd", standardise=True, temperature=2, weight=9)
    in_double(method, batch)["kd"].backward()
    t = z_scores(array(batch.teachers["A"].logits))
    expected = slopes(lambda z: 36 * kl(z_scores(z), t, 2), array(batch.logits))
    np.testing.assert_allclose(batch.logits.grad, expected, rtol=1e-5, atol=1e-7)


def test_a_silent_clip_counts_once_whatever_the_weight():
    """With the weight 9 of standardised KD a silent clip would else count 91 times as much as another."""
    batch = Batch().silence([1, 2])
    each = torch.nn.functional.cross_entropy(batch.logits, batch.labels, reduction="none")
    weights = torch.full((12,), 0.1).index_fill(0, torch.tensor([1, 2]), 1.0)
    terms = make("kd", standardise=True, temperature=2, weight=9)(*batch.arguments())
    torch.testing.assert_close(terms["ce"], (weights * each).mean())


def test_confidence_correlates_the_length_of_logits_with_being_right():
    batch = Batch(teachers="AI")
    teacher = batch.teachers["A"]
    right = torch.arange(12) % 2 == 0
    batch.labels = torch.where(right, teacher.logits.argmax(1), teacher.logits.argmin(1))
    found = confidence(batch.teachers, batch.labels)
    expected = np.corrcoef(array(teacher.logits).std(1, ddof=1), right.double())[0, 1]
    assert set(found) == {"teacher_confidence_A", "teacher_confidence_I"}
    assert found["teacher_confidence_A"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_confidence_is_measured_and_finite(name):
    for hard, batch in hard_batches().items():
        method = make(name, standardise=True)
        all_finite(method, batch)
        assert method.measured["teacher_confidence"].isfinite(), hard
    assert method.measured["teacher_confidence"] == 0, "none with sound"
    plain = make(name)
    plain(*Batch().arguments())
    assert not plain.measured


def test_one_class_cannot_be_standardised():
    dims = {"student_dim": 16, "stage_dims": (2, 4, 8, 16), "teacher_dims": {"A": 16}}
    with pytest.raises(ValueError, match="standardise needs two classes"):
        build("kd", **dims, classes=1, clips=9, options={"standardise": True})
    check_options("kd", {"standardise": True})
