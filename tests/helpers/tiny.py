"""A suite small enough for unit tests, with made data in place of what the earlier stages would have made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.data.files import write_arrays, write_text
from avdistill.data.index import write_index
from avdistill.data.packed import StoreWriter
from tests.helpers.whole import whole_suite

CLASSES, GROUPS, CLIPS = 3, 4, 3


def make(folder: Path, root: Path) -> Params:
    """Write the tiny suite into the working folder; returns its params."""
    raw = whole_suite(root)
    raw["device"] = "cpu"
    raw["recipes"]["small"] |= {
        "epochs": 4,
        "schedule": "steps",
        "milestones": [3],
        "warmup": 0,
        "lr": 0.003,
        "batch": 4,
        "width": 0.0625,
        "size": 16,
        "frames": 4,
        "selection": "val",
    }
    raw["recipes"]["tagging"] |= {"epochs": 4, "warmup": 0, "batch": 4, "width": 0.0625, "frames": 40, "stride": 20}
    for job in raw["jobs"].values():
        job |= {"seeds": [0, 1], "init": "none"}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    params = load("params.yaml")
    make_inputs(params)
    return params


def make_inputs(params: Params) -> None:
    random = np.random.default_rng(0)
    rows = []
    for label in range(CLASSES):
        for group in range(GROUPS):
            split = {0: "test", 1: "val"}.get(group, "train")
            for clip in range(CLIPS):
                audio = "no" if clip == 2 and group == 3 else "yes"
                rows.append(
                    {
                        "id": f"c{label}_g{group}_{clip}",
                        "file": f"c{label}/g{group}_{clip}.mp4",
                        "label": label,
                        "class": f"class {label}",
                        "group": f"g{group}",
                        "split": split,
                        "start": 0.0,
                        "end": 2.0,
                        "seconds": 2.0,
                        "audio": audio,
                        "status": "ok",
                        "reason": "" if audio == "yes" else "no audio stream",
                        "relevant": "yes" if clip % 2 else "no",
                    }
                )
    index = pd.DataFrame(rows).sort_values("id", ignore_index=True)
    write_index(params.index("avsynth"), index)
    with StoreWriter(params.path("frames", "avsynth"), "uint8") as store:
        for number, name in enumerate(index["id"]):
            store.put(name, random.integers(0, 256, (3 + number % 4, 20, 24, 3), dtype=np.uint8))
    with StoreWriter(params.path("spectrogram", "avsynth"), "float32") as store:
        for number, name in enumerate(index["id"][index["audio"] == "yes"]):
            store.put(name, random.normal(-30, 15, (35 + number % 20, 64)).astype(np.float32))
    for entry in params.features:
        ids = index["id"].to_numpy(dtype=str)
        mask = (index["audio"] == "yes").to_numpy()
        features = np.abs(random.normal(size=(len(index), 32))).astype(np.float32) * mask[:, None]
        write_arrays(params.path("teacher_features", entry) / "features.npz", ids=ids, features=features, mask=mask)
        logits = random.normal(size=(len(index), CLASSES)).astype(np.float32)
        write_arrays(params.path("teacher_head", entry) / "logits.npz", ids=ids, logits=logits)
    for kind in ("teacher_features", "teacher_head", "teachers", "train"):
        write_text(params.path(kind, "none") / "README", "")
