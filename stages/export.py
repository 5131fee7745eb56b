"""Stage export: export the best student of a dataset as a standalone MLflow model.

The best run and seed has the highest validation accuracy, then the lowest validation loss. Candidates are all runs of
the dataset with a video student and a recipe that does not select on the test split. Writes to export/<dataset>/ a
model for `mlflow models serve -m <folder> --env-manager local`:

  student.pt2     torch.export program: windows (B, T, S, S, 3) uint8 to logits (B, C) and features (B, D), any B
  student.onnx    the same for ONNX Runtime, if onnxscript and onnxruntime are installed
  gallery.npz     ids, labels and features of the training videos, from stage evaluate
  export.json     the chosen run, classes by label, preprocessing, and the largest difference of each program from the
                  student (at most TOLERANCE)
  provenance.json what the model comes from: digests of data, params and code, versions of packages (`make verify`)
  MLmodel, requirements.txt, python_env.yaml, *input_example.json, code/      files required by MLflow

The programs run on the CPU in float32, whatever the precision of the training, and need neither teacher nor sound. The
model is registered as `student-<dataset>`; alias `best` is the last exported version.
"""

from __future__ import annotations

import base64
import io
import json
import platform
import shutil
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn

from avdistill.config.schema import Params
from avdistill.data.files import digest, read_arrays, replacing, write_arrays, write_json, write_text
from avdistill.data.index import read_index
from avdistill.data.jpeg import JpegClip
from avdistill.data.loader import ClipSet, EvaluationWindows, to_input
from avdistill.data.media import write_video
from avdistill.pipeline import code, provenance
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from avdistill.serving import recognise
from avdistill.training.inference import load_student
from avdistill.training.task import trained_student
from models.students import Student

TOLERANCE = 1e-4  # absolute difference of logits and features
PACKAGES = ("mlflow", "torch", "numpy", "pandas", "pydantic", "pyyaml", "pillow", "av", "decord")
VIDEO = {"name": "video", "type": "string", "required": True}
NEIGHBOUR = {
    "video": {"type": "string", "required": True},
    "class": {"type": "string", "required": True},
    "similarity": {"type": "double", "required": True},
}
ANSWER = [
    {"name": "class", "type": "string", "required": False},
    {"name": "probability", "type": "double", "required": False},
    {"name": "probabilities", "type": "map", "values": {"type": "double"}, "required": False},
    {"name": "nearest", "type": "array", "items": {"type": "object", "properties": NEIGHBOUR}, "required": False},
    {"name": "error", "type": "string", "required": False},
]


class Choice(NamedTuple):
    """A trained student with the validation metrics of its selected epoch."""

    job: str
    run: str
    seed: int
    epoch: int
    val_accuracy: float
    val_loss: float


class Standalone(nn.Module):
    """A student with its normalisation: windows (B, T, S, S, 3) uint8 to logits (B, C) and features (B, D)."""

    def __init__(self, student: Student, normalisation: str) -> None:
        super().__init__()
        self.student, self.normalisation = student, normalisation

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and features for any number of windows."""
        output = self.student(to_input(windows, self.normalisation))
        return output.logits, output.feature


def choose(params: Params, dataset: str) -> Choice:
    """Return the best student of a dataset on the validation split; of equal ones, the first in params.

    Raises UserError if there is no candidate."""
    found: list[Choice] = []
    for name, job in params.jobs.items():
        selection = params.recipes[job.recipe].selection
        if job.dataset != dataset or not job.input.startswith("frames/") or selection == "test":
            continue
        path = params.path("train", name) / "history.csv"
        if not path.exists():
            raise UserError(f"{path}: missing; run `dvc repro train@{name}` first")
        columns = [column for column in Choice._fields if column != "job"]
        history = pd.read_csv(
            path,
            usecols=columns,
            dtype={"run": str},
            keep_default_na=False,
            na_values={key: ["", "nan", "NaN"] for key in ("val_accuracy", "val_loss")},
        )
        # A diverged training has no accuracy in its last epoch, and no weights.
        converged = history.groupby(["run", "seed"])["val_accuracy"].transform(lambda values: values.notna().all())
        history = history[converged.astype(bool)].fillna({"val_loss": np.inf})
        ranks = [False] if selection == "last" else [False, True, True]
        by = ["epoch"] if selection == "last" else ["val_accuracy", "val_loss", "epoch"]
        selected = history.sort_values(by, ascending=ranks).drop_duplicates(["run", "seed"]).sort_index()
        found += [Choice(name, *row) for row in selected[columns].itertuples(index=False)]
    if not found:
        raise UserError(
            f"{params.suite.file}: jobs: no student of dataset '{dataset}' can be exported; expected a job "
            "that takes frames/… with a recipe whose selection is val or last"
        )
    return min(found, key=lambda choice: (-choice.val_accuracy, choice.val_loss))


def save_program(student: Standalone, windows: Tensor, path: Path) -> None:
    """Write the student as a torch.export program; `windows` is an example batch of at least two."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found")  # raised for weights on other devices
        batch = {"windows": {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(student, (windows,), dynamic_shapes=batch)
    # Given a path, torch writes from C++, which aborts the process if the disk is full.
    content = io.BytesIO()
    torch.export.save(program, content)
    with replacing(path) as partial:
        partial.write_bytes(content.getvalue())


def save_onnx(student: Standalone, windows: Tensor, path: Path) -> None:
    """Write the student as an ONNX model with input `windows`, outputs `logits` and `feature`."""
    batch = {"windows": {0: torch.export.Dim("batch", min=1)}}
    program = torch.onnx.export(
        student,
        (windows,),
        input_names=["windows"],
        output_names=["logits", "feature"],
        dynamic_shapes=batch,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # always, with `dynamo`
    program.save(path)


def difference(path: Path, student: Standalone, windows: Tensor) -> float:
    """Return the largest absolute difference in outputs between a written program and the student.

    Compared on the first window and on all `windows`. Raises UserError if it exceeds TOLERANCE."""
    if path.suffix == ".onnx":
        import onnxruntime  # type: ignore  # may be missing

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    else:
        program = recognise.load_program(path)
    gaps = []
    with torch.inference_mode():
        for batch in (windows[:1], windows):
            outputs = session.run(None, {"windows": batch.numpy()}) if path.suffix == ".onnx" else program(batch)
            for expected, found in zip(student(batch), outputs, strict=True):
                gaps.append((expected - torch.as_tensor(found)).abs().max())
    largest = float(torch.stack(gaps).max())
    if not largest <= TOLERANCE:
        raise UserError(f"{path.name} differs from the student by {largest:g}; expected at most {TOLERANCE:g}")
    return largest


def describe_model(folder: Path, example: bytes) -> None:
    """Write the files that MLflow needs beside the programs; `example` is the content of a video file."""
    for file in code.files_of("avdistill.serving.recognise"):
        copy = folder / "code" / file.relative_to(code.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    installed = []
    for package in PACKAGES:
        try:
            # Without the local version ("+cu128"), which package indexes do not have.
            installed.append(f"{package}=={version(package).partition('+')[0]}\n")
        except PackageNotFoundError:  # decord is optional
            continue
    write_text(folder / "requirements.txt", "".join(installed))
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    write_text(folder / "python_env.yaml", yaml.safe_dump(environment, sort_keys=False))
    table = {"columns": ["video"], "data": [[base64.b64encode(example).decode()]]}
    write_json(folder / "input_example.json", table)
    write_json(folder / "serving_input_example.json", {"dataframe_split": table})
    nearest = {"name": "nearest", "type": "long", "default": recognise.NEAREST, "shape": None}
    flavour = {
        "loader_module": "avdistill.serving.recognise",
        "code": "code",
        "env": {"virtualenv": "python_env.yaml"},
        "python_version": platform.python_version(),
    }
    model = {
        "flavors": {"python_function": flavour},
        "mlflow_version": version("mlflow"),
        "signature": {"inputs": json.dumps([VIDEO]), "outputs": json.dumps(ANSWER), "params": json.dumps([nearest])},
        "saved_input_example_info": {
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "dataframe",
            "pandas_orient": "split",
        },
    }
    write_text(folder / "MLmodel", yaml.safe_dump(model, sort_keys=False))


def example_video(clip: np.ndarray | JpegClip, fps: float) -> bytes:
    """Encode up to 2 s of a clip (T, H, W, 3) uint8 as a video file without sound."""
    rate = max(1, round(fps))
    frames = clip[: 2 * rate]
    height, width = (side // 2 * 2 for side in frames.shape[1:3])  # H.264 requires even sides
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.mp4"
        write_video(path, frames[:, :height, :width], rate, None)
        return path.read_bytes()


def main(stage: Stage) -> None:
    """Choose, export, check and register the best student."""
    params, name = stage.params, str(stage.item)
    torch.set_num_threads(1)
    choice = choose(params, name)
    job = params.jobs[choice.job]
    frames = params.frames[job.input.removeprefix("frames/")]
    recipe = params.recipes[job.recipe]
    index = stage.input("split", name) / "index.csv"
    clips = ClipSet(index, stage.input(*job.input.split("/")), ("train",))
    evaluated = stage.input("evaluate", choice.job) / choice.run / f"seed-{choice.seed}.npz"
    gallery = read_arrays(evaluated)
    student, _ = load_student(trained_student(params, choice.run, choice.seed), clips.classes, torch.device("cpu"))
    alone = Standalone(student, recipe.normalisation).eval()
    here = recipe.model_copy(update={"loader_workers": 0})
    windows = next(iter(EvaluationWindows(clips, here, 8)))[0]
    windows = torch.cat([windows, windows.flip(1)])  # at least two
    labels = read_index(index)[["label", "class"]].drop_duplicates().sort_values("label")
    with stage.output() as folder:
        save_program(alone, windows, folder / "student.pt2")
        differences = {"student.pt2": difference(folder / "student.pt2", alone, windows)}
        if find_spec("onnxscript") and find_spec("onnxruntime"):
            save_onnx(alone, windows, folder / "student.onnx")
            differences["student.onnx"] = difference(folder / "student.onnx", alone, windows)
        arrays = {key: gallery[f"gallery_{key}"] for key in ("ids", "labels", "features")}
        write_arrays(folder / "gallery.npz", **arrays)
        about: dict[str, Any] = {
            "dataset": name,
            "method": job.method,
            **choice._asdict(),
            "differences": differences,
            "classes": labels["class"].tolist(),
            "preprocessing": frames.model_dump(exclude={"dataset"})
            | recipe.model_dump(include={"frames", "stride", "size", "normalisation"}),
        }
        write_json(folder / "export.json", about)
        describe_model(folder, example_video(clips.store[clips.ids[0]], frames.fps))
        suite = params.suite
        read = [("split", name), ("frames", job.input.removeprefix("frames/")), ("train", choice.job)]
        paths = [params.path(*each).as_posix() for each in [*read, ("evaluate", choice.job)]]
        paths.append(code.file_of(params.path("code"), "export", name).as_posix())
        lock = Path(suite.file).with_name("dvc.lock")
        provenance.record(folder, f"export@{name}", lock, suite.out, paths)
        stage.run.log_params({key: about[key] for key in ("job", "run", "seed", "method", "epoch")})
        stage.run.log_metrics({"val_accuracy": choice.val_accuracy, "val_loss": choice.val_loss})
        stage.run.log_metrics({f"difference/{key}": value for key, value in differences.items()})
        stage.run.log_dataset(name=name, path=index, digest=digest(index), context="export")
        stage.run.log_model(
            f"student-{name}",
            folder,
            alias="best",
            description=f"Predicts the class of a video among those of {name}, and the most similar training videos.",
            tags=choice._asdict(),
        )
