"""Stage teacher_head: a linear layer from a teacher's features to the target classes, fitted on all training clips.

Students that train on all of them distil its logits (avdistill/training/heads.py); for students that train on some
(`train_groups`), stage train fits a layer on those. Its accuracy measures the teacher's features alone.

Writes to teacher_head/<entry>/: head.npz (weight (C, Dt), bias (C,)), logits.npz (ids, logits (N, C)) and metrics.json;
for each draw of a teacher with several (avdistill/data/draws.py), whose accuracy the summary averages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from avdistill.data.draws import draws_of, of_draw
from avdistill.data.files import read_arrays, write_arrays, write_json
from avdistill.data.index import given_labels, read_index
from avdistill.pipeline.devices import resolve_device
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from avdistill.training.heads import accuracy, fit_head


def fit(stage: Stage, path: Path, index: pd.DataFrame, device: str, folder: Path) -> dict[str, Any]:
    """Train the head of the features in `path` and write its files to `folder`; return its metrics.

    Raises UserError if no clip of the training split has features."""
    entry = stage.params.features[stage.item or ""]
    arrays = read_arrays(path, ("ids", "features", "mask"))
    usable = arrays["mask"] & (index["status"] == "ok").to_numpy()
    split = {name: usable & (index["split"] == name).to_numpy() for name in ("train", "val", "test")}
    if not split["train"].any():
        raise UserError(f"{stage.item}: no usable clip of the train split has features; expected at least one")

    head = fit_head(arrays["features"], index, split["train"], split["val"], entry.cross_fit, device)
    labels = torch.tensor(index["label"].to_numpy()).to(device)
    in_sample = torch.from_numpy(arrays["features"]).to(device) @ head.weight.T + head.bias
    by_name = {name: accuracy(in_sample[rows], labels[rows]) for name, rows in split.items()}
    by_name["distilled"] = accuracy(head.logits[split["train"]], labels[split["train"]])
    given = torch.tensor(given_labels(index).to_numpy()).to(device)
    counts = np.bincount(index["label"][split["test"]], minlength=head.logits.shape[1])
    summary: dict[str, Any] = {
        "accuracy": by_name,  # `train` in sample; `distilled` of the logits that methods distil on training clips
        "agreement": accuracy(head.logits[split["train"]], given[split["train"]]),  # with the labels training is given
        "classes": head.logits.shape[1],
        "cross_fit": entry.cross_fit,
        "majority": float(counts.max() / max(1, counts.sum())),
        "clips": {name: int(rows.sum()) for name, rows in split.items()},
        "weight_decay": head.decay,
    }
    write_arrays(folder / "head.npz", weight=head.weight.cpu().numpy(), bias=head.bias.cpu().numpy())
    write_arrays(folder / "logits.npz", ids=arrays["ids"], logits=head.logits.cpu().numpy())
    write_json(folder / "metrics.json", summary)
    return summary


def main(stage: Stage) -> None:
    """Train the head of one features entry, for each draw of its teacher."""
    entry = stage.params.features[stage.item or ""]
    device = resolve_device(stage.params.device)
    torch.set_num_threads(1)  # same result for any number of cores
    index = read_index(stage.input("split", entry.dataset) / "index.csv")
    features = stage.input("teacher_features", stage.item)
    stage.run.log_params({"features": entry.model_dump()})
    with stage.output() as folder:
        for part in map(of_draw, range(draws_of(stage.params, entry.teacher))):
            summary = fit(stage, features / part / "features.npz", index, device, folder / part)
            stage.run.log_params({f"{part}weight_decay": summary["weight_decay"]})
            stage.run.log_metrics({f"{part}accuracy/{name}": value for name, value in summary["accuracy"].items()})
