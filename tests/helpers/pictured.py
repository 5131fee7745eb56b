"""The made-up suite of `synthetic` with everything that a figure can show: noise, features, attention, a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.files import write_arrays, write_csv, write_json
from avdistill.data.index import read_index
from tests.helpers.synthetic import CLASSES, SEEDS, suite_params, write_suite

FIGURES = {
    "training_curves": {"visual": "mnf_csc", "audio": "mnf_csc-audio"},
    "attention": {"run": "mnf_csc", "clips": 8},
    "gain_per_class": ["kd", "mnf_csc"],
    "large": ["uni_modal", "mnf_csc"],
    "retrieval": {"runs": ["uni_modal", "mnf_csc"], "queries": 3, "shown": 4},
    "embedding": ["uni_modal", "mnf_csc"],
    "heard": "made_A",
    "noise": {
        "with MNF": {"clean": "mnf_csc", 10: "at_10db", -10: "at_-10db"},
        "without MNF": {10: "at_10db-no_mask"},
    },
    "scores": ["mnf_csc"],
}
NOISE = {"at_10db": 0.62, "at_-10db": 0.58, "at_10db-no_mask": 0.57}  # mean accuracy
SOUNDS = ["bell", "hiss", "rumble", "speech", "a sound with a name that does not fit into the margin", "knocks", "hum"]


def pictured_params(out: Path, **changes: Any) -> Params:
    """Params of the suite; `changes` replace keys of its figures."""
    params = suite_params(out, figures=FIGURES | changes)
    job = params.jobs["mnf_csc"].model_dump() | {"runs": {run: {"teachers": "A"} for run in NOISE}}
    raw = params.model_dump()
    raw["jobs"]["noise"] = job
    return Params.model_validate(raw)


def write_pictured(params: Params) -> None:
    """Write all inputs of the figures, with numbers drawn from a fixed seed."""
    write_suite(params.model_copy(update={"jobs": {k: v for k, v in params.jobs.items() if k != "noise"}}))
    rng = np.random.default_rng(8)
    rows = [(run, seed, level + rng.normal(0, 0.02)) for run, level in NOISE.items() for seed in SEEDS]
    table = pd.DataFrame(rows, columns=["run", "seed", "value"])
    table.insert(2, "metric", "accuracy")
    write_csv(params.path("evaluate", "noise") / "metrics.csv", table)

    index = read_index(params.index("made"))
    index = index[index["status"] == "ok"]
    centres = np.abs(rng.normal(size=(len(CLASSES), 16)))
    test, gallery = (index[(index["split"] == "test") == is_test] for is_test in (True, False))
    for run in ("uni_modal", "mnf_csc"):
        features = {
            name: (centres[clips["label"]] + 0.4 * np.abs(rng.normal(size=(len(clips), 16)))).astype(np.float32)
            for name, clips in (("features", test), ("gallery_features", gallery))
        }
        ids = {"ids": test["id"].to_numpy("U"), "gallery_ids": gallery["id"].to_numpy("U")}
        write_arrays(params.evaluated(run) / "seed-0.npz", **ids, **features)
    heard = test[test["audio"] == "yes"]["id"].to_numpy("U")
    weights = rng.dirichlet(np.ones(8), len(heard)).astype(np.float32).reshape(-1, 2, 2, 2)
    write_arrays(params.evaluated("mnf_csc") / "attention.npz", ids=heard, weights=weights)
    write_arrays(
        params.path("teacher_features", "made_A") / "features.npz",
        ids=index["id"].to_numpy("U"),
        mask=(index["audio"] == "yes").to_numpy(),
        probabilities=rng.dirichlet(np.ones(len(SOUNDS)), len(index)).astype(np.float16),
    )
    write_json(params.path("teachers", "ear") / "teacher.json", {"classes": SOUNDS})
