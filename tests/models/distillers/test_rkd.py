"""RKD against its equations in NumPy, index by index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.distillers.rkd import relations
from tests.models.distillers.batches import DIM, Batch, array, make, total
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy


def smooth_l1(a, b):
    difference = np.abs(a - b)
    return np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()


def distances(x):
    d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return d / d[~np.eye(len(x), dtype=bool)].mean()


def angles(x):
    """Cosine of the angle at i between j and k; 0 where two of the three are the same."""
    a = np.zeros((len(x),) * 3)
    for i, j, k in np.ndindex(a.shape):
        if i not in (j, k):
            a[i, j, k] = unit(x[j] - x[i]) @ unit(x[k] - x[i])
    return a


@pytest.mark.parametrize(
    ("options", "d", "a"),
    [({}, 25, 50), ({"distance_weight": 2, "angle_weight": 3.0}, 2, 3), ({"angle_weight": 0}, 25, 0)],
)
def test_values(options, d, a):
    batch = Batch(teachers="AI", dim=10)
    terms = make("rkd", "AI", dim=10, **options)(*batch.arguments())
    assert set(terms) == {"ce", "distance_A", "angle_A", "distance_I", "angle_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    s = array(batch.feature)
    for letter in "AI":
        t = array(batch.teachers[letter].feature)
        expected = d * smooth_l1(distances(s), distances(t))
        assert terms[f"distance_{letter}"].item() == pytest.approx(expected, rel=1e-5)
        expected = a * smooth_l1(angles(s), angles(t))
        assert terms[f"angle_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    assert set(make("rkd")(*Batch().arguments())) == {"ce", "distance", "angle"}


def test_both_branches_of_smooth_l1():
    batch = Batch()
    batch.feature.data[0] += 10
    s, t = array(batch.feature), array(batch.teachers["A"].feature)
    assert (np.abs(distances(s) - distances(t)) > 1).any()
    ours = make("rkd")(*batch.arguments())["distance"].item()
    assert ours == pytest.approx(25 * smooth_l1(distances(s), distances(t)), rel=1e-5)


@pytest.mark.parametrize(("name", "relation", "weight"), [("distance", distances, 25), ("angle", angles, 50)])
def test_gradient(name, relation, weight):
    batch = Batch(5)
    in_double(make("rkd"), batch)[name].backward()
    theirs = relation(array(batch.teachers["A"].feature))
    expected = slopes(lambda s: weight * smooth_l1(relation(s), theirs), array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_motions_and_scale_do_not_matter():
    x = torch.rand(6, 5, dtype=torch.double)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double))[0]
    for ours, theirs in zip(relations(x), relations(3 * x @ rotation + 7), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_clips_that_are_near_to_each_other_keep_their_distances():
    """Where a^2 + b^2 - 2ab would leave nothing in float32."""
    x = 100 + 1e-2 * torch.rand(6, 5)
    np.testing.assert_allclose(relations(x)[0], distances(array(x)), rtol=1e-5)
    np.testing.assert_allclose(relations(x)[1], angles(array(x)), atol=1e-5)


@pytest.mark.parametrize("same", [[0, 0, 1, 2, 3], [0, 0, 0, 1, 2], [0, 0, 0, 0, 0]])
def test_equal_clips_do_not_explode(same):
    """The student sees no difference where the teacher does: a direction to nowhere must not divide by nothing."""
    batch = Batch(5)
    batch.feature.data = batch.feature.data[same]
    loss = total(make("rkd")(*batch.arguments()))
    loss.backward()
    assert loss.isfinite() and batch.feature.grad.abs().max() < 1e3
    distance, angle = relations(batch.feature.detach())
    assert (distance.diag() == 0).all() and (angle[0, 1] == 0).all()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_fewer_than_three_clips_have_no_angles(left):
    batch = Batch().silence(list(range(12 - left)))
    terms = make("rkd")(*batch.arguments())
    assert terms["distance"] == 0 == terms["angle"]
    total(terms).backward()
    assert torch.equal(batch.feature.grad, torch.zeros(12, DIM))


@pytest.mark.parametrize("option", ["distance_weight", "angle_weight"])
def test_options_out_of_range(option):
    with pytest.raises(ValueError, match=f"{option}.*negative"):
        check_options("rkd", {option: -1})
