"""Synthetic suite on disk: frames of noise, and the outputs of the stages before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.files import write_arrays
from avdistill.data.index import write_index
from avdistill.data.packed import StoreWriter
from avdistill.training.trainer import Task, Trainer

CLASSES = 10
VAL = 4  # clips of split val


def suite(
    folder: Path,
    clips: int,
    shape: tuple[int, int, int] | None,
    recipe: dict[str, Any],
    options: dict[str, Any] | None = None,
    seed: int = 0,
) -> Params:
    """Write a suite to `folder` with one job, `mnf_csc`, of one run, and `clips` training clips of `shape` (T, H, W).

    With `shape` None no frames are written. Every eighth clip has no audio; the teacher's feature is as wide as the
    student's. `recipe` and `options` are those of the run."""
    params = Params.model_validate(
        {
            "suite": {"name": "made_up", "title": "made up", "root": ".", "file": "params.yaml", "out": str(folder)},
            "datasets": {"noise": {"origin": {"kind": "folder", "source": "."}, "split": {}}},
            "features": {"audio": {"dataset": "noise", "teacher": "none", "input": "split/noise"}},
            "recipes": {"recipe": recipe},
            "jobs": {
                "mnf_csc": {
                    "method": "mnf_csc",
                    "dataset": "noise",
                    "input": "frames/noise",
                    "recipe": "recipe",
                    "A": "audio",
                    "seeds": [seed],
                    "runs": {"mnf_csc": {"teachers": "A", "options": options or {}}},
                }
            },
            "report": {"baseline": "mnf_csc"},
        }
    )
    random = np.random.default_rng(seed)
    index = clip_index(clips + VAL)
    write_index(params.path("split", "noise") / "index.csv", index)
    if shape is not None:
        with StoreWriter(params.path("frames", "noise"), "uint8") as store:
            for name in index["id"]:
                store.put(name, random.integers(0, 256, (*shape, 3), dtype=np.uint8))
    ids = index["id"].to_numpy(dtype=str)
    width = round(512 * params.recipes["recipe"].width)
    features = random.random((len(ids), width), dtype=np.float32)
    logits = random.standard_normal((len(ids), CLASSES), dtype=np.float32)
    mask = np.arange(len(ids)) % 8 != 7
    write_arrays(params.path("teacher_features", "audio") / "features.npz", ids=ids, features=features, mask=mask)
    write_arrays(params.path("teacher_head", "audio") / "logits.npz", ids=ids, logits=logits)
    return params


def clip_index(clips: int) -> pd.DataFrame:
    """Return an index of clips: the last VAL are in split val, all others in split train."""
    numbers = np.arange(clips)
    return pd.DataFrame(
        {
            "id": [f"clip{number:06d}" for number in numbers],
            "file": [f"{number % CLASSES}/clip{number:06d}.mp4" for number in numbers],
            "label": numbers % CLASSES,
            "class": [f"class{number % CLASSES}" for number in numbers],
            "group": [f"group{number // 7}" for number in numbers],
            "split": np.where(numbers < clips - VAL, "train", "val"),
            "start": 0.0,
            "end": 4.0,
            "seconds": 4.0,
            "audio": "yes",
            "status": "ok",
            "reason": "",
        }
    )


def trainer(params: Params, device: str) -> Trainer:
    """Build the trainer of the suite's run, ready for its first epoch and configured as in stage train."""
    import torch

    torch.use_deterministic_algorithms(True)
    job, run = "mnf_csc", "mnf_csc"
    folder = Path(params.suite.out) / "benchmark"
    ready = Trainer(Task(params, job, run, params.jobs[job].seeds[0], device, folder, None))  # type: ignore[arg-type]
    ready.student.train()
    ready.distiller.train()
    ready.distiller.start_epoch(0)
    return ready
