"""Synthetic suite on disk: frames of noise, and the outputs of the stages before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch

from avdistill.config.schema import Params
from avdistill.data.files import write_arrays
from avdistill.data.index import write_index
from avdistill.data.packed import StoreWriter
from avdistill.training.task import task_of
from avdistill.training.trainer import Trainer
from models import students

CLASSES = 10
VAL = 4  # clips of split val


def suite(
    folder: Path,
    clips: int,
    shape: tuple[int, ...] | None,
    recipe: dict[str, Any],
    options: dict[str, Any] | None = None,
    seed: int = 0,
    jobs: Mapping[str, tuple[str, str]] = MappingProxyType({"mnf_csc": ("mnf_csc", "A")}),
    tinted: bool = False,
) -> Params:
    """Write a suite to `folder` with `clips` training clips of `shape`, (T, H, W) for frames and (T, 64) for log-mel.

    `jobs` maps the name of each job to its method and the letters of its teachers; each has one run, of its own name.
    With `shape` None no input is written. Every eighth clip has no audio; the teacher's feature is as wide as the
    student's. `recipe` and `options` are those of the runs. Frames are noise; `tinted` ones tell the class by their
    brightness, so that there is something to learn."""
    stage = "spectrogram" if shape is not None and len(shape) == 2 else "frames"
    params = Params.model_validate(
        {
            "suite": {"name": "made_up", "title": "made up", "root": ".", "file": "params.yaml", "out": str(folder)},
            "datasets": {"noise": {"origin": {"kind": "folder", "source": "."}, "split": {}}},
            "features": {"audio": {"dataset": "noise", "teacher": "none", "input": "split/noise"}},
            "recipes": {"recipe": recipe},
            "jobs": {
                name: {
                    "method": method,
                    "dataset": "noise",
                    "input": f"{stage}/noise",
                    "recipe": "recipe",
                    **{letter: "uni_modal/uni_modal" if letter == "S" else "audio" for letter in letters},
                    "seeds": [seed],
                    "runs": {name: {"teachers": letters, "options": options or {}}},
                }
                for name, (method, letters) in jobs.items()
            },
            "report": {"baseline": next(iter(jobs))},
        }
    )
    random = np.random.default_rng(seed)
    index = clip_index(clips + VAL)
    write_index(params.index("noise"), index)
    if shape is not None:
        with StoreWriter(params.path(stage, "noise"), "uint8" if stage == "frames" else "float32") as store:
            for name, label in zip(index["id"], index["label"], strict=True):
                if stage == "frames":
                    low, high = (10 * label, 10 * label + 64) if tinted else (0, 256)
                    store.put(name, random.integers(low, high, (*shape, 3), dtype=np.uint8))
                else:
                    store.put(name, random.normal(-30, 15, shape).astype(np.float32))
    ids = index["id"].to_numpy(dtype=str)
    with torch.device("meta"):
        width = students.build_student(
            params.recipes["recipe"].student, CLASSES, params.recipes["recipe"].width
        ).feature_dim
    features = random.random((len(ids), width), dtype=np.float32)
    logits = random.standard_normal((len(ids), CLASSES), dtype=np.float32)
    mask = np.arange(len(ids)) % 8 != 7
    blocks = {f"block_{level}": random.random((len(ids), 8), dtype=np.float32) for level in range(4)}
    write_arrays(
        params.path("teacher_features", "audio") / "features.npz", ids=ids, features=features, mask=mask, **blocks
    )
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


def trainer(params: Params, device: str, job: str = "mnf_csc") -> Trainer:
    """Build the trainer of a job's run, ready for its first epoch and configured as in stage train."""
    torch.use_deterministic_algorithms(True)
    folder = Path(params.suite.out) / "benchmark"
    ready = Trainer(task_of(params, job, params.jobs[job].seeds[0], device, folder, None))  # type: ignore[arg-type]
    ready.student.train()
    ready.distiller.train()
    ready.distiller.start_epoch(0)
    return ready
