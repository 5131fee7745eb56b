"""MLflow model of a trained student: predicts class, probabilities and nearest training videos of a video file.

Reads the folder written by stage export. MLflow loads it as a pyfunc model (`loader_module` in MLmodel), so
`mlflow models serve` and `mlflow models predict` work:

    mlflow models serve -m models:/student-<dataset>@best --env-manager local
    curl 127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
        -d '{"dataframe_records": [{"video": "/some/clip.mp4"}], "params": {"nearest": 3}}'

`video` is the path of a file on the serving machine, or the bytes of a file in base64. URLs are not fetched.
avdistill/serving/limits.py has the limits of a request, which environment variables set.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.data.files import read_arrays
from avdistill.data.loader import centre_crop, take_window
from avdistill.pipeline.errors import UserError
from avdistill.serving.limits import Limits, limits
from avdistill.serving.reading import Readers, too_late

COLUMNS = ("class", "probability", "probabilities", "nearest", "error")
NEAREST = 5
BATCH = 8  # windows; so many are computed at a time, whatever a request asks
BASE64 = re.compile(r"(?:data:[\w./+-]*;base64,)?(?P<data>[A-Za-z0-9+/]+={0,2})\s*")


class Recogniser:
    """An exported student. `folder` is the output of stage export."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.classes: list[str] = about["classes"]
        self.preprocessing: dict[str, Any] = about["preprocessing"]
        self.student = load_program(folder / "student.pt2")
        gallery = read_arrays(folder / "gallery.npz")
        self.ids, self.labels = gallery["ids"], gallery["labels"]
        self.gallery = F.normalize(torch.from_numpy(gallery["features"]), dim=1)
        self.readers, self._turn = Readers(), threading.Lock()

    def predict(self, videos: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return one row of COLUMNS per value of column `video`, with the `params["nearest"]` nearest training videos.

        A video that cannot be read within the limits has only a one-line `error`. Raises MlflowException, which
        MLflow's server returns with status 400, if no video can be read or column `video` is missing."""
        if "video" not in videos:
            raise _refusal(f"expected the column 'video', found {', '.join(map(str, videos)) or 'none'}")
        shown = int((params or {}).get("nearest", NEAREST))
        try:
            bounds = limits()
        except UserError as error:
            raise _refusal(str(error)) from None
        until = time.monotonic() + bounds.request_seconds
        rows = [self._row(value, shown, bounds, until) for value in videos["video"]]
        if rows and all(row["error"] for row in rows):
            raise _refusal(f"no video can be read; first error: {rows[0]['error']}")
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)

    def recognise(self, path: Path, bounds: Limits, until: float) -> tuple[Tensor, Tensor]:
        """Return probabilities (C,) and feature (D,) of a video file, averaged over its windows as in stage evaluate.

        Raises UserError if it is not a video, exceeds a limit, or time.monotonic() reaches `until`."""
        clip = self.readers.read(path, self.preprocessing, bounds, until)
        length, stride, size = (self.preprocessing[name] for name in ("frames", "stride", "size"))
        starts = range(0, max(1, len(clip) - length + 1), stride)
        outputs = []
        for some in (starts[first : first + BATCH] for first in range(0, len(starts), BATCH)):
            windows = torch.from_numpy(np.stack([centre_crop(take_window(clip, at, length), size) for at in some]))
            # In turn: PyTorch uses all cores for one batch, and the memory of several would add up.
            if not self._turn.acquire(timeout=max(0.0, until - time.monotonic())):
                raise too_late(bounds)
            try:
                with torch.inference_mode():
                    outputs.append(self.student(windows))
            finally:
                self._turn.release()
        logits, features = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        return logits.softmax(1).mean(0), features.mean(0)

    def _row(self, value: object, shown: int, bounds: Limits, until: float) -> dict[str, Any]:
        path: Path | None = None
        try:
            if time.monotonic() >= until:
                raise too_late(bounds)
            with _file(value, bounds) as path:
                probabilities, feature = self.recognise(path, bounds, until)
        except (UserError, OSError) as error:
            reason = " ".join(str(error).split()).removeprefix(f"{path}: ")
            return dict.fromkeys(COLUMNS) | {"error": reason}
        similarity = self.gallery @ F.normalize(feature, dim=0)
        best, label = similarity.topk(min(max(shown, 0), len(similarity))), int(probabilities.argmax())
        return {
            "class": self.classes[label],
            "probability": float(probabilities[label]),
            "probabilities": dict(zip(self.classes, probabilities.tolist(), strict=True)),
            "nearest": [
                {"video": str(self.ids[row]), "class": self.classes[self.labels[row]], "similarity": cosine}
                for cosine, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ],
            "error": None,
        }


def load_program(path: Path) -> nn.Module:
    """Load a torch.export program as a module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # the weights are never written
        return torch.export.load(path).module()


def _refusal(reason: str) -> Exception:
    """Return an exception with status 400; for any other type, MLflow's server would return a traceback."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    return MlflowException(reason, error_code=BAD_REQUEST)


def _load_pyfunc(path: str) -> Recogniser:
    """Load the model; called by MLflow."""
    return Recogniser(Path(path))


@contextmanager
def _file(value: object, bounds: Limits) -> Iterator[Path]:
    """Yield the path of a value of column `video`; base64 is decoded to a temporary file. Raises UserError."""
    if not isinstance(value, str):
        raise UserError(f"expected a string, found {type(value).__name__}")
    if found := _existing(value, bounds.paths):
        yield found
        return
    if len(value) * 3 / 4 > bounds.mb * 2**20:
        raise UserError(f"more than {bounds.mb} MB (AV_SERVE_MB)")
    match = BASE64.fullmatch(value)
    try:
        data = base64.b64decode(match["data"], validate=True) if match else b""
    except binascii.Error:
        data = b""
    if not data:
        where = "on this machine" if bounds.paths == "on" else f"in {bounds.paths}"
        path = "" if bounds.paths == "off" else f"the path of a file {where}, or "
        raise UserError(f"expected {path}a file in base64; found {value[:40]!r}")
    with tempfile.NamedTemporaryFile(prefix="video-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _existing(value: str, paths: str) -> Path | None:
    """Return the file that `value` names, links followed, if there is one and `paths` (AV_SERVE_PATHS) allows it."""
    if paths == "off" or len(value) >= 4096 or "\0" in value:
        return None
    try:
        folder = Path("/" if paths == "on" else paths).resolve()
        path = (Path() if paths == "on" else folder).joinpath(value).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, RuntimeError):  # a name that is too long, links in a circle
        return None
