"""DKD against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import build, check_options
from models.distillers.dkd import label_or_not, other_classes, target_class
from models.distillers.kd import tempered_kl
from tests.models.distillers import reference
from tests.models.distillers.batches import Batch, array, make
from tests.models.distillers.numeric import in_double, slopes
from tests.models.distillers.test_kd import cross_entropy, softmax
from tests.models.distillers.test_logits import z_scores


def split(student, teacher, labels, temperature):
    """Means of TC and NC, from probabilities."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    tc, nc = [], []
    for y, theirs, ours in zip(labels, p, q, strict=True):
        b, c = theirs[y], ours[y]
        tc.append(b * np.log(b / c) + (1 - b) * np.log((1 - b) / (1 - c)))
        theirs, ours = np.delete(theirs, y) / (1 - b), np.delete(ours, y) / (1 - c)
        nc.append((theirs * np.log(theirs / ours)).sum())
    return np.mean(tc), np.mean(nc)


def test_the_written_down_values():
    x = reference.logits()
    s, t = x.student / 4, x.teacher / 4
    assert 16 * target_class(s, t, x.labels).item() == pytest.approx(0.865582, abs=1e-6)
    assert 8 * 16 * other_classes(s, t, x.labels).item() == pytest.approx(16.713341, abs=1e-5)


def test_the_parts_add_up_to_the_kl_of_kd():
    """KL = TC + (1 - b^t) NC, clip by clip."""
    x = reference.logits()
    recombined = 0.0
    for i in range(4):
        s, t, y = x.student[i : i + 1] / 4, x.teacher[i : i + 1] / 4, x.labels[i : i + 1]
        rest = label_or_not(t, y)[0, 1].exp()
        recombined += 16 * (target_class(s, t, y) + rest * other_classes(s, t, y)).item() / 4
    assert recombined == pytest.approx(2.639440, abs=1e-6)
    assert recombined == pytest.approx(tempered_kl(x.student, x.teacher, 4.0).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "alpha", "beta", "temperature"),
    [({}, 1, 8, 4), ({"alpha": 0.5, "beta": 2, "temperature": 1}, 0.5, 2, 1)],
)
@pytest.mark.parametrize("standardised", [False, True])
def test_values(options, alpha, beta, temperature, standardised):
    batch = Batch(teachers="AI")
    method = make("dkd", "AI", standardise=standardised, **options)
    method.start_epoch(19)
    terms = method(*batch.arguments())
    labels = batch.labels.numpy()
    assert set(terms) == {"ce", "tckd_A", "nckd_A", "tckd_I", "nckd_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), labels), rel=1e-5)
    for letter in "AI":
        z = [array(batch.logits), array(batch.teachers[letter].logits)]
        tc, nc = split(*map(z_scores, z) if standardised else z, labels, temperature)
        assert terms[f"tckd_{letter}"].item() == pytest.approx(alpha * temperature**2 * tc, rel=1e-4)
        assert terms[f"nckd_{letter}"].item() == pytest.approx(beta * temperature**2 * nc, rel=1e-4)
    assert set(make("dkd", **options)(*Batch().arguments())) == {"ce", "tckd", "nckd"}


@pytest.mark.parametrize("term", ["tckd", "nckd"])
def test_gradient(term):
    batch, method = Batch(5), make("dkd", warmup=0)
    in_double(method, batch)[term].backward()
    t, labels = array(batch.teachers["A"].logits), batch.labels.numpy()
    weight, part = (16, 0) if term == "tckd" else (8 * 16, 1)
    expected = slopes(lambda z: weight * split(z, t, labels, 4)[part], array(batch.logits))
    np.testing.assert_allclose(batch.logits.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("warmup", "epoch", "share"), [(20, None, 0.05), (20, 0, 0.05), (20, 9, 0.5), (20, 19, 1), (20, 90, 1), (0, 0, 1)]
)
def test_warm_up_depends_on_the_epoch_alone(warmup, epoch, share):
    method, full = make("dkd", warmup=warmup), make("dkd", warmup=0)
    if epoch is not None:
        method.start_epoch(90)
        method.start_epoch(epoch)
    ours, theirs = (m(*Batch().arguments()) for m in (method, full))
    assert torch.equal(ours["ce"], theirs["ce"])
    for term in ("tckd", "nckd"):
        torch.testing.assert_close(ours[term], share * theirs[term])


def test_a_constant_added_to_logits_changes_nothing():
    x = reference.logits()
    shifted = x.student + torch.tensor([[7.0], [-2.0], [0.5], [100.0]], dtype=torch.double)
    for loss in (target_class, other_classes):
        torch.testing.assert_close(loss(shifted, x.teacher, x.labels), loss(x.student, x.teacher, x.labels))
        assert loss(shifted, x.student, x.labels).item() == pytest.approx(0, abs=1e-12)


def test_the_label_s_logit_does_not_count_among_the_others():
    x = reference.logits()
    label = torch.nn.functional.one_hot(x.labels, 5)
    before = other_classes(x.student, x.teacher, x.labels)
    assert torch.equal(other_classes(x.student + 5 * label, x.teacher - 3 * label, x.labels), before)
    assert not torch.isclose(target_class(x.student + 5 * label, x.teacher, x.labels), before)


def test_a_sure_teacher_keeps_its_digits():
    """Where 1 - b is below float32's resolution at 1, and where b underflows."""
    z, labels = torch.tensor([[40.0, 0.0, 1.0, -1.0, 0.5], [-300.0, 0.0, 1.0, -1.0, 0.5]]), torch.tensor([0, 0])
    exact = z.double()
    total = exact.logsumexp(1)
    expected = torch.stack([exact[:, 0] - total, exact[:, 1:].logsumexp(1) - total], dim=1)
    torch.testing.assert_close(label_or_not(z, labels).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"alpha": -1}, "alpha"), ({"beta": -1}, "beta"), ({"warmup": -1}, "warmup"), ({"temperature": 0}, "temperature")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("dkd", options)
    assert "\n" not in str(error.value)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes or more, found 1"):
        build("dkd", student_dim=4, stage_dims=(4,) * 4, teacher_dims={"A": 4}, classes=1, clips=9, options={})
