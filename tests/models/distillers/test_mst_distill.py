"""MST-Distill on stored features against its equations in NumPy, phase by phase."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.distillers import check_options
from models.distillers.mst_distill import TeacherMask, balance
from tests.models.distillers.batches import CLASSES, Batch, all_finite, array, hard_batches, make, total
from tests.models.distillers.numeric import in_double, slopes
from tests.models.distillers.test_kd import cross_entropy, kl

HIDDEN = 12


def mst(epoch=0, **options):
    method = make("mst_distill", "AI", **({"hidden": HIDDEN} | options))
    method.start_epoch(epoch)
    return method


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def masked(weights, name, u):
    """sigmoid(w MHSA(reshape(E u)) + c) * u with three heads."""
    width, dim = 3 * (u.shape[1] // 6), u.shape[1]
    tokens = (u @ weights[f"{name}.tokens.weight"].T + weights[f"{name}.tokens.bias"]).reshape(-1, dim, width)
    qkv = tokens @ weights[f"{name}.attention.in_proj_weight"].T + weights[f"{name}.attention.in_proj_bias"]
    q, k, v = (x.reshape(-1, dim, 3, width // 3).swapaxes(1, 2) for x in np.split(qkv, 3, -1))
    heads = softmax(q @ k.swapaxes(2, 3) / np.sqrt(width / 3)) @ v
    joined = heads.swapaxes(1, 2).reshape(-1, dim, width) @ weights[f"{name}.attention.out_proj.weight"].T
    joined = joined + weights[f"{name}.attention.out_proj.bias"]
    logits = (joined @ weights[f"{name}.factor.weight"].T + weights[f"{name}.factor.bias"])[..., 0]
    return u / (1 + np.exp(-logits))


def small_teacher(weights, name, x, layer=None):
    """The logits of a teacher, with its mask on one layer."""
    for number, part in enumerate(("first", "second")):
        x = x @ weights[f"teachers.{name}.{part}.weight"].T + weights[f"teachers.{name}.{part}.bias"]
        x = np.maximum(masked(weights, f"masks.{2 * 'MA'.index(name) + number}", x) if number == layer else x, 0)
    return x @ weights[f"teachers.{name}.last.weight"].T + weights[f"teachers.{name}.last.bias"]


def in_numpy(method, batch):
    """Weights, features of both teachers, and the logits (R, N, C) of the specialised ones."""
    weights = {name: array(value) for name, value in method.state_dict().items()}
    audio, image = (array(batch.teachers[letter].feature) for letter in "AI")
    features = {"M": np.hstack([audio, image]), "A": audio}
    special = [small_teacher(weights, name, features[name], layer) for name in "MA" for layer in (0, 1)]
    return weights, features, np.stack(special)


def distance(teacher, student, temperature=4.0):
    each = [kl(s[None], t[None], temperature) for t, s in zip(teacher, student, strict=True)]
    return temperature**2 * np.array(each)


def gates_of(weights, z):
    for layer in (0, 1):
        z = z @ weights[f"gate.{layer}.weight"].T + weights[f"gate.{layer}.bias"]
    return softmax(z)


def test_the_written_down_values_of_the_balance():
    gates = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.double)
    assert 4 * balance(gates.mean(0).log()).item() == pytest.approx(0.049857, abs=1e-6)
    assert balance(gates.mean(0).log()).item() == pytest.approx(0.012464, abs=1e-6)
    assert balance(torch.full((4,), 0.25).log()).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("temperature", [4.0, 1.5])
def test_values_of_the_first_phase(temperature):
    batch, method = Batch(teachers="AI"), mst(temperature=temperature, label_weight=3, warmup=2, epoch=1)
    terms = method(*batch.arguments())
    weights, features, special = in_numpy(method, batch)
    z, labels = array(batch.logits), batch.labels.numpy()
    logits = [z, small_teacher(weights, "M", features["M"]), small_teacher(weights, "A", features["A"])]
    expected = {
        "ce": cross_entropy(z, labels),  # the weights of the second phase do not count
        "teachers": sum(cross_entropy(x, labels) for x in logits[1:]),
        "mutual": sum(distance(p, q, temperature).mean() for p in logits for q in logits if p is not q),
        "masks": sum(distance(z, x, temperature).mean() for x in special),
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_values_of_the_second_phase(top):
    batch, method = Batch(teachers="AI"), mst(epoch=1, top=top, weight=2, label_weight=0.5, balance_weight=7)
    terms = method(*batch.arguments())
    weights, _, special = in_numpy(method, batch)
    z, labels = array(batch.logits), batch.labels.numpy()
    gates = gates_of(weights, z)
    each = np.stack([distance(x, z) for x in special], 1)
    best = np.argsort(-gates, 1)[:, :top]
    mean = gates.mean(0)
    expected = {
        "ce": 0.5 * cross_entropy(z, labels),
        "distil": 2 * np.take_along_axis(each, best, 1).mean(),
        "balance": 7 * (0.25 * np.log(0.25 / mean)).sum() / 4,
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    if top == 4:
        assert terms["distil"].item() == pytest.approx(2 * each.mean(), rel=1e-4), "whatever the gate says"


def test_weights_fall_as_in_the_program():
    method = mst(warmup=2)
    expected = {0: (1, 1), 1: (0.5, 0.9), 10: (0.5, 0.9), 11: (0.5, 0.81), 30: (0.5, 0.729), 31: (0.25, 0.6561)}
    for since, factors in expected.items():
        method.start_epoch(2 + since)
        assert method.factors() == pytest.approx(factors), since
    method = mst(weight_period=1, balance_period=3, epoch=3)
    assert method.factors() == pytest.approx((0.25, 0.9))


def test_masks_lie_between_0_and_1_and_one_that_is_1_changes_nothing():
    mask, x = TeacherMask(13), torch.randn(5, 13, generator=torch.Generator().manual_seed(1))
    assert mask.width == 6
    factor = mask(x) / x
    assert factor.min() > 0 and factor.max() < 1 and factor.std() > 0
    method, batch = mst(), Batch(teachers="AI")
    for each in method.masks:
        nn.init.zeros_(each.factor.weight)
        nn.init.constant_(each.factor.bias, 40)
    features = {
        "M": torch.cat([batch.teachers[letter].feature for letter in "AI"], 1),
        "A": batch.teachers["A"].feature,
    }
    for name, pair in zip("MA", method.specialised(features).unflatten(0, (2, 2)), strict=True):
        for masked_logits in pair:
            torch.testing.assert_close(masked_logits, method.teachers[name](features[name]))


def learners(method, batch, term):
    """The modules of the method that a term's gradient reaches, and whether it reaches the student."""
    method(*batch.arguments())[term].backward()
    names = {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    return names, batch.logits.grad is not None and bool(batch.logits.grad.any())


@pytest.mark.parametrize(
    ("epoch", "term", "modules", "student"),
    [
        (0, "teachers", {"teachers"}, False),
        (0, "mutual", {"teachers"}, True),
        (0, "masks", {"masks"}, False),
        (1, "distil", set(), True),
        (1, "balance", {"gate"}, True),
    ],
)
def test_who_learns_from_what(epoch, term, modules, student):
    batch = Batch(teachers="AI")
    assert learners(mst(epoch), batch, term) == (modules, student)
    assert batch.feature.grad is None and all(teacher.feature.grad is None for teacher in batch.teachers.values())


def test_the_gate_learns_from_the_balance_alone():
    """Routing is not trained to help: without the balance the gate has no gradient at all."""
    batch, method = Batch(teachers="AI"), mst(epoch=1, balance_weight=0)
    total(method(*batch.arguments())).backward()
    assert not any(p.grad is not None and p.grad.any() for p in method.gate.parameters())


def test_both_sides_of_the_first_phase_learn():
    """Nothing is detached: the student's gradient is that of all six divergences, four of which it is in."""
    batch, method = Batch(3, teachers="AI"), mst()
    in_double(method, batch)["mutual"].backward()
    weights, features, _ = in_numpy(method, batch)
    others = [small_teacher(weights, name, features[name]) for name in "MA"]

    def loss(z):
        return sum(distance(x, z).mean() + distance(z, x).mean() for x in others)

    np.testing.assert_allclose(batch.logits.grad, slopes(loss, array(batch.logits)), rtol=1e-4, atol=1e-7)


def test_gradient_of_the_second_phase():
    batch, method = Batch(4, teachers="AI"), mst(epoch=1, top=2)
    terms = in_double(method, batch)
    (terms["distil"] + terms["balance"]).backward()
    weights, _, special = in_numpy(method, batch)
    best = np.argsort(-gates_of(weights, array(batch.logits)), 1)[:, :2]

    def loss(z):
        each = np.take_along_axis(np.stack([distance(x, z) for x in special], 1), best, 1)
        return each.mean() + (0.25 * np.log(0.25 / gates_of(weights, z).mean(0))).sum() / 4

    np.testing.assert_allclose(batch.logits.grad, slopes(loss, array(batch.logits)), rtol=1e-4, atol=1e-7)


def test_random_routing_chooses_every_teacher_of_a_clip_once():
    method, gates = mst(routing="random", top=3), torch.tensor([[5.0, 1, 0, -9]]).expand(4000, 4)
    found = method.chosen(gates)
    assert (found.sort(1).values.diff(dim=1) > 0).all()
    np.testing.assert_allclose(np.bincount(found[:, 0], minlength=4) / 4000, 0.25, atol=0.03)
    assert mst(top=3).chosen(gates)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("epoch", [0, 1])
def test_clips_that_one_teacher_does_not_know_do_not_count(epoch):
    """Whichever of the teachers it is; the cross-entropy is that of all clips."""
    batch, method, silent = Batch(teachers="AI"), mst(epoch), [0, 4, 7]
    rest = batch.rows([row for row in range(12) if row not in silent])
    expected = mst(epoch)(*rest.arguments())
    for letter, rows in (("A", silent[:1]), ("I", silent[1:])):
        teacher, mask = batch.teachers[letter], torch.ones(12, dtype=torch.bool)
        mask[rows] = False
        feature = teacher.feature.detach().masked_fill(~mask[:, None], torch.nan)
        batch.teachers[letter] = teacher._replace(mask=mask, feature=feature)
    found = method(*batch.arguments())
    for name in found.keys() - {"ce"}:
        torch.testing.assert_close(found[name], expected[name], msg=name)
    total(found).backward()
    assert batch.logits.grad.isfinite().all()
    batch.teachers["I"] = batch.teachers["I"]._replace(mask=torch.zeros(12, dtype=torch.bool))
    assert all(value == 0 for name, value in mst(epoch)(*batch.arguments()).items() if name != "ce")


@pytest.mark.parametrize("hard", hard_batches())
@pytest.mark.parametrize("options", [{}, {"top": 3}, {"routing": "random"}], ids=str)
def test_the_second_phase_is_finite(hard, options):
    all_finite(mst(epoch=1, **options), hard_batches("AI")[hard])


def test_sizes():
    method = make("mst_distill", "AI", dim=7, hidden=20)
    assert method.teachers["M"].first.weight.shape == (20, 14) and method.teachers["A"].first.weight.shape == (20, 7)
    assert method.teachers["A"].second.weight.shape == (10, 20) and method.teachers["A"].last.out_features == CLASSES
    assert [mask.tokens.out_features for mask in method.masks] == [20 * 9, 10 * 3, 20 * 9, 10 * 3]
    assert [layer.out_features for layer in method.gate] == [2 * CLASSES, 4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -1}, "^weight"),
        ({"temperature": 0}, "temperature"),
        ({"hidden": 11}, "hidden must be 12"),
        ({"top": 5}, r"top must be in 1\.\.4"),
        ({"warmup": 0}, "warmup"),
        ({"balance_period": 0}, "balance_period"),
        ({"routing": "gates"}, "'gate'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("mst_distill", options)
    assert "\n" not in str(error.value)


def test_one_teacher_is_not_enough():
    with pytest.raises(ValueError, match="does not support teachers 'A'; expected 'AI'"):
        check_options("mst_distill", {}, "A")
