"""Metrics of label sets against scikit-learn, against pairs counted in NumPy, and their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from models.label_sets import (
    auroc,
    auroc_within,
    average_precision,
    bootstrap_weights,
    f1_at_1,
    hits,
    lost,
    mixed_classes,
)

TRUTH = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)


def sample(seed: int, clips: int = 60, levels: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with ties, and a truth that they say something about."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (clips,), generator=random).double()
    return scores, scores + torch.randint(levels, (clips,), generator=random) > levels


def by_pairs(scores: np.ndarray, truth: np.ndarray) -> float:
    """P(score+ > score-) + P(equal)/2, pair by pair."""
    above = scores[truth][:, None] - scores[~truth][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def test_a_hit_is_a_top_class_among_the_labels():
    scores = torch.tensor([[0.1, 0.8, 0.1], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
    assert hits(scores, TRUTH).tolist()[:2] == [1, 0] and hits(scores, TRUTH)[2].isnan()
    tied = torch.full((3, 3), 0.5)
    assert hits(tied, TRUTH).tolist()[:2] == [1, 0], "of equal scores the first counts"
    with pytest.raises(ValueError, match="scores: row 1 of 3 is not finite"):
        hits(scores.index_fill(0, torch.tensor([1]), torch.inf), TRUTH)


@pytest.mark.parametrize("decimals", [1, 6])
def test_f1_at_1_is_scikit_learn_s_micro_f1(decimals: int):
    random = np.random.default_rng(decimals)
    scores, truth = random.random((80, 6)).round(decimals), random.random((80, 6)) < 0.3
    kept = truth.any(1)
    predicted = np.eye(6, dtype=bool)[scores.argmax(1)]  # of equal scores the first
    expected = f1_score(truth[kept], predicted[kept], average="micro")
    assert f1_at_1(torch.from_numpy(scores), torch.from_numpy(truth)) == pytest.approx(expected, abs=1e-12)


def test_f1_at_1_is_capped_by_the_number_of_labels():
    assert f1_at_1(TRUTH.double(), TRUTH) == pytest.approx(2 * 2 / (2 + 3)), "always right, and one label not found"
    assert f1_at_1(1 - TRUTH.double(), TRUTH) == 0
    assert f1_at_1(TRUTH[1:2].double(), TRUTH[1:2]) == 1, "one label"
    assert np.isnan(f1_at_1(torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="not finite"):
        f1_at_1(torch.full((3, 3), torch.inf), TRUTH)


@pytest.mark.parametrize("decimals", [1, 6])
def test_average_precision_is_scikit_learn_s(decimals: int):
    random = np.random.default_rng(decimals)
    scores, truth = random.random((80, 6)).round(decimals), random.random((80, 6)) < 0.3
    truth[:, 4] = False
    ours = average_precision(torch.from_numpy(scores), torch.from_numpy(truth)).numpy()
    kept = truth.any(1)
    for label in (0, 1, 2, 3, 5):
        expected = average_precision_score(truth[kept, label], scores[kept, label])
        assert ours[label] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(ours[4]), "a class without clips"
    with pytest.raises(ValueError, match="not finite"):
        average_precision(torch.full((3, 3), torch.nan), TRUTH)


def test_average_precision_of_perfect_and_constant_scores():
    assert average_precision(TRUTH.double(), TRUTH).tolist() == [1, 1, 1]
    assert average_precision(torch.zeros(3, 3), TRUTH).tolist() == [0.5, 0.5, 0.5], "the share of clips with the label"


def test_lost_and_repaired_clips():
    nan = torch.nan
    reference, student = torch.tensor([1, 1, 0, 0, nan]), torch.tensor([1, 0, 1, 0, nan])
    assert (lost(reference, student), lost(student, reference)) == (0.25, 0.25)
    assert lost(reference, reference) == 0
    assert np.isnan(lost(torch.tensor([nan]), torch.tensor([nan])))
    for other in (student[:4], torch.tensor([1, 0, nan, 0, nan])):
        with pytest.raises(ValueError, match="the same clips"):
            lost(reference, other)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_in_order(seed: int):
    scores, truth = sample(seed)
    found = auroc(scores, truth).item()
    assert found == pytest.approx(by_pairs(scores.numpy(), truth.numpy()), abs=1e-12)
    assert found == pytest.approx(auroc(scores.exp() * 3 + 1, truth).item(), abs=1e-12)
    assert found == pytest.approx(1 - auroc(-scores, truth).item(), abs=1e-12)
    weights = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (60, 300)))
    weighted = auroc(scores, truth, weights)
    for column in (0, 249, 250, 299):
        expected = roc_auc_score(truth, scores, sample_weight=weights[:, column])
        assert weighted[column].item() == pytest.approx(expected, abs=1e-12)


def test_auroc_of_separated_constant_and_missing_scores():
    truth = torch.tensor([False, False, True, True])
    assert auroc(truth.double(), truth).item() == 1
    assert auroc(torch.ones(4), truth).item() == 0.5
    assert auroc(-truth.double(), truth).item() == 0
    assert auroc(torch.tensor([0.0, torch.nan, 1.0, torch.nan]), truth).item() == 1
    assert auroc(truth.double(), torch.ones(4, dtype=torch.bool)).isnan().item()


def test_within_classes_a_score_of_the_class_says_nothing():
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 3)
    truth = torch.tensor([True] * 15 + [False] * 5 + [True] * 5 + [False] * 15 + [True, True, False])
    assert mixed_classes(truth, labels).tolist() == [0, 1]
    score = -labels.double()
    assert auroc(score[:40], truth[:40]).item() == pytest.approx(0.75)
    assert auroc_within(score, truth, labels).tolist() == [0.5]
    assert auroc_within(truth.double(), truth, labels, torch.ones(43, 2)).tolist() == [1, 1]
    assert auroc_within(score[40:], truth[40:], labels[40:]).isnan().all(), "no class with 5 clips of both kinds"


def test_a_resample_has_whole_groups():
    groups = torch.tensor([3, 1, 3, 0, 7, 1])
    weights = bootstrap_weights(groups, 400, 0)
    assert weights.shape == (6, 400)
    assert torch.equal(weights[0], weights[2]) and torch.equal(weights[1], weights[5])
    drawn = weights[[0, 1, 3, 4]]
    assert (drawn.sum(0) == 4).all() and drawn.mean(1).tolist() == pytest.approx([1] * 4, abs=0.15)
    assert torch.equal(weights, bootstrap_weights(groups, 400, 0))
    assert not torch.equal(weights, bootstrap_weights(groups, 400, 1))


def test_the_interval_covers_the_area():
    """Normal scores one standard deviation apart have the area Phi(1/sqrt 2) = 0.7602."""
    random, inside = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        truth = torch.arange(120) % 2 == 0
        scores = torch.randn(120, generator=random, dtype=torch.float64) + truth
        weights = bootstrap_weights(torch.arange(120), 200, 0)
        low, high = auroc(scores, truth, weights).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        inside += low <= 0.7602 <= high
    assert 88 <= inside <= 99
