"""MLflow model of a trained student: predicts class, probabilities and nearest training videos of a video file.

Reads the folder written by stage export. MLflow loads it as a pyfunc model (`loader_module` in MLmodel), so
`mlflow models serve` and `mlflow models predict` work:

    mlflow models serve -m models:/student-<dataset>@best --env-manager local
    curl 127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
        -d '{"dataframe_records": [{"video": "/some/clip.mp4"}], "params": {"nearest": 3}}'

`video` is the path of a file on the serving machine, or the bytes of a file in base64. URLs are not fetched.

Environment: AV_SERVE_PATHS=off rejects paths, for servers reachable by untrusted clients; AV_SERVE_MB (64) and
AV_SERVE_SECONDS (600) limit the size of a base64 file and the duration of a video.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import tempfile
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
from avdistill.data.jpeg import JpegClip, encode
from avdistill.data.loader import centre_crop, take_window
from avdistill.data.media import read_frames
from avdistill.pipeline.errors import UserError

COLUMNS = ("class", "probability", "probabilities", "nearest", "error")
NEAREST = 5
BATCH = 64  # windows
# Signatures of self-contained video files. All other files are rejected unread, because FFmpeg would treat some text
# files as playlists and open the files they list.
SIGNATURES = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip|pnot)"  # MP4, MOV, 3GP
    rb"|\x1aE\xdf\xa3"  # Matroska, WebM
    rb"|RIFF.{4}AVI "
    rb"|0&\xb2u\x8ef\xcf\x11"  # ASF, WMV
    rb"|FLV\x01|OggS|GIF8[79]a|\x06\x0e\x2b\x34"  # the last: MXF
    rb"|\x00\x00\x01[\xba\xb3]"  # MPEG program stream, MPEG video
    rb"|G.{187}G|.{4}G.{191}G",  # MPEG transport stream, in packets of 188 and 192 bytes
    re.DOTALL,
)
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

    def predict(self, videos: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return one row of COLUMNS per value of column `video`, with the `params["nearest"]` nearest training videos.

        A video that cannot be read has only a one-line `error`. Raises MlflowException, which MLflow's server returns
        with status 400, if no video can be read or column `video` is missing."""
        if "video" not in videos:
            raise _refusal(f"expected the column 'video', found {', '.join(map(str, videos)) or 'none'}")
        shown = int((params or {}).get("nearest", NEAREST))
        rows = [self._row(value, shown) for value in videos["video"]]
        if rows and all(row["error"] for row in rows):
            raise _refusal(f"no video can be read; first error: {rows[0]['error']}")
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)

    def recognise(self, path: Path) -> tuple[Tensor, Tensor]:
        """Return probabilities (C,) and feature (D,) of a video file, averaged over its windows as in stage evaluate.

        Raises UserError if it is not a video or too long."""
        with path.open("rb") as file:
            if not SIGNATURES.match(file.read(256)):
                raise UserError("not a video file; expected MP4, MOV, Matroska, WebM, AVI, WMV, FLV, Ogg or MPEG")
        settings, longest = self.preprocessing, _limit("AV_SERVE_SECONDS", 600)
        fps, short_side, reader = (settings[name] for name in ("fps", "short_side", "reader"))
        # Reading one frame more than allowed detects a video that is too long without decoding the rest.
        frames = read_frames(path, fps, short_side, end=longest + 1 / fps, reader=reader)
        if len(frames) > longest * fps:
            raise UserError(f"longer than {longest} s (AV_SERVE_SECONDS)")
        # The student was trained on JPEG frames, so compress here too.
        clip = JpegClip(encode(frames, settings["quality"])) if settings["encoding"] == "jpeg" else frames
        length, stride = settings["frames"], settings["stride"]
        starts = range(0, max(1, len(frames) - length + 1), stride)
        with torch.inference_mode():
            outputs = [
                self.student(torch.from_numpy(np.stack([self._window(clip, start) for start in some])))
                for some in (starts[first : first + BATCH] for first in range(0, len(starts), BATCH))
            ]
            logits, features = (torch.cat(parts) for parts in zip(*outputs, strict=True))
            return logits.softmax(1).mean(0), features.mean(0)

    def _window(self, clip: np.ndarray | JpegClip, start: int) -> np.ndarray:
        return centre_crop(take_window(clip, start, self.preprocessing["frames"]), self.preprocessing["size"])

    def _row(self, value: object, shown: int) -> dict[str, Any]:
        path: Path | None = None
        try:
            with _file(value) as path:
                probabilities, feature = self.recognise(path)
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
def _file(value: object) -> Iterator[Path]:
    """Yield the path of a value of column `video`; base64 is decoded to a temporary file. Raises UserError."""
    if not isinstance(value, str):
        raise UserError(f"expected a string, found {type(value).__name__}")
    paths = os.environ.get("AV_SERVE_PATHS", "on") != "off"
    if paths and len(value) < 4096 and "\0" not in value and Path(value).is_file():
        yield Path(value)
        return
    most = _limit("AV_SERVE_MB", 64)
    if len(value) * 3 / 4 > most * 2**20:
        raise UserError(f"more than {most} MB (AV_SERVE_MB)")
    found = BASE64.fullmatch(value)
    try:
        data = base64.b64decode(found["data"], validate=True) if found else b""
    except binascii.Error:
        data = b""
    if not data:
        expected = "the path of a file on this machine, or a file in base64" if paths else "a file in base64"
        raise UserError(f"expected {expected}; found {value[:40]!r}")
    with tempfile.NamedTemporaryFile(prefix="video-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _limit(name: str, default: int) -> int:
    """Return a limit from the environment. Raises UserError unless it is a positive integer."""
    value = os.environ.get(name) or str(default)
    if not (value.isdecimal() and int(value) > 0):
        raise UserError(f"{name}: expected a whole number above 0, found {value!r}")
    return int(value)
