"""DIST against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.distillers.dist import uncorrelated
from tests.models.distillers import reference
from tests.models.distillers.batches import Batch, array, hard_batches, make
from tests.models.distillers.numeric import in_double, slopes
from tests.models.distillers.test_kd import cross_entropy, softmax


def distance(p, q):
    return 1 - np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(p, q, strict=True)])


def both(student, teacher, tau):
    p, q = softmax(student / tau), softmax(teacher / tau)
    return tau**2 * distance(p, q), tau**2 * distance(p.T, q.T)


@pytest.mark.parametrize(("tau", "inter", "intra"), [(1, 1.182697, 1.071423), (4, 17.036873, 15.996033)])
def test_the_written_down_values(tau, inter, intra):
    x = reference.logits()
    p, q = ((z / tau).softmax(1) for z in (x.student, x.teacher))
    assert tau**2 * uncorrelated(p, q).item() == pytest.approx(inter, abs=1e-5)
    assert tau**2 * uncorrelated(p.T, q.T).item() == pytest.approx(intra, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "inter", "intra", "tau"),
    [({}, 2, 2, 1), ({"weight": 3, "inter_weight": 0.5, "intra_weight": 2, "temperature": 4}, 1.5, 6, 4)],
)
def test_values(options, inter, intra, tau):
    batch = Batch(teachers="AI")
    terms = make("dist", "AI", **options)(*batch.arguments())
    assert set(terms) == {"ce", "inter_A", "intra_A", "inter_I", "intra_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    for letter in "AI":
        expected = both(array(batch.logits), array(batch.teachers[letter].logits), tau)
        assert terms[f"inter_{letter}"].item() == pytest.approx(inter * expected[0], rel=1e-4)
        assert terms[f"intra_{letter}"].item() == pytest.approx(intra * expected[1], rel=1e-4)
    assert set(make("dist", **options)(*Batch().arguments())) == {"ce", "inter", "intra"}


@pytest.mark.parametrize("term", ["inter", "intra"])
def test_gradient(term):
    batch, method = Batch(5), make("dist", temperature=2)
    in_double(method, batch)[term].backward()
    t, part = array(batch.teachers["A"].logits), ("inter", "intra").index(term)
    expected = slopes(lambda z: 2 * both(z, t, 2)[part], array(batch.logits))
    np.testing.assert_allclose(batch.logits.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_constant_changes_nothing_a_scale_does():
    """Unlike with standardised logits: the correlation is of probabilities."""
    x = reference.logits()
    p = x.student.softmax(1)
    same = (x.student + torch.randn(4, 1, dtype=torch.double)).softmax(1)
    longer = (2 * x.student).softmax(1)
    assert uncorrelated(same, p).item() == pytest.approx(0, abs=1e-6)
    assert uncorrelated(same.T, p.T).item() == pytest.approx(0, abs=1e-6)
    assert uncorrelated(longer, p) > 0.01


def test_one_clip_with_sound_is_exactly_zero():
    terms = make("dist")(*hard_batches()["one with sound"].arguments())
    assert terms["inter"] == 0 and terms["intra"] == 0


def test_a_class_that_both_never_predict_is_uncorrelated_and_finite():
    p = torch.tensor([[0.7, 0.3, 0.0], [0.2, 0.8, 0.0]], requires_grad=True)
    loss = uncorrelated(p.T, p.detach().T)
    loss.backward()
    assert loss.item() == pytest.approx(1 / 3, abs=1e-5) and p.grad.isfinite().all()


def test_the_share_of_classes_present_is_measured():
    batch, method = Batch(teachers="AI"), make("dist", "AI")
    batch.labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    batch.teachers["I"].mask[:6] = False
    method(*batch.arguments())
    assert {name: round(float(value), 6) for name, value in method.measured.items()} == {
        "classes_present_A": 0.8,
        "classes_present_I": 0.4,
    }
    silent = Batch().silence(list(range(12)))
    single = make("dist")
    single(*silent.arguments())
    assert single.measured["classes_present"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -1}, "weight"),
        ({"inter_weight": -1}, "inter"),
        ({"intra_weight": -1}, "intra"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("dist", options)
    assert "\n" not in str(error.value)
