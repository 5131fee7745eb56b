"""Predict from features alone whether distillation helps: what teacher, student and labels know of each other, in nats.

All estimates are made on clips that what they use was not fitted on; clips of one group are never on both sides.

  I(X; Y)      entropy of the labels - cross-entropy of a linear layer on X (0 if negative): what X tells linearly of Y
  I(T; S)      -1/2 sum of ln(1 - r^2) over the canonical correlations r, the mutual information of Gaussians. Other
               features can share more, or less if r is close to 1.

Of I(T; S) there are three more estimates, with different weaknesses:

  log-odds     -1/2 ln(1 - r^2), r the correlation of the log-odds that linear layers on T and S give: with two classes
               what the theorem of Xie et al. is about; with more the mean over each class against the rest, a heuristic
  nearest      Kraskov, Stoegbauer and Grassberger (Phys. Rev. E 2004, Eq. 8): neighbours of each clip, without a model
               of the distribution, but only between the first few principal components: in more it is far too small
  contrastive  InfoNCE (van den Oord et al. 2018) with a bilinear critic: a lower bound, at most ln BATCH

`cka` is the similarity of the features as matrices (linear centred kernel alignment, debiased), 0..1, and not in nats.
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
NEIGHBOURS, NEAREST_COMPONENTS = 3, 4
BATCH = 128  # clips among which InfoNCE tells which teacher's feature belongs to a student's
CRITIC_CLIPS = 2000  # at most, that the critic of InfoNCE is fitted on: its cost grows with their square


class Predictor(NamedTuple):
    """What a teacher's features T, a student's features S and the labels Y have in common, in nats; `cka` in 0..1.

    Published criteria for whether distillation helps: `margin` > 0 (Xie et al., arXiv 2510.13182) and a large `gamma`
    (Xue et al., ICLR 2023: the share of decisive features that both modalities have). Neither is a threshold that is
    known to hold here: they are tested as predictors."""

    teacher: float  # I(T; Y)
    student: float  # I(S; Y)
    both: float  # I([T, S]; Y)
    shared: float  # I(T; S)
    beyond_label: float  # I(T; S | Y)
    log_odds: float  # I(T; S), of log-odds
    nearest: float  # I(T; S), of neighbours
    contrastive: float  # I(T; S), a lower bound
    cka: float

    @property
    def margin(self) -> float:
        """Return I(T; S) - I(S; Y)."""
        return self.shared - self.student

    @property
    def log_odds_margin(self) -> float:
        """Return the margin with the I(T; S) of log-odds."""
        return self.log_odds - self.student

    @property
    def alpha(self) -> float:
        """Return the share of I([T, S]; Y) that only the teacher has. alpha + beta + gamma = 1; NaN if it is 0."""
        return (self.both - self.student) / self.both if self.both > 0 else np.nan

    @property
    def beta(self) -> float:
        """Return the share of I([T, S]; Y) that only the student has."""
        return (self.both - self.teacher) / self.both if self.both > 0 else np.nan

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
    of_teacher, of_student = (probe(features, labels, groups, seed) for features in (teacher, student))
    return Predictor(
        of_teacher.information,
        of_student.information,
        label_information(np.hstack([teacher, student]), labels, groups, seed),
        shared_information(teacher, student, groups, seed),
        shared_beyond(teacher, student, labels, groups, seed),
        log_odds_information(of_teacher.log_probabilities, of_student.log_probabilities),
        nearest_information(teacher, student, groups, seed),
        contrastive_information(teacher, student, groups, seed),
        cka(teacher, student),
    )


class LinearProbe(NamedTuple):
    """What linear layers tell of the labels of clips that they were not fitted on.

    `information` is I(X; Y) in nats; `log_probabilities` (N, C)."""

    information: float
    log_probabilities: np.ndarray


def probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> LinearProbe:
    """Predict the labels (N,) of features (N, D) by linear layers in `FOLDS` folds of whole groups (N,).

    The weight decay is that for which the cross-entropy is lowest."""
    names, targets = np.unique(labels, return_inverse=True)
    share = np.bincount(targets) / len(targets)
    fold = several_folds(groups, FOLDS, seed)
    insides = [fold == number for number in range(int(fold.max()) + 1)]
    sides = [[with_bias(x) for x in standardised(features[~inside], features[inside])] for inside in insides]
    layers = [np.zeros((features.shape[1] + 1, len(names))) for _ in insides]
    lowest, best = np.inf, np.empty((len(targets), len(names)))
    for decay in DECAYS:
        predicted = np.empty((len(targets), len(names)))
        for number, (inside, (seen, unseen)) in enumerate(zip(insides, sides, strict=True)):
            layers[number] = fit_linear(seen, targets[~inside], decay, layers[number])
            predicted[inside] = log_softmax(unseen @ layers[number])
        error = -predicted[np.arange(len(targets)), targets].mean()
        if error > lowest:
            break
        lowest, best = error, predicted
    return LinearProbe(max(0.0, float(-share @ np.log(share) - lowest)), best)


def label_information(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Return I(X; Y) of features (N, D) and labels (N,), in nats, as `probe` does."""
    return probe(features, labels, groups, seed).information


def log_odds_information(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Gaussian estimate of the information that the log-odds of log-probabilities (N, C) share, in nats.

    The mean over the classes against the rest; two classes have the same log-odds but for the sign."""
    found = []
    for label in range(first.shape[1]):
        left, right = (x[:, label] - np.log(-np.expm1(np.minimum(x[:, label], -1e-12))) for x in (first, second))
        (r,) = correlations(left[:, None], right[:, None])
        found.append(-0.5 * np.log1p(-min(r * r, 1 - 1e-9)))
    return float(np.mean(found))


def shared_information(first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Return the Gaussian estimate of the mutual information of features (N, D) and (N, E), in nats.

    Canonical directions are fitted on half of the groups (N,), and their correlations measured on the other half, where
    negative ones count as 0; the mean of both ways. Below `NOISE` for independent features of 1000 clips."""
    found = []
    for (left, right), (left_unseen, right_unseen) in halves(first, second, groups, seed):
        u, _, v = np.linalg.svd(left.T @ right / len(left), full_matrices=False)
        r = correlations(left_unseen @ u, right_unseen @ v.T)
        found.append(-0.5 * np.log1p(-(np.clip(r, 0, 1 - 1e-9) ** 2)).sum())
    return float(np.mean(found))


def halves(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Return the principal components of both features on half of the groups (N,), and on the other half; both ways.

    They are fitted on the first of the two halves."""
    half = several_folds(groups, 2, seed) == 0
    found = []
    for fitted in (half, ~half):
        sides = [whitened(features[fitted], features[~fitted]) for features in (first, second)]
        found.append(([seen for seen, _ in sides], [unseen for _, unseen in sides]))
    return found


def nearest_information(first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Return the estimate of Kraskov et al. of the mutual information of features (N, D) and (N, E), in nats.

    Between the first NEAREST_COMPONENTS principal components of each, fitted on the other half of the groups (N,). It
    can be negative."""
    sides = [unseen for _, unseen in halves(first, second, groups, seed)]
    cut = [(left[:, :NEAREST_COMPONENTS], right[:, :NEAREST_COMPONENTS]) for left, right in sides]
    return float(np.mean([kraskov(left, right) for left, right in cut]))


def kraskov(first: np.ndarray, second: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Return the first estimate of Kraskov et al. (Eq. 8) of samples (N, D) and (N, E), in nats.

        psi(k) + psi(N) - mean_i [ psi(n_x(i) + 1) + psi(n_y(i) + 1) ]

    n_x(i) counts the samples that are closer to i in x than its k-th neighbour is in (x, y); distances are the largest
    difference of a coordinate."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    count, joint = len(first), np.hstack([first, second])
    k = min(neighbours, count - 1)
    if k < 1:
        return 0.0
    distance = cKDTree(joint).query(joint, k + 1, p=np.inf)[0][:, -1]
    closer = [
        cKDTree(x).query_ball_point(x, np.nextafter(distance, 0), p=np.inf, return_length=True) for x in (first, second)
    ]  # each sample is one of its own neighbours: n + 1
    return float(digamma(k) + digamma(count) - np.mean(digamma(closer[0]) + digamma(closer[1])))


def contrastive_information(first: np.ndarray, second: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """Return the InfoNCE lower bound of the mutual information of features (N, D) and (N, E), in nats; 0 if negative.

    The critic x' W y, on principal components, is fitted on half of the groups (N,), at most CRITIC_CLIPS clips, and
    applied to batches of at most BATCH clips of the other half; the mean of both ways. It cannot exceed ln BATCH."""
    found = []
    for (left, right), (left_unseen, right_unseen) in halves(first, second, groups, seed):
        random = np.random.default_rng(seed)
        chosen = random.permutation(len(left))[:CRITIC_CLIPS]
        critic = fit_critic(left[chosen], right[chosen])
        order = random.permutation(len(left_unseen))
        parts = np.array_split(order, -(-len(order) // BATCH))
        gains = [
            len(part) * np.log(len(part)) + _told(left_unseen[part] @ critic, right_unseen[part]) for part in parts
        ]
        found.append(max(0.0, sum(gains) / len(order)))
    return float(np.mean(found))


def _told(first: np.ndarray, second: np.ndarray) -> float:
    """Return the sum of the log-probabilities of rows (N, D) to be told from each other by rows of the same number."""
    return float(np.trace(log_softmax(first @ second.T)))


def fit_critic(first: np.ndarray, second: np.ndarray, decay: float = 1e-2) -> np.ndarray:
    """Return the matrix W (D, E) that minimises InfoNCE of x' W y on (N, D) and (N, E) + decay/2 ||W||^2."""
    from scipy.optimize import minimize

    shape = first.shape[1], second.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        critic = flat.reshape(shape)
        logarithms = log_softmax(first @ critic @ second.T)
        slope = first.T @ (np.exp(logarithms) @ second - second) / len(first) + decay * critic
        return float(-np.trace(logarithms) / len(first) + decay * (critic**2).sum() / 2), slope.ravel()

    found = minimize(loss, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return found.x.reshape(shape)


def cka(first: np.ndarray, second: np.ndarray) -> float:
    """Return the debiased linear centred kernel alignment of features (N, D) and (N, E), N >= 4.

    The ratio HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of unbiased estimates (Song et al., JMLR 2012, Eq. 5) for the
    kernels K = X X' and L = Y Y'. 1 for features that are equal up to rotation and scale, 0 on average for independent
    ones, where the biased form tends to 1 with the number of features. NaN for constant features."""
    if len(first) < 4:
        return np.nan
    first, second = (x - x.mean(0) for x in (first, second))
    shared = hsic(first, second)
    own = hsic(first, first) * hsic(second, second)
    return float(shared / np.sqrt(own)) if own > 0 else np.nan


def hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased Hilbert-Schmidt independence criterion of features (N, D) and (N, E), linear kernels.

    Without the matrices (N, N): those without their diagonals, as sums over features."""
    n = len(first)
    diagonals = [(x**2).sum(1) for x in (first, second)]
    sums = [x @ x.sum(0) - diagonal for x, diagonal in zip((first, second), diagonals, strict=True)]  # of each row
    trace = ((first.T @ second) ** 2).sum() - diagonals[0] @ diagonals[1]
    rest = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2)) - 2 * (sums[0] @ sums[1]) / (n - 2)
    return float((trace + rest) / (n * (n - 3)))


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
