"""The share of wrong labels among training clips, as a teacher's predictions tell it before a student is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd

from avdistill.config.report import ComparedSetting
from avdistill.config.schema import Params
from avdistill.data.draws import draws_of, of_draw
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index

WRONG = 0.1  # share of wrong labels from which a gain is predicted: with right labels the estimate rarely reaches it


def estimated_share(agreement: float, accuracy: float, classes: int) -> float:
    """Return the share r of wrong labels that lets predictions agree so rarely with the labels of training clips.

    Predictions that are right on a share q (`accuracy`) of clips with right labels agree with q (1 - r) +
    (1 - q) r / (C - 1) of labels of which r are wrong, each to a random other class; `agreement` is that share. Below 0
    if they agree more often than q. NaN if the predictions are no better than chance."""
    chance = (1 - accuracy) / (classes - 1)
    return (accuracy - agreement) / (accuracy - chance) if accuracy > 1 / classes else np.nan


def wrong_labels(params: Params, entry: ComparedSetting) -> float:
    """Return the share of wrong labels in a setting, by its teacher's out-of-fold predictions, averaged over draws.

    The accuracy is that on test clips, whose labels count as right. NaN without those, or in sample."""
    features, job = params.features[entry.A], params.runs()[entry.baseline][0]
    index = read_index(params.index(params.jobs[job].dataset)).set_index("id")
    shares = []
    for draw in map(of_draw, range(draws_of(params, features.teacher))):
        logits = params.path("teacher_head", entry.A) / draw / "logits.npz"
        stored = params.path("teacher_features", entry.A) / draw / "features.npz"
        if not features.cross_fit or not logits.exists() or not stored.exists():
            return np.nan
        arrays = read_arrays(logits, ("ids", "logits"))
        clips = index.loc[arrays["ids"]]
        usable = clips["status"].eq("ok").to_numpy() & read_arrays(stored, ("mask",))["mask"]
        predicted = arrays["logits"].argmax(1)
        train, test = (usable & clips["split"].eq(split).to_numpy() for split in ("train", "test"))
        given = (clips["given"] if "given" in clips else clips["label"]).to_numpy()
        right, agreeing = predicted == clips["label"].to_numpy(), predicted == given
        shares.append(estimated_share(agreeing[train].mean(), right[test].mean(), arrays["logits"].shape[1]))
    return float(pd.Series(shares).mean())
