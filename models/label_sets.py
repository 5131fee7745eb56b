"""Metrics for clips with sets of labels, and for detection by a clip score: plain functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.metrics import check_finite

CHUNK = 250  # resamples at a time, which limits the memory


def hits(scores: Tensor, truth: Tensor) -> Tensor:
    """Return 1 for each row (N, C) whose largest score is at a label of `truth` (N, C) bool, else 0, as float64 (N,).

    Rows without a label are NaN; of equal scores the first counts. hit@1 is the nanmean. Raises ValueError if a score
    is not finite."""
    check_finite(scores, "scores")
    hit = truth.gather(1, scores.argmax(1, keepdim=True)).squeeze(1).double()
    return hit.where(truth.any(1), torch.nan)


def f1_at_1(scores: Tensor, truth: Tensor) -> float:
    """Return the micro-F1 of the top-1 class of each clip (N, C) as its only label, in 0..1: 2 hits / (clips + labels).

    Clips without a label of `truth` (N, C) bool are left out; NaN if none is left. A clip with several labels can have
    only one of them right, so the largest possible value is 2 clips / (clips + labels). Raises ValueError if a score is
    not finite."""
    clips, labels = int(truth.any(1).sum()), int(truth.sum())
    return 2 * hits(scores, truth).nansum().item() / (clips + labels) if clips else math.nan


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the average precision of each class over clips (N, C), in 0..1, as float64 (C,).

    The sum over descending thresholds of (recall - recall before) x precision, without interpolation; equal scores
    share one threshold. `truth` (N, C) is bool; a class without clips is NaN. Clips without a label are left out.
    Raises ValueError if a score is not finite."""
    check_finite(scores, "scores")
    scores, truth = scores[truth.any(1)], truth[truth.any(1)]
    found = scores.new_full((truth.shape[1],), torch.nan, dtype=torch.float64)
    for label in truth.any(0).nonzero().squeeze(1).tolist():
        _, level = scores[:, label].neg().unique(return_inverse=True)  # level 0 has the highest score
        total = torch.bincount(level).cumsum(0)
        right = torch.bincount(level, weights=truth[:, label].double())
        found[label] = (right * right.cumsum(0) / total).sum() / right.sum()
    return found


def lost(reference: Tensor, student: Tensor) -> float:
    """Return the share of clips that the reference hits and the student misses; NaN where there is none.

    Both are `hits` (N,) of the same clips with the same truth; NaN leaves a clip out. With the arguments swapped it is
    the share of repairs. Raises ValueError if only one of them is NaN for a clip, or their lengths differ."""
    if reference.shape != student.shape or not torch.equal(reference.isnan(), student.isnan()):
        raise ValueError("expected hits of the same clips with the same truth")
    known = ~reference.isnan()
    return ((reference == 1) & (student == 0))[known].double().mean().item()


def auroc(scores: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the area under the ROC curve, P(score+ > score-) + P(equal)/2, as float64 (B,) for weights (N, B).

    `scores` (N,), of which NaN leaves a clip out; `truth` (N,) bool, true for positive clips. A clip with weight w
    counts as w clips; without weights the result is (1,). NaN where there is no positive or no negative clip."""
    known = ~scores.isnan()
    scores, truth = scores[known], truth[known]
    weights = torch.ones(len(scores), 1) if weights is None else weights[known]
    values, level = scores.unique(return_inverse=True)
    parts = []
    for part in weights.split(CHUNK, dim=1):
        empty = part.new_zeros(len(values), part.shape[1], dtype=torch.float64)
        positive = empty.index_add(0, level[truth], part[truth].double())
        negative = empty.index_add(0, level[~truth], part[~truth].double())
        below = negative.cumsum(0) - negative / 2
        parts.append((positive * below).sum(0) / (positive.sum(0) * negative.sum(0)))
    return torch.cat(parts)


def mixed_classes(truth: Tensor, labels: Tensor, least: int = 5) -> Tensor:
    """Return the classes of `labels` (N,) with at least `least` clips of each kind of `truth` (N,) bool."""
    classes = labels.unique()
    fewest = [min(int(truth[labels == label].sum()), int((~truth[labels == label]).sum())) for label in classes]
    return classes[torch.tensor(fewest, dtype=torch.int64) >= least]


def auroc_within(scores: Tensor, truth: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the `mixed_classes` of the `auroc` among the clips of one class, float64 (B,).

    `labels` (N,) are the classes. A class without positive or negative clips in a resample is left out of its mean; NaN
    where no class is left."""
    count = 1 if weights is None else weights.shape[1]
    found = [torch.full((count,), torch.nan, dtype=torch.float64)]
    for label in mixed_classes(truth, labels):
        own = labels == label
        found.append(auroc(scores[own], truth[own], None if weights is None else weights[own]))
    return torch.stack(found).nanmean(0)


def bootstrap_weights(groups: Tensor, resamples: int, seed: int) -> Tensor:
    """Return how often each clip occurs in each resample, float32 (N, resamples).

    A resample draws as many groups as there are, with replacement, each with all its clips; `groups` (N,)."""
    names, group = groups.unique(return_inverse=True)
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(names), (resamples, len(names)), generator=random)
    counts = torch.zeros(resamples, len(names)).scatter_add_(1, drawn, torch.ones(drawn.shape))
    return counts.T[group]
