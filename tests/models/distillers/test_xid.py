"""xID against its equation in NumPy."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest
import torch

from models.distillers import check_options
from models.distillers.xid import positive_weights, soft_targets, weighted_cross_entropy
from tests.models.distillers.batches import Batch, array, make, total


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def weights_of(own, known, least=0.25, kappa=0.5, delta=0.0):
    mu, sigma = np.mean(known), np.std(known)
    z = [(x - (mu + delta * sigma)) / (sigma * sqrt(kappa)) for x in own]
    return np.array([least + (1 - least) * (1 + erf(x / sqrt(2))) / 2 for x in z])


def targets_of(v, a, softness=0.5, tau_s=0.02, tau_t=0.07):
    """T(j|i) of the direction v to a, term by term."""
    n = len(v)
    s = np.array([[v[i] @ a[i] / tau_t + a[i] @ v[j] / tau_s + v[j] @ a[j] / tau_t for j in range(n)]
                  for i in range(n)])  # fmt: skip
    s = np.exp(s - s.max(1, keepdims=True))
    return (1 - softness) * np.eye(n) + softness * s / s.sum(1, keepdims=True)


def one_direction(v, a, targets, weights, tau=0.07):
    p = np.exp(v @ a.T / tau)
    p /= p.sum(1, keepdims=True)
    losses = -(targets * np.log(p)).sum(1)
    return (weights * losses).sum() / weights.sum()


class Reference:
    """The embeddings of a method, and the agreement of each clip that it has seen."""

    def __init__(self, method, letter="A"):
        self.w = {name.removeprefix(f"pairs.{letter}."): array(x).copy() for name, x in method.state_dict().items()}
        self.letter, self.known = letter, {}

    def embed(self, name, x):
        return unit(array(x) @ self.w[f"embed_{name}.weight"].T + self.w[f"embed_{name}.bias"])

    def see(self, batch):
        """v and a, whose agreement is noted."""
        v = self.embed("student", batch.feature)
        a = self.embed("teacher", batch.teachers[self.letter].feature)
        self.known |= dict(zip(batch.index.tolist(), (v * a).sum(1), strict=True))
        return v, a

    def plain(self, batch, tau=0.07):
        v, a = self.see(batch)
        one, eye = np.ones(len(v)), np.eye(len(v))
        return (one_direction(v, a, eye, one, tau) + one_direction(a, v, eye, one, tau)) / 2

    def robust(self, batch, tau=0.07, least=0.25, kappa=0.5, delta=0.0, softness=0.5, tau_s=0.02, tau_t=0.07):
        v, a = self.see(batch)
        w = weights_of((v * a).sum(1), list(self.known.values()), least, kappa, delta)
        there, back = targets_of(v, a, softness, tau_s, tau_t), targets_of(a, v, softness, tau_s, tau_t)
        return (one_direction(v, a, there, w, tau) + one_direction(a, v, back, w, tau)) / 2


def test_values_over_two_epochs():
    """The first is plain; its agreements count towards mu and sigma of the second."""
    method = make("xid", "AI")
    references = {letter: Reference(method, letter) for letter in "AI"}
    for epoch, kind in enumerate(("plain", "robust", "robust")):
        method.start_epoch(epoch)
        for seed in (0, 1):
            batch = Batch(teachers="AI", seed=seed + 10 * epoch)
            terms = method(*batch.arguments())
            assert set(terms) == {"ce", "xid_A", "xid_I"}
            for letter, reference in references.items():
                expected = getattr(reference, kind)(batch)
                assert terms[f"xid_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    agreement = method.pairs["A"].agreement
    known = references["A"].known
    assert len(known) < 40
    assert agreement.isinf().sum() == 40 - len(known)
    np.testing.assert_allclose(agreement[list(known)], list(known.values()), atol=1e-6)


def test_values_of_other_options():
    settings = {"kappa": 2.0, "delta": -0.5, "softness": 0.8, "tau_s": 0.1, "tau_t": 0.3}
    method = make("xid", temperature=0.2, min_weight=0.1, weight=3, warmup=0, **settings)
    expected = Reference(method).robust(Batch(), tau=0.2, least=0.1, **settings)
    assert method(*Batch().arguments())["xid"].item() == pytest.approx(3 * expected, rel=1e-5)
    method = make("xid", min_weight=1, softness=0, warmup=0)  # both remedies off
    assert method(*Batch().arguments())["xid"].item() == pytest.approx(Reference(method).plain(Batch()), rel=1e-5)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_warm_up(warmup):
    method = make("xid", warmup=warmup)
    robust = make("xid", warmup=0)(*Batch().arguments())["xid"]
    plain = make("xid", warmup=9)(*Batch().arguments())["xid"]
    assert robust.item() != pytest.approx(plain.item(), rel=1e-2)
    for epoch in range(5):
        method.start_epoch(epoch)
        assert torch.equal(method(*Batch().arguments())["xid"], robust if epoch >= warmup else plain)


def test_weights():
    known = np.random.default_rng(0).normal(0.3, 0.2, 500)
    own = np.linspace(-1, 1, 21)
    holes = torch.cat([torch.tensor(known), torch.full((80,), torch.inf, dtype=torch.float64)])
    ours = positive_weights(torch.tensor(own), holes, 0.25, 0.5, 0.0)
    np.testing.assert_allclose(ours, weights_of(own, known), rtol=1e-12)
    assert (ours.diff() >= 0).all() and ours[0].item() == pytest.approx(0.25) and ours[-1].item() == pytest.approx(1)
    average = positive_weights(torch.tensor([known.mean()]), holes, 0.25, 0.5, 0.0)
    assert average.item() == pytest.approx(0.625)
    strict = positive_weights(torch.tensor(own), holes, 0.25, 0.5, 1.0)
    assert (strict <= ours).all()
    alone = positive_weights(torch.tensor([0.4]), torch.tensor([0.4, torch.inf]), 0.25, 0.5, 0.0)
    assert alone.item() == pytest.approx(0.625)  # no spread: neither good nor bad


def test_soft_targets():
    rng = np.random.default_rng(1)
    v, a = unit(rng.normal(size=(6, 5))), unit(rng.normal(size=(6, 5)))
    similarity = torch.tensor(v @ a.T)
    ours = soft_targets(similarity, 0.5, 0.02, 0.07)
    np.testing.assert_allclose(ours, targets_of(v, a), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(soft_targets(similarity.T, 0.5, 0.02, 0.07), targets_of(a, v), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(ours.sum(1), 1)
    assert (ours.diag() >= 0.5).all()
    assert torch.equal(soft_targets(similarity, 0.0, 0.02, 0.07), torch.eye(6, dtype=torch.float64))


def test_two_clips_that_are_the_same_share_the_target():
    v = unit(np.random.default_rng(2).normal(size=(4, 8)))
    v[3] = v[0]
    targets = soft_targets(torch.tensor(v @ v.T), 0.5, 0.02, 0.07)
    np.testing.assert_allclose(targets[0, [0, 3]], [0.75, 0.25], atol=1e-4)


def test_gradient_of_one_direction():
    """d/d(v_i.a_j) is w_i (P(j|i) - T(j|i)) / (tau sum w)."""
    rng = np.random.default_rng(3)
    similarity, weights = rng.uniform(-1, 1, (5, 5)), rng.uniform(0.2, 1, 5)
    targets = rng.dirichlet(np.ones(5), 5)
    leaf = torch.tensor(similarity, requires_grad=True)
    weighted_cross_entropy(leaf, torch.tensor(targets), torch.tensor(weights), 0.07).backward()
    p = np.exp(similarity / 0.07)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(leaf.grad, weights[:, None] * (p - targets) / 0.07 / weights.sum(), rtol=1e-9)


def test_weights_and_targets_carry_no_gradient():
    """d/ds by central differences of the equation, in which w and T stay as they are."""
    method, batch = make("xid", warmup=0).double(), Batch()
    teacher = batch.teachers["A"]
    batch.feature.data = batch.feature.double()
    batch.teachers["A"] = teacher._replace(feature=teacher.feature.detach().double())
    reference = Reference(method)
    v, a = reference.see(batch)
    w = weights_of((v * a).sum(1), list(reference.known.values()))
    there, back = targets_of(v, a), targets_of(a, v)
    method.terms(*batch.arguments())["xid"].backward()
    for row, column in ((0, 0), (5, 3), (11, 15)):
        values = []
        for shift in (1e-5, -1e-5):
            moved = batch.rows(list(range(12)))
            moved.feature.data[row, column] += shift
            v, a = reference.see(moved)
            values.append((one_direction(v, a, there, w) + one_direction(a, v, back, w)) / 2)
        assert batch.feature.grad[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    for parameter in method.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_both_directions_count_alike():
    """Student and teacher swapped, with their embeddings, make the same loss."""
    batch, method, swapped = Batch(), make("xid", warmup=0), make("xid", warmup=0)
    pair = method.pairs["A"]
    swapped.pairs["A"].embed_student, swapped.pairs["A"].embed_teacher = pair.embed_teacher, pair.embed_student
    expected = method(*batch.arguments())["xid"]
    feature, teacher = batch.feature.data, batch.teachers["A"]
    batch.feature = teacher.feature.detach().requires_grad_()
    batch.teachers["A"] = teacher._replace(feature=feature)
    torch.testing.assert_close(swapped(*batch.arguments())["xid"], expected)


def test_one_clip_is_no_contrast():
    batch = Batch(size=1)
    loss = make("xid", warmup=0)(*batch.arguments())["xid"]
    loss.backward()
    assert loss == 0 and not batch.feature.grad.any()


def test_a_resumed_run_takes_the_same_step():
    def step(method):
        method.start_epoch(1)
        batch = Batch(seed=2)
        loss = total(method(*batch.arguments()))
        loss.backward()
        return loss, batch.feature.grad, method.pairs["A"].agreement

    method = make("xid")
    method(*Batch().arguments())
    state = {key: value.clone() for key, value in method.state_dict().items()}
    resumed, forgetful = make("xid", seed=1), make("xid", seed=1)
    resumed.load_state_dict(state)
    forgetful.load_state_dict({**state, "pairs.A.agreement": torch.full((40,), torch.inf)})
    ours = step(method)
    for one, other in zip(ours, step(resumed), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(ours[0], step(forgetful)[0])


def test_pairs_that_do_not_belong_lose_weight():
    """After training on pairs of which some are mismatched anew each time, these weigh less than the others."""
    torch.manual_seed(0)
    truth = torch.randn(40, 16)
    method = make("xid")
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    for step in range(150):
        method.start_epoch(step // 30)
        batch = Batch()
        batch.index = torch.randperm(40)[:12]
        batch.feature = truth[batch.index]
        teacher = truth[batch.index].clone()
        teacher[9:] = torch.randn(3, 16)  # sound that does not belong
        batch.teachers["A"] = batch.teachers["A"]._replace(feature=teacher)
        optimizer.zero_grad()
        method(*batch.arguments())["xid"].backward()
        optimizer.step()
    pair = method.pairs["A"]
    with torch.no_grad():
        own = pair(batch.feature, teacher, batch.index).diag()
        weights = positive_weights(own, pair.agreement, 0.25, 0.5, 0.0)
    assert weights[:9].min() > weights[9:].max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -1}, "weight"),
        ({"temperature": 0}, "temperature.*above 0"),
        ({"tau_s": 0}, "tau_s"),
        ({"tau_t": -1}, "tau_t"),
        ({"kappa": 0}, "kappa"),
        ({"min_weight": 0}, "min_weight"),
        ({"min_weight": 1.1}, "min_weight"),
        ({"softness": 1.1}, "softness"),
        ({"warmup": -1}, "warmup"),
        ({"warmup": 0.5}, "warmup: expected int"),
        ({"dim": 0}, "dim"),
    ],
)
def test_options(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("xid", options, "AI")
    assert "\n" not in str(error.value)
