"""IFD against its equations in NumPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.distillers.ifd import affinities, flow_loss, pairs
from tests.models.distillers.batches import Batch, array, make
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy


def kernels(x):
    """The two matrices before their rows are normalised."""
    distance = np.array(
        [[np.sqrt(((a - b) ** 2).sum() + 1e-6) * (i != j) for j, b in enumerate(x)] for i, a in enumerate(x)]
    )
    return (unit(x) @ unit(x).T + 1) / 2, 1 / (1 + distance)


def layer(s, t):
    value = 0
    for ours, theirs in zip(kernels(s), kernels(t), strict=True):
        q, p = (k / k.sum(1, keepdims=True) for k in (ours, theirs))
        value += ((p - q) * np.log(p / q)).mean()
    return value


@pytest.mark.parametrize("epoch", [None, 0, 1, 9])
@pytest.mark.parametrize(
    ("options", "last", "inner", "decay"),
    [({}, 1, 100, 0.7), ({"weight": 50, "inner_weight": 4, "decay": 0.5}, 50, 200, 0.5)],
)
def test_values(options, last, inner, decay, epoch):
    batch, method = Batch(teachers="AI", dim=10), make("ifd", "AI", dim=10, **options)
    if epoch is not None:
        method.start_epoch(epoch)
    terms = method(*batch.arguments())
    assert set(terms) == {"ce", "last_layer_A", "inner_layers_A", "last_layer_I", "inner_layers_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), batch.labels.numpy()), rel=1e-5)
    for letter, teacher in batch.teachers.items():
        expected = last * layer(array(batch.feature), array(teacher.feature))
        assert terms[f"last_layer_{letter}"].item() == pytest.approx(expected, rel=1e-5)
        layers = [layer(array(batch.stages[n]), array(teacher.blocks[n])) for n in range(3)]
        expected = inner * decay ** (epoch or 0) * sum(layers)
        assert terms[f"inner_layers_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    assert set(make("ifd")(*Batch().arguments())) == {"ce", "last_layer", "inner_layers"}


@pytest.mark.parametrize(
    ("blocks", "chosen"),
    [(1, [1, 1, 1]), (2, [1, 1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3]), (5, [2, 3, 4]), (6, [2, 3, 5]), (8, [2, 4, 6])],
)
def test_stages_meet_blocks_at_the_same_depth(blocks, chosen):
    ours = tuple(torch.tensor(n) for n in range(1, 5))
    theirs = tuple(torch.tensor(n) for n in range(1, blocks + 1))
    assert [(int(s), int(t)) for s, t in pairs(ours, theirs)] == list(enumerate(chosen, 1))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradient(stage):
    batch, method = Batch(5), make("ifd")
    terms = in_double(method, batch)
    teacher, last = batch.teachers["A"], stage == 3
    ours, theirs = (batch.feature, teacher.feature) if last else (batch.stages[stage], teacher.blocks[stage])
    terms["last_layer" if last else "inner_layers"].backward()
    t, weight = array(theirs), 1 if last else 100
    expected = slopes(lambda s: weight * layer(s, t), array(ours))
    np.testing.assert_allclose(ours.grad, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_weight_of_inner_layers_depends_on_the_epoch_alone():
    went, resumed = make("ifd"), make("ifd", seed=1)
    for epoch in range(6):
        went.start_epoch(epoch)
    resumed.load_state_dict(went.state_dict())
    resumed.start_epoch(5)
    ours, theirs = (method(*Batch().arguments()) for method in (went, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    resumed.start_epoch(2000)
    assert resumed(*Batch().arguments())["inner_layers"] == 0


def test_without_blocks_the_last_layer_alone_and_a_word_about_it():
    method, batch = make("ifd", "AI"), Batch(teachers="AI")
    whole = method(*batch.arguments())
    batch.teachers["I"] = batch.teachers["I"]._replace(blocks=())
    with pytest.warns(UserWarning, match="teacher I has no blocks") as told:
        terms = method(*batch.arguments())
    assert len(told) == 1
    del whole["inner_layers_I"]
    assert set(terms) == set(whole) and all(torch.equal(terms[name], whole[name]) for name in terms)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(*batch.arguments())


def test_divergence_is_symmetric_and_zero_for_equal_neighbours():
    s, t = torch.rand(6, 5, dtype=torch.double), torch.rand(6, 8, dtype=torch.double)
    assert flow_loss(s, t).item() == pytest.approx(flow_loss(t, s).item(), rel=1e-9)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double))[0]
    assert flow_loss(s, s @ rotation).item() == pytest.approx(0, abs=1e-12)


def test_clips_that_are_near_to_each_other_keep_their_distances():
    """Where a^2 + b^2 - 2ab would leave nothing in float32; a clip is at distance 0 of itself, not 1e-3."""
    x = 100 + 1e-2 * torch.rand(6, 5)
    k = affinities(x)[1]
    np.testing.assert_allclose(k / k.diag()[:, None], kernels(array(x))[1], rtol=1e-6)
    np.testing.assert_allclose(affinities(x).sum(2), 1, rtol=1e-6)


def test_opposite_features_keep_a_probability():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    assert (affinities(x) > 0).all()
    loss = flow_loss(x, torch.rand(3, 4))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"weight": -1}, "^weight"), ({"inner_weight": -1}, "inner"), ({"decay": 0}, "decay"), ({"decay": 1.1}, "decay")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("ifd", options)
    assert "\n" not in str(error.value)
