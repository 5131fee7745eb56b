"""The contrast that CRD and CMC share, against its equation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import banks, check_options
from models.distillers.banks import draw, log_normaliser, noise_contrast
from tests.models.distillers.batches import CLIPS, Batch, all_finite, array, hard_batches, make, total

METHODS = ("crd", "cmc")


def mask(candidates, most):
    """What is drawn, as a mask over all slots."""
    slots, chosen = draw(candidates, most)
    return torch.zeros_like(candidates).index_copy(1, slots, chosen)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Reference:
    """Weights and banks of one teacher, and a step by loops over clips and negatives, with the programs' epsilon."""

    def __init__(self, method, letter="A", temperature=0.07, momentum=0.5):
        self.w = {name.removeprefix(f"banks.{letter}."): array(x).copy() for name, x in method.state_dict().items()}
        self.banks = dict(zip("st", self.w["vectors"], strict=True))
        self.letter, self.temperature, self.momentum, self.z = letter, temperature, momentum, {}

    def embed(self, name, x):
        return unit(x @ self.w[f"embed_{name}.weight"].T + self.w[f"embed_{name}.bias"])

    def step(self, batch, drawn):
        v = {
            "s": self.embed("student", array(batch.feature)),
            "t": self.embed("teacher", array(batch.teachers[self.letter].feature)),
        }
        index = batch.index.numpy()
        negatives = [np.flatnonzero(row) for row in drawn.numpy()]
        loss = 0
        for side, other in ("st", "ts"):
            raw = [np.exp(self.banks[other][[y, *ks]] @ x / self.temperature)
                   for x, y, ks in zip(v[side], index, negatives, strict=True)]  # fmt: skip
            self.z.setdefault(side, CLIPS * np.concatenate(raw).mean())
            for row in raw:
                o, share = row / self.z[side], (len(row) - 1) / CLIPS
                loss -= np.log(o[0] / (o[0] + share + 1e-7)) / len(raw)
                loss -= np.log(share / (o[1:] + share + 1e-7)).sum() / len(raw)
        for side in "st":
            old = self.banks[side][index]
            self.banks[side][index] = unit(self.momentum * old + (1 - self.momentum) * v[side])
        return loss


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "options", [{}, {"negatives": 6}, {"temperature": 0.3, "momentum": 0.8, "weight": 2, "negatives": 20}]
)
def test_values_over_three_steps(name, options, drawn):
    """The bank of the first step is the second's, Z remains that of the first."""
    method = make(name, "AI", **options)
    settings = {key: options[key] for key in ("temperature", "momentum") if key in options}
    references = {letter: Reference(method, letter, **settings) for letter in "AI"}
    for step in range(3):
        batch = Batch(teachers="AI", seed=step)
        drawn.clear()
        terms = method(*batch.arguments())
        assert set(terms) == {"ce", f"{name}_A", f"{name}_I"}
        for letter, mask in zip("AI", drawn, strict=True):
            expected = options.get("weight", 0.8) * references[letter].step(batch, mask)
            assert terms[f"{name}_{letter}"].item() == pytest.approx(expected, rel=1e-5)
    for letter, reference in references.items():
        ours = method.state_dict()[f"banks.{letter}.vectors"]
        np.testing.assert_allclose(ours, np.stack([reference.banks["s"], reference.banks["t"]]), atol=1e-6)
        log_z = [np.log(reference.z[side]) for side in "st"]
        np.testing.assert_allclose(method.state_dict()[f"banks.{letter}.log_z"], log_z, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_banks_start_uniform(name):
    vectors = make(name).banks["A"].vectors
    bound = 1 / np.sqrt(128 / 3)
    assert vectors.shape == (2, CLIPS, 128)
    assert vectors.abs().max() <= bound
    assert vectors.std().item() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert abs(vectors.mean().item()) < 0.003


def test_a_draw_is_uniform_and_has_no_repeats():
    candidates = torch.ones(2, 10, dtype=torch.bool)
    candidates[0, :4] = False
    torch.manual_seed(0)
    draws = torch.stack([mask(candidates, 3) for _ in range(2000)])
    assert (draws.sum(2) == 3).all()
    assert not draws[:, 0, :4].any()
    share = draws.double().mean(0)
    np.testing.assert_allclose(share[0, 4:], 3 / 6, atol=0.06)
    np.testing.assert_allclose(share[1], 3 / 10, atol=0.06)


def test_a_draw_of_more_than_there_are_takes_all():
    candidates = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.equal(mask(candidates, 3), candidates)
    assert torch.equal(mask(candidates, 2), candidates)


def test_few_negatives_of_many_clips_are_drawn_from_few_slots():
    """As many as asked for, uniformly, of which no slot needs a score that is not among those returned."""
    candidates = torch.ones(3, 1000, dtype=torch.bool)
    candidates[0, :400] = False
    torch.manual_seed(0)
    counts = torch.zeros(3, 1000)
    for _ in range(200):
        slots, chosen = draw(candidates, 20)
        assert len(slots) == len(set(slots.tolist())) == 296 and chosen.shape == (3, 296)
        assert (chosen.sum(1) == 20).all()
        assert torch.equal(chosen[1], chosen[2]), "rows share the permutation"
        counts += torch.zeros(3, 1000).index_copy(1, slots, chosen.float())
    assert not counts[0, :400].any()
    assert counts[0, 400:].mean() == pytest.approx(200 * 20 / 600, rel=1e-4)
    assert counts[1].max() < 200 * 20 / 1000 + 6 * 2, "six standard deviations"


@pytest.mark.parametrize("name", METHODS)
def test_values_do_not_depend_on_how_many_slots_are_scored(name, monkeypatch, drawn):
    """With and without the slots that nobody draws: the same negatives, loss, gradients and banks."""
    found = []
    for spare in (256, 0):
        monkeypatch.setattr(banks, "SPARE", spare)
        method = make(name, negatives=8)
        for step in range(2):
            batch = Batch(seed=step)
            torch.manual_seed(step)
            loss = method(*batch.arguments())[name]
            loss.backward()
        found.append((loss, batch.feature.grad, *method.state_dict().values()))
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense)


def test_normaliser_and_contrast():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 9)) * 5
    own = np.eye(9, dtype=bool)[[3, 1, 8, 0]]
    drawn = (rng.random((4, 9)) < 0.5) & ~own
    z = 9 * np.exp(logits)[own | drawn].mean()
    as_tensors = [torch.from_numpy(x) for x in (logits, own, drawn)]
    assert log_normaliser(as_tensors[0], as_tensors[1] | as_tensors[2], 9).item() == pytest.approx(np.log(z), rel=1e-6)
    o, share = np.exp(logits) / z, drawn.sum(1, keepdims=True) / 9
    odds = o / share
    expected = -(np.log(odds / (odds + 1)) * own + np.log(1 / (odds + 1)) * drawn).sum() / 4
    logits = as_tensors[0].requires_grad_()
    loss = noise_contrast(logits, *as_tensors[1:], torch.tensor(np.log(z)), 9)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    gradient = (odds / (odds + 1) - own) * (own | drawn) / 4  # of a binary cross-entropy
    np.testing.assert_allclose(logits.grad, gradient, atol=1e-7)


def test_contrast_of_huge_logits():
    own = torch.eye(2, 4, dtype=torch.bool)
    for sign in (1, -1):
        logits = torch.full((2, 4), sign * 1e4).requires_grad_()
        loss = noise_contrast(logits, own, ~own, torch.zeros(()), 4)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_gradient_against_differences(name):
    """d/ds by central differences of the reference, whose banks and Z are facts."""
    method, batch = make(name).double(), Batch()
    batch.feature.data = batch.feature.double()
    other = Batch(seed=1)
    other.feature.data = other.feature.double()
    masks = []
    for b in (other, batch):
        teacher = b.teachers["A"]
        b.teachers["A"] = teacher._replace(feature=teacher.feature.detach().double())
        masks.append(method.banks["A"].usable & (torch.arange(CLIPS) != b.index[:, None]))
        if name == "crd":
            masks[-1] &= method.banks["A"].labels != b.labels[:, None]
        if b is other:
            reference = Reference(method)
            reference.step(b, masks[0])
        terms = method.terms(b.student, b.teachers, b.labels, b.index)
    terms[name].backward()
    saved = {side: bank.copy() for side, bank in reference.banks.items()}
    for row, column in ((0, 0), (5, 3), (11, 15)):
        values = []
        for shift in (1e-5, -1e-5):
            reference.banks = {side: bank.copy() for side, bank in saved.items()}
            moved = batch.rows(range(12))
            moved.feature.data[row, column] += shift
            values.append(0.8 * reference.step(moved, masks[1]))
        assert batch.feature.grad[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_both_sides_count_alike(name):
    """Student and teacher swapped, with all that belongs to them, make the same loss."""
    batch, method, swapped = Batch(), make(name), make(name)
    ours, theirs = method.banks["A"], swapped.banks["A"]
    theirs.embed_student, theirs.embed_teacher = ours.embed_teacher, ours.embed_student
    theirs.vectors = ours.vectors.flip(0)
    expected = method(*batch.arguments())[name]
    feature, teacher = batch.feature.data, batch.teachers["A"]
    batch.feature = teacher.feature.detach().requires_grad_()
    batch.teachers["A"] = teacher._replace(feature=feature)
    torch.testing.assert_close(swapped(*batch.arguments())[name], expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_takes_the_same_step(name):
    def step(method):
        torch.manual_seed(7)
        method.start_epoch(1)
        batch = Batch(seed=2)
        loss = total(method(*batch.arguments()))
        loss.backward()
        return loss, batch.feature.grad, *method.state_dict().values()

    method = make(name, negatives=5)
    method(*Batch().arguments())
    state = {key: value.clone() for key, value in method.state_dict().items()}
    resumed = make(name, seed=1, negatives=5)
    resumed.load_state_dict(state)
    for ours, theirs in zip(step(method), step(resumed), strict=True):
        assert torch.equal(ours, theirs)
    fresh = make(name, seed=1, negatives=5)
    assert not torch.equal(step(fresh)[0], step(resumed)[0])


@pytest.mark.parametrize("name", METHODS)
def test_backward_reaches_both_embeddings_and_never_the_banks(name):
    method, batch = make(name), Batch()
    for _ in range(2):  # a bank that was written must not hold the graph of the step before
        total(method(*batch.arguments())).backward()
    for parameter in method.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert batch.feature.grad.abs().sum() > 0
    assert not any(buffer.requires_grad for buffer in method.buffers())


@pytest.mark.parametrize("name", METHODS)
def test_clips_without_sound_are_no_negatives_after_the_first_epoch(name, drawn):
    method = make(name)
    batch = Batch().silence([2, 7])
    method(*batch.arguments())
    everywhere = drawn[0].any(0)
    assert everywhere.all()  # at first, random vectors
    method.start_epoch(1)
    method(*batch.arguments())
    seen = torch.zeros(CLIPS, dtype=torch.bool)
    seen[[int(i) for n, i in enumerate(batch.index) if n not in (2, 7)]] = True
    assert not drawn[1][:, ~seen].any()
    assert drawn[1].any(0)[seen].all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("hard", hard_batches())
def test_finite_where_no_negative_is_left(name, hard):
    """The second epoch begins, and no clip has been seen yet."""
    method = make(name)
    method.start_epoch(1)
    all_finite(method, hard_batches()[hard])


@pytest.mark.parametrize("name", METHODS)
def test_training_tells_clips_apart(name):
    """The embeddings alone, on fixed features: in the end each student's is nearest to its own teacher's."""
    method, batch = make(name), Batch()
    batch.labels, batch.logits = torch.arange(12), torch.zeros(12, 12)  # a class for each
    batch.feature = torch.randn(12, 16)
    optimizer = torch.optim.Adam(method.parameters(), 0.01)
    for epoch in range(100):
        method.start_epoch(epoch)
        loss = method(*batch.arguments())[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student, teacher = method.banks["A"].vectors[:, batch.index]
    assert torch.equal((student @ teacher.T).argmax(1), torch.arange(12))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -0.1}, "weight"),
        ({"temperature": 0}, "temperature.*above 0"),
        ({"negatives": 0}, "negatives"),
        ({"negatives": 2.5}, "negatives: expected int"),
        ({"dim": 0}, "dim"),
        ({"momentum": 1}, "momentum.*below 1"),
        ({"momentum": -0.1}, "momentum"),
        ({"negative": 5}, "did you mean 'negatives'"),
    ],
)
def test_options(name, options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options(name, options, "AI")
    assert "\n" not in str(error.value)
