"""Predict from features alone whether distillation helps: what teacher, student and labels know of each other, in nats.

All estimates are made on clips that what they use was not fitted on; clips of one group are never on both sides.

  I(X; Y)      entropy of the labels - cross-entropy of a linear layer on X (0 if negative): what X tells linearly of Y
  I(T; S)      -1/2 sum of ln(1 - r^2) over the canonical correlations r, the mutual information of Gaussians. Other
               features can share more, or less if r is close to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from avdistill.data.folds import folds_of

# Weight decays of the linear layer, in the order in which they are tried, until the cross-entropy rises.
DECAYS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FOLDS = 5
COMPONENTS = 16  # principal components between which canonical correlations are computed
RIDGE = 0.01  # added to the variances of the components, relative to their mean
NOISE = 0.05  # nats: `shared_information` of independent features is below


class Predictor(NamedTuple):
    """What a teacher's features T, a student's features S and the labels Y have in common, in nats.

    Published criteria for whether distillation helps: `margin` > 0 (Xie et al., arXiv 2510.13182) and a large `gamma`
    (Xue et al., ICLR 2023: the share of decisive features that both modalities have)."""

    teacher: float  # I(T; Y)
    student: float  # I(S; Y)
    both: float  # I([T, S]; Y)
    shared: float  # I(T; S)
    beyond_label: float  # I(T; S | Y)

    @property
    def margin(self) -> float:
        """Return I(T; S) - I(S; Y)."""
        return self.shared - self.student

    @property
    def gamma(self) -> float:
        """Return the share of I([T, S]; Y) that either has alone: (I(T; Y) + I(S; Y)) / I([T, S]; Y) - 1.

        Negative if T and S tell more together than the sum of what each tells; NaN if they tell nothing."""
        return (self.teacher + self.student) / self.both - 1 if self.both > 0 else np.nan


def predictor_of(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0
) -> Predictor:
    """Return the predictor of features (N, Dt) and (N, Ds), labels (N,) and groups (N,) of the same clips.

    Raises ValueError if all clips are of one group."""
    return Predictor(
        label_information(teacher, labels, groups, seed),
        label_information(student, labels, groups, seed),
        label_information(np.hstack([teacher, student]), labels, groups, seed),
        shared_information(teacher, student, groups, seed),
        shared_beyond(teacher, student, labels, groups, seed),
    )


def label_information(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Return I(X; Y) of features (N, D) and labels (N,), in nats.

    The cross-entropy is that of `FOLDS` folds of whole groups (N,), with the weight decay for which it is lowest."""
    names, targets = np.unique(labels, return_inverse=True)
    share = np.bincount(targets) / len(targets)
    fold = several_folds(groups, FOLDS, seed)
    insides = [fold == number for number in range(int(fold.max()) + 1)]
    sides = [[with_bias(x) for x in standardised(features[~inside], features[inside])] for inside in insides]
    layers = [np.zeros((features.shape[1] + 1, len(names))) for _ in insides]
    lowest = np.inf
    for decay in DECAYS:
        error = np.float64(0.0)
        for number, (inside, (seen, unseen)) in enumerate(zip(insides, sides, strict=True)):
            layers[number] = fit_linear(seen, targets[~inside], decay, layers[number])
            error -= log_softmax(unseen @ layers[number])[np.arange(len(unseen)), targets[inside]].sum() / len(targets)
        if error > lowest:
            break
        lowest = error
    return max(0.0, float(-share @ np.log(share) - lowest))


def shared_information(first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Return the Gaussian estimate of the mutual information of features (N, D) and (N, E), in nats.

    Canonical directions are fitted on half of the groups (N,), and their correlations measured on the other half, where
    negative ones count as 0; the mean of both ways. Below `NOISE` for independent features of 1000 clips."""
    half = several_folds(groups, 2, seed) == 0
    found = []
    for fitted in (half, ~half):
        sides = [whitened(features[fitted], features[~fitted]) for features in (first, second)]
        (left, left_unseen), (right, right_unseen) = sides
        u, _, v = np.linalg.svd(left.T @ right / len(left), full_matrices=False)
        r = correlations(left_unseen @ u, right_unseen @ v.T)
        found.append(-0.5 * np.log1p(-(np.clip(r, 0, 1 - 1e-9) ** 2)).sum())
    return float(np.mean(found))


def shared_beyond(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0
) -> float:
    """Return the estimate of `shared_information` given the labels (N,): that of features without their class means."""
    return shared_information(residuals(first, labels), residuals(second, labels), groups, seed)


def residuals(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return features (N, D) without the mean of their class."""
    _, targets = np.unique(labels, return_inverse=True)
    means = np.stack([features[targets == target].mean(0) for target in range(int(targets.max()) + 1)])
    return features - means[targets]


def several_folds(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return `folds_of`. Raises ValueError if all clips are of one group, which leaves nothing to fit on."""
    if len(set(groups)) < 2:
        raise ValueError(f"expected clips of at least 2 groups, found {len(set(groups))}")
    return folds_of(groups, folds, seed)


def standardised(seen: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both features (…, D) with the mean 0 and the variance 1 that `seen` then has; constant columns are 0."""
    mean, std = seen.mean(0), seen.std(0)
    scale = np.where(std > 1e-6 * max(1e-30, float(std.max())), std, np.inf)
    return (seen - mean) / scale, (unseen - mean) / scale


def whitened(seen: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first COMPONENTS principal components of both features (…, D), as fitted on `seen`, with variance 1.

    The ridge keeps components of small variance below 1."""
    seen, unseen = standardised(seen, unseen)
    _, sizes, directions = np.linalg.svd(seen, full_matrices=False)
    variances = sizes[:COMPONENTS] ** 2 / len(seen)
    projection = directions[:COMPONENTS].T / np.sqrt(variances + RIDGE * max(variances.mean(), 1e-12))
    return seen @ projection, unseen @ projection


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the correlation of each column of (N, K) with the same column of another (K,); 0 for constant columns."""
    first, second = first - first.mean(0), second - second.mean(0)
    sizes = np.sqrt((first**2).sum(0) * (second**2).sum(0))
    return (first * second).sum(0) / np.where(sizes > 0, sizes, np.inf)


def fit_linear(features: np.ndarray, targets: np.ndarray, decay: float, start: np.ndarray) -> np.ndarray:
    """Return the layer (D, C) that minimises cross-entropy + decay/2 ||weight||^2, searched from `start`.

    The last column of `features` (N, D) is 1, and the last row of the layer the bias, which does not decay."""
    from scipy.optimize import minimize

    wanted = np.eye(start.shape[1])[targets]
    decays = np.full((len(start), 1), decay)
    decays[-1] = 0.0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        layer = flat.reshape(start.shape)
        logarithms = log_softmax(features @ layer)
        slope = features.T @ (np.exp(logarithms) - wanted) / len(features) + decays * layer
        return float(-(logarithms * wanted).sum() / len(features) + (decays * layer**2).sum() / 2), slope.ravel()

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300, "ftol": 1e-8})
    return found.x.reshape(start.shape)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the probabilities of logits (N, C)."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def with_bias(features: np.ndarray) -> np.ndarray:
    """Return features (N, D) with a last column of ones."""
    return np.hstack([features, np.ones((len(features), 1))])
