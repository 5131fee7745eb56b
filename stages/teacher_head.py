"""Stage teacher_head: a linear layer from a teacher's features to the target classes.

The classes of the teachers (527 of AudioSet, 1000 of ImageNet) are not the target classes, so methods that need the
teacher's prediction for the target classes use this layer. Its accuracy measures the teacher's features alone.

Writes to teacher_head/<entry>/: head.npz (weight (C, Dt), bias (C,)), logits.npz (ids, logits (N, C)) and metrics.json;
for each draw of a teacher with several (avdistill/data/draws.py), whose accuracy the summary averages. The weight decay
is the one of DECAYS with the highest validation accuracy.

On the clips that it was fitted on, a layer looks far better than it is (on the real UCF51 audio features 80 to 99 %
right, 46 to 49 % on clips that it has not seen), and a student that distils those logits learns its labels again. So by
default the logits of training clips are out of fold: from a layer fitted without the clip's group (`cross_fit`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.data.draws import draws_of, of_draw
from avdistill.data.files import read_arrays, write_arrays, write_json
from avdistill.data.folds import folds_of
from avdistill.data.index import read_index
from avdistill.pipeline.devices import resolve_device
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


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


def fit(stage: Stage, path: Path, index: pd.DataFrame, device: str, folder: Path) -> dict[str, Any]:
    """Train the head of the features in `path` and write its files to `folder`; return its metrics.

    Raises UserError if no clip of the training split has features."""
    entry = stage.params.features[stage.item or ""]
    arrays = read_arrays(path, ("ids", "features", "mask"))
    features = torch.from_numpy(arrays["features"]).to(device)
    labels = torch.tensor(index["label"].to_numpy()).to(device)
    given = torch.tensor(index["given"].to_numpy()).to(device) if "given" in index else labels
    classes = int(labels.max()) + 1
    usable = arrays["mask"] & (index["status"] == "ok").to_numpy()
    split = {
        name: torch.from_numpy(usable & (index["split"] == name).to_numpy()).to(device)
        for name in ("train", "val", "test")
    }
    if not split["train"].any():
        raise UserError(f"{stage.item}: no usable clip of the train split has features; expected at least one")

    def accuracy(head: tuple[Tensor, Tensor], name: str) -> float:
        rows = split[name]
        right = (features[rows] @ head[0].T + head[1]).argmax(1) == labels[rows]
        return float(right.float().mean()) if len(right) else float("nan")

    heads = [fit_linear(features[split["train"]], given[split["train"]], classes, decay) for decay in DECAYS]
    scores = [accuracy(head, "val") for head in heads]
    best = int(np.nanargmax(scores)) if not np.isnan(scores).all() else len(DECAYS) // 2
    weight, bias = heads[best]
    logits = features @ weight.T + bias
    by_name = {name: accuracy(heads[best], name) for name in ("train", "val", "test")}
    train = split["train"]
    groups = index["group"].to_numpy(dtype=str)[train.cpu().numpy()]
    if entry.cross_fit and len(set(groups)) > 1:
        logits[train] = out_of_fold(features[train], given[train], groups, classes, DECAYS[best], entry.cross_fit)
    by_name["distilled"] = float((logits[train].argmax(1) == labels[train]).float().mean())
    counts = np.bincount(index["label"][split["test"].cpu().numpy()], minlength=classes)
    summary: dict[str, Any] = {
        "accuracy": by_name,  # `train` in sample; `distilled` of the logits that methods distil on training clips
        "cross_fit": entry.cross_fit,
        "majority": float(counts.max() / max(1, counts.sum())),
        "clips": {name: int(rows.sum()) for name, rows in split.items()},
        "weight_decay": DECAYS[best],
    }
    write_arrays(folder / "head.npz", weight=weight.cpu().numpy(), bias=bias.cpu().numpy())
    write_arrays(folder / "logits.npz", ids=arrays["ids"], logits=logits.cpu().numpy())
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
