"""Linear layers from a teacher's features to the target classes: the teacher's predictions for them.

The classes of the teachers (527 of AudioSet, 1000 of ImageNet) are not the target classes, so methods that need the
teacher's prediction for the target classes use such a layer. It is fitted on the clips that the student trains on, with
the labels that the student is given: a layer that was fitted on more would hand their labels on to the student.

On the clips that it was fitted on, a layer looks far better than it is (on the real UCF51 audio features 80 to 99 %
right, 46 to 49 % on clips that it has not seen), and a student that distils those logits learns its labels again. So by
default the logits of training clips are out of fold: from a layer fitted without the clip's group (`cross_fit`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.data.folds import folds_of
from avdistill.data.index import given_labels

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


class Head(NamedTuple):
    """A layer, `weight` (C, D) and `bias` (C,), fitted with a weight `decay`, and its `logits` (N, C) of all clips."""

    weight: Tensor
    bias: Tensor
    decay: float
    logits: Tensor


def fit_head(
    stored: np.ndarray, clips: pd.DataFrame, train: np.ndarray, val: np.ndarray, folds: int, device: str | torch.device
) -> Head:
    """Fit the layer on the clips of `train`, with that weight decay of DECAYS that is most accurate on those of `val`.

    `stored` (N, D) are a teacher's features, `clips` the clips' N rows of the index, `train` and `val` (N,) bool. The
    labels are those that training is given. The logits of training clips are out of fold if there are `folds` (0: in
    sample) and at least two groups."""
    features, labels = torch.from_numpy(stored).to(device), torch.tensor(clips["label"].to_numpy()).to(device)
    given = torch.tensor(given_labels(clips).to_numpy()).to(device)
    classes = int(labels.max()) + 1
    layers = [fit_linear(features[train], given[train], classes, decay) for decay in DECAYS]
    scores = [accuracy(features[val] @ weight.T + bias, labels[val]) for weight, bias in layers]
    best = int(np.nanargmax(scores)) if val.any() else len(DECAYS) // 2
    weight, bias = layers[best]
    logits = features @ weight.T + bias
    groups = clips["group"].to_numpy(dtype=str)[train]
    if folds and len(set(groups)) > 1:
        logits[train] = out_of_fold(features[train], given[train], groups, classes, DECAYS[best], folds)
    return Head(weight, bias, DECAYS[best], logits)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of clips whose largest logit (N, C) is that of the label (N,); NaN without clips."""
    return float((logits.argmax(1) == labels).float().mean())


def fit_linear(features: Tensor, labels: Tensor, classes: int, decay: float) -> tuple[Tensor, Tensor]:
    """Return weight (C, D) and bias (C,) that minimise cross-entropy + decay/2·||weight||² on standardised features.

    The problem is convex; L-BFGS from zero finds its minimum, so there is no seed."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    standard = (features - mean) / std
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(standard @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    folded = weight.detach() / std
    return folded, bias.detach() - folded @ mean


def out_of_fold(features: Tensor, labels: Tensor, groups: np.ndarray, classes: int, decay: float, folds: int) -> Tensor:
    """Return the logits (N, C) of clips, each from a layer fitted on the folds that do not have the clip's group.

    `features` (N, D), `labels` (N,), `groups` (N,) of at least two values."""
    fold = torch.from_numpy(folds_of(groups, folds)).to(features.device)
    logits = features.new_empty(len(features), classes)
    for number in range(int(fold.max()) + 1):
        inside = fold == number
        weight, bias = fit_linear(features[~inside], labels[~inside], classes, decay)
        logits[inside] = features[inside] @ weight.T + bias
    return logits
