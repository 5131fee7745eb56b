from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import digamma

from avdistill.reporting.information import (
    BATCH,
    NOISE,
    cka,
    contrastive_information,
    fit_critic,
    kraskov,
    label_information,
    log_odds_information,
    log_softmax,
    nearest_information,
    predictor_of,
    probe,
    residuals,
    several_folds,
    shared_beyond,
    shared_information,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def pair(seed: int, clips: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian columns with correlation `rho`."""
    first, other = normal(seed, 2, clips, 1)
    return first, rho * first + np.sqrt(1 - rho**2) * other


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_the_information_of_gaussian_pairs(rho: float):
    groups = np.arange(2000) // 4
    found = np.mean([shared_information(*pair(seed, 2000, rho), groups) for seed in range(5)])
    assert found == pytest.approx(-0.5 * np.log(1 - rho**2), abs=0.02)


def test_several_dimensions_add_up():
    pairs = [pair(seed, 2000, rho) for seed, rho in enumerate((0.3, 0.6, 0.8))]
    first, second = (np.hstack(side) @ normal(9 + side[0].size, 3, 3) for side in zip(*pairs, strict=True))
    expected = -0.5 * np.log(1 - np.square([0.3, 0.6, 0.8])).sum()
    assert shared_information(first, second, np.arange(2000)) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("clips", [500, 1000])
def test_independent_features_share_nothing(clips: int):
    found = [
        shared_information(normal(seed, clips, 32), normal(50 + seed, clips, 32), np.arange(clips)) for seed in range(5)
    ]
    assert max(found) < NOISE


def test_scale_shift_and_constant_columns_do_not_matter():
    first, second = pair(1, 400, 0.6)
    groups = np.arange(400)
    padded = np.hstack([1000 * first + 7, np.full((400, 3), 2.5)])
    assert shared_information(padded, second, groups) == pytest.approx(
        shared_information(first, second, groups), rel=0.01
    )
    assert shared_information(np.ones((400, 3)), second, groups) == 0


def test_what_is_shared_beyond_the_label():
    """Both sides know the class: they share much, but given the class only what both see of the variant."""
    rng = np.random.default_rng(0)
    labels, variants = rng.integers(0, 5, 1500), rng.integers(0, 2, 1500)
    centres, groups = 3 * rng.normal(size=(5, 8)), np.arange(1500)
    sound, picture = (centres[labels] + rng.normal(size=(1500, 8)) for _ in range(2))
    assert shared_information(sound, picture, groups) > 1
    assert shared_beyond(sound, picture, labels, groups) < NOISE
    for side in (sound, picture):
        side[:, 0] += 2 * variants
    assert shared_beyond(sound, picture, labels, groups) > 2 * NOISE
    assert np.allclose([residuals(sound, labels)[labels == label].mean(0) for label in range(5)], 0)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_neighbours_and_contrast_on_gaussian_pairs(rho: float):
    groups, truth = np.arange(2000), -0.5 * np.log(1 - rho**2)
    pairs = [pair(seed, 2000, rho) for seed in range(5)]
    assert np.mean([nearest_information(*sides, groups) for sides in pairs]) == pytest.approx(truth, abs=0.03)
    bound = np.mean([contrastive_information(*sides, groups) for sides in pairs])
    assert 0.7 * truth <= bound <= truth + 0.01, "a lower bound"


def test_neighbours_are_counted_as_in_the_definition():
    first, second = normal(1, 70, 2), normal(2, 70, 3)
    second[:, 0] += first[:, 0]
    apart = [np.abs(x[:, None] - x[None]).max(2) for x in (first, second)]
    radius = np.sort(np.maximum(*apart), 1)[:, 3]  # itself is the first
    counts = [(distances < radius[:, None]).sum(1) - 1 for distances in apart]
    expected = digamma(3) + digamma(70) - np.mean(digamma(counts[0] + 1) + digamma(counts[1] + 1))
    assert kraskov(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("dims", "expected"), [(2, 0.45), (4, 0.77), (8, 0.82), (32, 0.72)])
def test_neighbours_see_too_little_in_many_dimensions(dims: int, expected: float):
    """Of 0.223 nats per dimension, with 1000 samples; the expected values are of another program for this estimate."""
    pairs = ([pair(9 * seed + number, 1000, 0.6) for number in range(dims)] for seed in range(5))
    found = np.mean([kraskov(*map(np.hstack, zip(*several, strict=True))) for several in pairs])
    assert found == pytest.approx(expected, abs=0.08)


def test_neighbours_of_few_and_of_equal_samples():
    assert kraskov(np.ones((1, 2)), np.ones((1, 2))) == 0
    assert np.isfinite(kraskov(np.ones((9, 2)), normal(0, 9, 2)))


def test_a_contrast_cannot_tell_more_than_the_batch_allows():
    features, groups = normal(3, 1000, 16), np.arange(1000)
    found = contrastive_information(features, features, groups)
    assert 0.5 * np.log(BATCH) < found <= np.log(BATCH)
    assert contrastive_information(features, normal(4, 1000, 16), groups) < 0.02


def test_the_critic_is_at_a_minimum():
    first, second = normal(1, 60, 3), normal(2, 60, 4)
    second[:, :3] += first
    critic = fit_critic(first, second, decay=0.1)

    def loss(critic: np.ndarray) -> float:
        return float(-np.trace(log_softmax(first @ critic @ second.T)) / 60 + 0.05 * (critic**2).sum())

    for seed in range(5):
        assert loss(critic + 0.01 * normal(seed, 3, 4)) > loss(critic)


def test_cka_is_that_of_centred_kernels_without_their_diagonals():
    first, second = normal(5, 30, 4), normal(6, 30, 3)
    second[:, 0] += first[:, 1]

    def centred(features: np.ndarray) -> np.ndarray:
        """The U-centred kernel matrix (Szekely & Rizzo 2014), whose diagonal is 0."""
        k, n = features @ features.T, len(features)
        np.fill_diagonal(k, 0)
        rows = k.sum(1) / (n - 2)
        k = k - rows[:, None] - rows + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k

    k, own = centred(first), centred(second)
    assert cka(first, second) == pytest.approx((k * own).sum() / np.sqrt((k * k).sum() * (own * own).sum()))
    assert cka(first + 7, second) == pytest.approx(cka(first, second))


def test_cka_of_copies_and_of_independent_features():
    first, second = normal(7, 200, 512), normal(8, 200, 512)
    rotated = 3 * first @ np.linalg.qr(normal(9, 512, 512))[0] + 1
    assert cka(first, rotated) == pytest.approx(1)
    independent = np.mean([cka(normal(seed, 200, 512), normal(90 + seed, 200, 512)) for seed in range(5)])
    assert abs(independent) < 0.02 and abs(cka(first, second)) < 0.05
    assert np.isnan(cka(np.ones((9, 2)), normal(1, 9, 2))) and np.isnan(cka(first[:3], first[:3]))


def mfh(seed: int, clips: int, shared: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Xue's generator with equal weights: 10 of 20 decisive channels each, of which some are shared."""
    x = normal(seed, clips, 20)
    return x[:, 10 - shared : 20 - shared], x[:, :10], (x.sum(1) > 0).astype(int)


@pytest.mark.parametrize(
    ("shared", "gamma", "margin"),
    [
        (0, -0.443, -0.193),
        (2, -0.171, -0.173),
        (4, 0.035, -0.106),
        (6, 0.276, 0.030),
        (8, 0.582, 0.318),
        (10, 1, np.inf),
    ],
)
def test_mfh_example(shared: int, gamma: float, margin: float):
    """The values are exact: the log-odds of both sides have the correlation shared / 10."""
    teacher, student, labels = mfh(4, 12000, shared)
    groups = np.arange(12000)
    left, right = (probe(features, labels, groups) for features in (teacher, student))
    both = label_information(np.hstack([teacher, student]), labels, groups)
    assert right.information == pytest.approx(np.log(2) - 0.5, abs=0.01)
    assert (left.information + right.information) / both - 1 == pytest.approx(gamma, abs=0.02)
    found = log_odds_information(left.log_probabilities, right.log_probabilities) - right.information
    assert found > 1 if shared == 10 else found == pytest.approx(margin, abs=0.02)
    assert label_information(student, labels, groups) == right.information


def test_shares_add_up_to_one():
    found = predictor_of(*mfh(4, 2000, 4), np.arange(2000))
    assert found.alpha + found.beta + found.gamma == pytest.approx(1)
    assert found.margin == found.shared - found.student
    assert found.log_odds_margin == found.log_odds - found.student
    assert found.alpha == pytest.approx(1 - found.student / found.both) and found.alpha > 0.3


def test_each_estimate_of_a_predictor_is_that_of_its_name():
    teacher, student, labels = mfh(4, 600, 4)
    groups = np.arange(600) // 2
    left, right = (probe(features, labels, groups) for features in (teacher, student))
    assert predictor_of(teacher, student, labels, groups)._asdict() == {
        "teacher": left.information,
        "student": right.information,
        "both": label_information(np.hstack([teacher, student]), labels, groups),
        "shared": shared_information(teacher, student, groups),
        "beyond_label": shared_beyond(teacher, student, labels, groups),
        "log_odds": log_odds_information(left.log_probabilities, right.log_probabilities),
        "nearest": nearest_information(teacher, student, groups),
        "contrastive": contrastive_information(teacher, student, groups),
        "cka": cka(teacher, student),
    }


def test_log_odds_of_two_classes_count_once():
    teacher, student, labels = mfh(1, 600, 6)
    sides = [probe(features, labels, np.arange(600)).log_probabilities for features in (teacher, student)]
    odds = [x[:, 1] - x[:, 0] for x in sides]
    assert log_odds_information(*sides) == pytest.approx(-0.5 * np.log(1 - np.corrcoef(*odds)[0, 1] ** 2))
    assert np.isfinite(log_odds_information(np.log([[1.0, 1e-300], [0.5, 0.5]]), sides[0][:2]))


@pytest.mark.parametrize(
    ("shared", "half", "whole"),
    [(0, -1.23, -2.66), (2, -0.78, -1.78), (4, -0.20, -0.92), (6, 0.62, 0.32), (8, 1.41, 1.86), (10, 2.04, 3.07)],
)
def test_distillation_gains_where_both_sides_decide_by_the_same_channels(shared: int, half: float, whole: float):
    """The gain in MFH's example, in points over 40 seeds: CE + w KL, w 0.5 and 1, 1000 steps with 200 samples.

    The student sees x_0 .. x_9 among 50 channels, the teacher 10 of the 20 decisive among 25; the rest is noise. The
    expected values are of another program, whose seeds are others."""
    random = torch.Generator().manual_seed(0)
    x, a = (torch.randn(40, size, 20, generator=random) for size in (1200, 1))
    labels = ((x * a).sum(2) > 0).float()
    student = torch.cat([x[:, :, :10], torch.randn(40, 1200, 40, generator=random)], 2)
    teacher = torch.randn(40, 1200, 25, generator=random)
    teacher[:, :, 10 - shared : 20 - shared] = x[:, :, 10 - shared : 20 - shared]

    def fitted(features: torch.Tensor, weights: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The log-odds of linear models, one per seed and weight, after full-batch steps of SGD on 200 samples."""
        features = torch.cat([features, torch.ones(40, 1200, 1)], 2)
        seen, total = features[:, :200].contiguous(), labels[:, :200, None] + weights * teacher[:, :200].sigmoid()
        # The slope of CE + KL is that of sigmoid - target; the difference of two logits moves by both of their steps.
        layer, rate = torch.zeros(40, features.shape[2], len(weights)), 2 * 0.1 / 200 * seen.mT.contiguous()
        for _ in range(1000):
            layer = layer - rate @ ((1 + weights) * (seen @ layer).sigmoid() - total)
        return features @ layer

    def accuracy(log_odds: torch.Tensor) -> torch.Tensor:
        """In percent, of each weight; mean over seeds."""
        return 100 * ((log_odds > 0) == (labels[..., None] > 0))[:, 200:].float().mean((0, 1))

    of_teacher = fitted(teacher, torch.zeros(1), torch.zeros(40, 1200, 1))
    plain, *taught = accuracy(fitted(student, torch.tensor([0, 0.5, 1]), of_teacher)).tolist()
    assert plain == pytest.approx(68.9, abs=1.5)
    assert accuracy(of_teacher).item() == pytest.approx(71, abs=2)
    assert [value - plain for value in taught] == pytest.approx([half, whole], abs=0.9)
    assert shared in (4, 6) or all(np.sign(value - plain) == np.sign(whole) for value in taught)


def test_labels_that_features_do_not_know():
    features, groups = normal(5, 400, 24), np.arange(400) // 2
    labels = np.random.default_rng(6).integers(0, 5, 400)
    assert label_information(features, labels, groups) == 0
    assert np.isnan(predictor_of(features, features, labels, groups).gamma)


def test_two_teachers_know_no_less_than_one():
    labels = np.random.default_rng(7).integers(0, 4, 600)
    for strength in (0.5, 1.5):
        teacher, student = (normal(seed, 600, 16) + strength * normal(20 + seed, 4, 16)[labels] for seed in (8, 9))
        found = predictor_of(teacher, student, labels, np.arange(600))
        assert found.both >= max(found.teacher, found.student) - 0.05
        assert 0 < found.teacher < np.log(4)


def test_a_group_is_never_on_both_sides():
    groups = np.random.default_rng(8).choice([f"g{number}" for number in range(23)], 300)
    for folds in (2, 5):
        fold = several_folds(groups, folds, seed=3)
        assert set(fold) == set(range(folds))
        assert all(len(set(fold[groups == group])) == 1 for group in groups)
    assert sorted(set(several_folds(np.array(["a", "b", "b"]), 5, seed=0))) == [0, 1]
    with pytest.raises(ValueError, match="at least 2 groups"):
        several_folds(np.array(["a", "a"]), 5, seed=0)


def test_clips_of_one_group_are_no_evidence():
    """Features that only know the source video, of which each has one class: nothing holds of other videos."""
    rng = np.random.default_rng(9)
    groups = np.repeat(np.arange(60), 10)
    labels, features = (
        (np.arange(60) % 3)[groups],
        rng.normal(size=(60, 16))[groups] + 0.01 * rng.normal(size=(600, 16)),
    )
    assert label_information(features, labels, groups) < 0.02 < label_information(features, labels, np.arange(600))


@pytest.mark.parametrize("clips", [2, 3, 5])
def test_a_few_clips_are_no_error(clips: int):
    """A suite that is only tried out may have next to no test clips."""
    groups = np.arange(clips)
    for labels in (np.zeros(clips), groups):
        found = predictor_of(normal(1, clips, 6), normal(2, clips, 4), labels, groups)
        assert np.isfinite(found[:-1]).all(), "CKA needs four clips, the rest two groups"


def test_the_same_numbers_every_time():
    sides = normal(1, 200, 6), normal(2, 200, 4), np.arange(200) % 3, np.arange(200) // 5
    assert predictor_of(*sides) == predictor_of(*sides)
