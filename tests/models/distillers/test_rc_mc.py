"""RC-MC against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.distillers import Sizes
from models.distillers.rc_mc import RcMc, multimodal_contrast, robust_clustering
from tests.models.distillers.batches import CLASSES, CLIPS, DIM, STAGES, Batch, array, total
from tests.models.distillers.test_kd import cross_entropy, softmax


def make(teachers="A", width=DIM, **options):
    torch.manual_seed(0)
    return RcMc(Sizes(DIM, STAGES, dict.fromkeys(teachers, width), CLASSES, CLIPS), **options)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clustering(z, centres, labels, tau):
    p = softmax(z @ unit(centres).T / tau)[np.arange(len(z)), labels]
    return np.log(1 - p).mean()


def contrast(s, t, tau, self_similarity):
    """Loop by loop as the equation stands."""
    loss = 0.0
    for i in range(len(s)):
        for m, anchor in enumerate((s[i], t[i])):
            terms = {
                (other, j): np.exp(z[j] @ anchor / tau)
                for other, z in enumerate((s, t))
                for j in range(len(s))
                if self_similarity or (other, j) != (m, i)
            }
            loss -= np.log(sum(v for (_, j), v in terms.items() if j == i) / sum(terms.values()))
    return loss / len(s)


def embeddings(method, batch, letter):
    w = {name: array(value) for name, value in method.state_dict().items()}
    s = array(batch.feature) @ w["student.weight"].T + w["student.bias"]
    t = array(batch.teachers[letter].feature)
    return unit(s), unit(t @ w[f"teachers.{letter}.weight"].T + w[f"teachers.{letter}.bias"]), w["centres"]


@pytest.mark.parametrize(
    ("options", "beta", "tau", "keep", "weight"),
    [
        ({}, 0.7, 1, False, 1),
        ({"beta": 0.2, "temperature": 0.1, "dim": 8, "self_similarity": True, "weight": 3}, 0.2, 0.1, True, 3),
        ({"temperature": 0.3, "dim": 5}, 0.7, 0.3, False, 1),
    ],
)
def test_values(options, beta, tau, keep, weight):
    batch, method = Batch(teachers="AI"), make("AI", **options)
    terms, labels = method(*batch.arguments()), batch.labels.numpy()
    assert set(terms) == {"ce", "clustering_A", "clustering_I", "contrast_A", "contrast_I"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), labels), rel=1e-5)
    for letter in "AI":
        s, t, centres = embeddings(method, batch, letter)
        both = clustering(s, centres, labels, tau) + clustering(t, centres, labels, tau)
        assert terms[f"clustering_{letter}"].item() == pytest.approx(weight * beta * both, rel=1e-5)
        pairs = weight * (1 - beta) * contrast(s, t, tau, keep)
        assert terms[f"contrast_{letter}"].item() == pytest.approx(pairs, rel=1e-5)
    single = make(**options)(*Batch().arguments())
    assert set(single) == {"ce", "clustering", "contrast"}


def test_centres_start_orthonormal_and_their_length_does_not_matter():
    batch, method = Batch(), make()
    torch.testing.assert_close(method.centres @ method.centres.T, torch.eye(CLASSES), atol=1e-5, rtol=0)
    before = method(*batch.arguments())
    with torch.no_grad():
        method.centres *= torch.arange(1, CLASSES + 1)[:, None]
    for name, value in method(*batch.arguments()).items():
        torch.testing.assert_close(value, before[name])


def test_clustering_is_exact_where_the_label_is_certain():
    """p = 1 to the last bit of float32: log(1 - p) would be minus infinity."""
    z, centres = torch.eye(2)[:1].requires_grad_(), torch.eye(2)
    loss = robust_clustering(z, centres, torch.tensor([0]), 0.01)
    assert loss.item() == pytest.approx(-100, rel=1e-6)  # 1 - p = exp(-1/tau) / (1 + exp(-1/tau))
    loss.backward()
    assert z.grad.isfinite().all()


def test_the_pull_of_the_label_is_its_probability():
    """d L_r / d logit of the label is -p / N (centres are the axes, so logits are z / tau)."""
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    robust_clustering(z, torch.eye(4, dtype=torch.float64), labels, 0.5).backward()
    p = softmax(array(z) / 0.5)
    rest = p / (1 - p[np.arange(6), labels])[:, None]  # the softmax of the others
    rest[np.arange(6), labels] = 0
    np.testing.assert_allclose(array(z.grad), (rest - p) / 0.5 / 6, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", [False, True])
def test_contrast_s_gradient_is_that_of_finite_differences(keep):
    rng = torch.Generator().manual_seed(2)
    s, t = (torch.randn(4, 3, dtype=torch.float64, generator=rng).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda s, t: multimodal_contrast(s, t, 0.5, keep), (s, t))
    expected = multimodal_contrast(t, s, 0.5, keep)  # neither modality comes first
    torch.testing.assert_close(multimodal_contrast(s, t, 0.5, keep), expected)


def test_without_self_similarity_one_clip_has_nothing_to_contrast_with():
    s, t = functional.normalize(torch.randn(2, 1, 4), dim=2)
    assert multimodal_contrast(s, t, 1.0, False).item() == pytest.approx(0, abs=1e-6)
    assert multimodal_contrast(s, t, 1.0, True).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", ["clustering", "contrast"])
def test_student_and_embeddings_learn(term):
    batch, method = Batch(), make()
    total({term: method(*batch.arguments())[term]}).backward()
    assert batch.feature.grad.abs().sum() > 0
    assert batch.teachers["A"].feature.grad is None
    assert (method.centres.grad is not None) == (term == "clustering")
    for layer in (method.student, method.teachers["A"]):
        assert layer.weight.grad.abs().sum() > 0


def test_widths():
    method = make(width=10, dim=24)
    assert method.teachers["A"].weight.shape == (24, 10)
    assert method.student.weight.shape == (24, DIM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 1.1}, "beta"),
        ({"temperature": 0}, "temperature"),
        ({"dim": 4}, "dim must be at least 5"),
        ({"weight": -1}, "weight"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


def test_one_class_is_an_error():
    with pytest.raises(ValueError, match="two classes"):
        RcMc(Sizes(DIM, STAGES, {"A": 7}, 1, CLIPS))
