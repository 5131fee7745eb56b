from __future__ import annotations

import numpy as np
import pytest

from avdistill.reporting.information import (
    NOISE,
    label_information,
    predictor_of,
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


def test_mfh_example():
    """Xue's generator with equal weights: 10 of 20 decisive channels each, of which some are shared."""
    clips = 12000
    x, groups = normal(4, clips, 20), np.arange(clips)
    labels = (x.sum(1) > 0).astype(int)
    for shared, gamma in ((0, -0.443), (4, 0.035), (8, 0.582)):
        student, teacher = x[:, :10], x[:, 10 - shared : 20 - shared]
        found = predictor_of(teacher, student, labels, groups)
        assert found.student == pytest.approx(np.log(2) - 0.5, abs=0.03)
        assert found.gamma == pytest.approx(gamma, abs=0.06)
        assert found.margin == found.shared - found.student


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


def test_the_same_numbers_every_time():
    sides = normal(1, 200, 6), normal(2, 200, 4), np.arange(200) % 3, np.arange(200) // 5
    assert predictor_of(*sides) == predictor_of(*sides)
