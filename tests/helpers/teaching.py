"""For the tests of the teachers' stages: a suite of one dataset, and teachers' checkpoints as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from avdistill.config.schema import Params
from avdistill.data.index import write_index
from avdistill.pipeline.stage import Stage
from models.logmel import mel_filters
from models.teachers import build_teacher
from models.teachers.cnn14 import Cnn14
from tests.helpers.little import Recorder


def suite(tmp_path: Path, index: pd.DataFrame | None = None, **sections: Any) -> Params:
    """Params of a suite in tmp_path with a dataset `d`, whose index is there already if it is given."""
    usual = {"method": "uni_modal", "dataset": "d", "input": "frames/d", "recipe": "r", "seeds": [0], "runs": {"u": {}}}
    params = Params.model_validate(
        {
            "suite": {"name": "t", "title": "t", "root": ".", "file": "params.yaml", "out": str(tmp_path / "out")},
            "device": "cpu",
            "datasets": {"d": {"origin": {"kind": "folder", "source": "."}, "split": {}}},
            "frames": {"d": {"dataset": "d"}},
            "recipes": {"r": {}},
            "jobs": {"c": usual},
            "report": {"baseline": "u"},
        }
        | sections
    )
    if index is not None:
        write_index(params.index("d"), index)
    return params


def stage(params: Params, name: str, item: str) -> Stage:
    """An execution of a stage that is not tracked."""
    return Stage(name, item, params, Recorder())  # type: ignore[arg-type]


def index_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """An index of whole clips that have sound, but for what `rows` say."""
    usual = {"start": 0.0, "end": 2.0, "seconds": 2.0, "audio": "yes", "status": "ok", "reason": ""}
    table = pd.DataFrame([usual | row for row in rows]).sort_values("id", ignore_index=True)
    classes = {name: label for label, name in enumerate(sorted(set(table["class"])))}
    return table.assign(label=table["class"].map(classes))


def cnn14(classes: int = 527, embedding: int = 24, seed: int = 0) -> Cnn14:
    """A narrow CNN14 (width 1/16) whose batch norms have seen something."""
    torch.manual_seed(seed)
    model = build_teacher("cnn14", classes, 1 / 16, embedding)
    assert isinstance(model, Cnn14)
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    model.bn0.running_mean.fill_(-40)
    model.bn0.running_var.fill_(400)
    return model.eval()


def save_panns(model: Cnn14, path: Path) -> Path:
    """A checkpoint as PANNs' training program of 2020 wrote them: with the front end, in the file format of that day,
    beside the state of the sampler, whose arrays are NumPy 1's."""
    front_end = {"spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024)}
    front_end["logmel_extractor.melW"] = mel_filters()
    sampler = {"indexes": np.arange(9), "pointer": np.int64(3), "weights": np.ones(2, dtype=np.float32)}
    content = {"iteration": 5, "model": front_end | model.state_dict(), "sampler": sampler}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    return path
