"""Estimate the share of wrong labels among training clips from a teacher's predictions, before a student is trained."""

from __future__ import annotations

import numpy as np

from avdistill.config.report import ComparedSetting
from avdistill.config.schema import Params
from avdistill.data.draws import draws_of, of_draw
from avdistill.data.files import read_arrays
from avdistill.data.index import given_labels, read_index

WRONG = 0.1  # a gain is predicted above this share


def estimated_share(agreement: float, accuracy: float, classes: int) -> float:
    """Return the estimated share r of wrong labels, each replaced by a random other class of C.

    Predictions that are right for a share q (`accuracy`) of the clips with right labels agree with a share
    q (1 - r) + (1 - q) r / (C - 1) (`agreement`) of the labels in question. The estimate is negative if the agreement
    exceeds q, and NaN if the predictions are no better than chance."""
    chance = (1 - accuracy) / (classes - 1)
    return (accuracy - agreement) / (accuracy - chance) if accuracy > 1 / classes else np.nan


def wrong_labels(params: Params, entry: ComparedSetting) -> float:
    """Return the estimated share of wrong labels among a setting's training clips, averaged over the teacher's draws.

    The predictions for training clips are out of fold; the accuracy is measured on test clips, whose labels are taken
    as right. Return NaN if predictions are missing, or in sample."""
    features, job = params.features[entry.A], params.runs()[entry.baseline][0]
    if not features.cross_fit:
        return np.nan
    index = read_index(params.index(params.jobs[job].dataset)).set_index("id")
    shares = []
    for draw in map(of_draw, range(draws_of(params, features.teacher))):
        logits = params.path("teacher_head", entry.A) / draw / "logits.npz"
        stored = params.path("teacher_features", entry.A) / draw / "features.npz"
        if not logits.exists() or not stored.exists():
            return np.nan
        arrays = read_arrays(logits, ("ids", "logits"))
        clips = index.loc[arrays["ids"]]
        usable = clips["status"].eq("ok").to_numpy() & read_arrays(stored, ("mask",))["mask"]
        predicted = arrays["logits"].argmax(1)
        train, test = (usable & clips["split"].eq(split).to_numpy() for split in ("train", "test"))
        right, agreeing = (predicted == labels.to_numpy() for labels in (clips["label"], given_labels(clips)))
        shares.append(estimated_share(agreeing[train].mean(), right[test].mean(), arrays["logits"].shape[1]))
    return float(np.mean(shares))
