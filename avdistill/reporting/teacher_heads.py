"""Read the metrics of stage teacher_head, and estimate the share of wrong labels among training clips from them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from avdistill.config.schema import Params
from avdistill.data.draws import draws_of, of_draw

WRONG = 0.1  # a gain is predicted above this share


def head_metrics(params: Params, features: str) -> list[dict[str, Any]]:
    """Return the metrics of an entry of `features` by draw of its teacher; an empty list if the stage has not run."""
    folder = params.path("teacher_head", features)
    draws = range(draws_of(params, params.features[features].teacher))
    paths = [folder / of_draw(draw) / "metrics.json" for draw in draws]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def wrong_labels(found: list[dict[str, Any]]) -> float:
    """Return the estimated share of wrong labels among training clips, averaged over the draws of `head_metrics`.

    NaN without draws, or if the predictions for training clips are in sample."""
    shares = [
        estimated_share(each["agreement"], each["accuracy"]["test"], each["classes"])
        for each in found
        if each["cross_fit"]
    ]
    return float(np.mean(shares)) if shares else np.nan


def estimated_share(agreement: float, accuracy: float, classes: int) -> float:
    """Return the estimated share r of wrong labels, each replaced by a random other class of C.

    Predictions that are right for a share q (`accuracy`) of the clips with right labels agree with a share
    q (1 - r) + (1 - q) r / (C - 1) (`agreement`) of the labels in question. `agreement` is that of predictions out of
    fold with the labels of training clips; `accuracy` is measured on test clips, whose labels are taken as right. The
    estimate is negative if the agreement exceeds q, and NaN if the predictions are no better than chance."""
    chance = (1 - accuracy) / (classes - 1)
    return (accuracy - agreement) / (accuracy - chance) if accuracy > 1 / classes else np.nan
