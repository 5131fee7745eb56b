"""The right student is exported, whole, and says what it said before."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.schema import Params
from avdistill.data.files import digest, write_arrays, write_csv
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from models.students import build_student
from stages import export
from tests.helpers.little import Recorder

FEATURES = 32  # of the tiny student


def history(params: Params, job: str, rows: dict[tuple[str, int], list[tuple[float, float]]]) -> None:
    """history.csv of a job: (accuracy, loss) on the validation split by epoch; runs and seeds not given are worse."""
    entry = params.jobs[job]
    table = [
        {"run": run, "seed": seed, "epoch": epoch, "val_accuracy": accuracy, "val_loss": loss, "other": ""}
        for run, seed in entry.trainings()
        for epoch, (accuracy, loss) in enumerate(rows.get((run, seed), [(0.1, 2.0), (0.2, 1.0)]), start=1)
    ]
    write_csv(params.path("train", job) / "history.csv", pd.DataFrame(table))


@pytest.fixture
def trained(tiny: Params) -> Params:
    """The tiny suite with a history of every job, and weights and evaluation of kd with seed 1."""
    for job in tiny.jobs:
        history(tiny, job, {})
    history(tiny, "kd", {("kd", 1): [(0.6, 1.0), (0.9, 0.5), (0.9, 0.4), (0.7, 0.3)]})
    torch.manual_seed(0)
    student = build_student("r2plus1d_10_small", 3, tiny.recipes["small"].width)
    for module in student.modules():  # as if it had been trained: in the beginning all classes are nearly alike
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
    torch.nn.init.normal_(student.fc.weight)
    path = tiny.path("train", "kd") / "kd" / "seed-1.pt"
    path.parent.mkdir(parents=True)
    torch.save({"run": "kd", "seed": 1, "epoch": 3, "student": student.state_dict(), "distiller": {}}, path)
    random = np.random.default_rng(0)
    gallery = {
        "gallery_ids": np.array([f"c{number % 3}" for number in range(9)]),
        "gallery_labels": np.arange(9) % 3,
        "gallery_features": random.random((9, FEATURES), dtype=np.float32),
    }
    write_arrays(tiny.evaluated("kd") / "seed-1.npz", **gallery, ids=np.array(["c0_g0_0"]))
    return tiny


def exported(params: Params) -> tuple[Path, Recorder]:
    recorder = Recorder()
    export.main(Stage("export", "avsynth", params, recorder))  # type: ignore[arg-type]
    return params.path("export", "avsynth"), recorder


def test_the_best_on_the_select_part_is_chosen(trained: Params) -> None:
    assert export.choose(trained, "avsynth") == ("kd", "kd", 1, 3, 0.9, 0.4)
    # A tie in accuracy: the lower loss, wherever it stands; in loss, too: the first in params.
    for job in ("uni_modal", "mnf_csc"):
        history(trained, job, {(job, 1): [(0.9, 0.3), (0.9, 0.3)]})
    first = next(job for job in trained.jobs if job in ("uni_modal", "mnf_csc"))
    assert export.choose(trained, "avsynth") == (first, first, 1, 1, 0.9, 0.3)
    # A training that diverged.
    history(trained, "uni_modal", {("uni_modal", 0): [(0.95, float("nan"))], ("uni_modal", 1): [(0.95, 3.0)]})
    assert export.choose(trained, "avsynth").seed == 1


def with_recipe(params: Params, job: str, **changes: Any) -> Params:
    """The job alone has a recipe of its own."""
    recipes = params.recipes | {"own": params.recipes["small"].model_copy(update=changes)}
    jobs = params.jobs | {job: params.jobs[job].model_copy(update={"recipe": "own"})}
    return params.model_copy(update={"recipes": recipes, "jobs": jobs})


def test_the_test_part_never_chooses(trained: Params) -> None:
    assert export.choose(with_recipe(trained, "kd", selection="last"), "avsynth").job == "kd"
    history(trained, "kd", {("kd", 1): [(0.9, 0.1), (0.15, 1.0)]})
    assert export.choose(with_recipe(trained, "kd", selection="last"), "avsynth").val_accuracy == 0.2
    assert export.choose(trained, "avsynth").val_accuracy == 0.9
    assert export.choose(with_recipe(trained, "kd", selection="test"), "avsynth").val_accuracy == 0.2


NO_ROOM = """
import resource, sys
from pathlib import Path
import torch
from stages import export
from avdistill.pipeline.errors import UserError

class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, windows):
        return self.fc(windows)

resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
try:
    export.save_program(Student(), torch.zeros(2, 8), Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


def test_a_program_for_which_there_is_no_room_is_an_error(tmp_path: Path, root: Path) -> None:
    """In a process of its own, which PyTorch alone would end."""
    command = [sys.executable, "-c", NO_ROOM, str(tmp_path / "student.pt2")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{tmp_path}/student.pt2: File too large (")
    assert list(tmp_path.iterdir()) == []


def test_students_that_hear_do_not_compete(trained: Params) -> None:
    hears = trained.jobs["kd"].model_copy(update={"input": "spectrogram/avsynth"})
    assert export.choose(trained.model_copy(update={"jobs": trained.jobs | {"kd": hears}}), "avsynth").job != "kd"
    with pytest.raises(UserError, match=r"params.yaml: jobs: no student of dataset 'avsynth'.*takes frames/"):
        export.choose(trained.model_copy(update={"jobs": {"kd": hears}}), "avsynth")
    (trained.path("train", "kd") / "history.csv").unlink()
    with pytest.raises(UserError, match=r"train/kd/history.csv: missing"):
        export.choose(trained, "avsynth")


def test_the_program_says_what_the_student_says(trained: Params) -> None:
    folder, _ = exported(trained)
    program = torch.export.load(folder / "student.pt2").module()
    state = torch.load(trained.path("train", "kd") / "kd" / "seed-1.pt", weights_only=True)["student"]
    student = build_student("r2plus1d_10_small", 3, trained.recipes["small"].width).double().eval()
    student.load_state_dict(state)
    for number in (1, 5):
        windows = np.random.default_rng(number).integers(0, 256, (number, 4, 16, 16, 3), dtype=np.uint8)
        normal = (windows / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            expected = student(torch.from_numpy(normal.transpose(0, 4, 1, 2, 3)))
            logits, features = program(torch.from_numpy(windows))
        assert float(expected.logits.std()) > 0.05
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(features, expected.feature, atol=1e-4)


def test_what_is_written(trained: Params) -> None:
    folder, _ = exported(trained)
    before = digest(folder)
    folder, recorder = exported(trained)
    assert digest(folder) == before
    about = json.loads((folder / "export.json").read_text())
    assert (about["job"], about["run"], about["seed"], about["epoch"]) == ("kd", "kd", 1, 3)
    assert about["classes"] == ["class 0", "class 1", "class 2"]
    read = {"fps": 4, "short_side": 32, "reader": "auto", "encoding": "raw", "quality": 90}
    recipe = {"frames": 4, "stride": 8, "size": 16, "normalisation": "imagenet"}
    assert about["preprocessing"] == read | recipe
    assert 0 <= about["differences"]["student.pt2"] <= 1e-4
    given = np.load(trained.evaluated("kd") / "seed-1.npz")
    with np.load(folder / "gallery.npz") as gallery:
        assert set(gallery) == {"ids", "labels", "features"}
        for name in gallery:
            np.testing.assert_array_equal(gallery[name], given[f"gallery_{name}"])
    recorded = json.loads((folder / "provenance.json").read_text())
    assert recorded["stage"] == "export@avsynth" and recorded["lock"] == "dvc.lock"
    assert "student.pt2" in recorded["files"] and "provenance.json" not in recorded["files"]
    (logged,) = [(args, kwargs) for name, args, kwargs in recorder.calls if name == "log_model"]
    assert logged[0] == ("student-avsynth", folder.parent.parent / ".partial" / "export-avsynth")
    assert logged[1]["alias"] == "best"
    assert logged[1]["tags"]["run"] == "kd" and logged[1]["tags"]["seed"] == 1


def test_the_model_brings_all_its_code(trained: Params, tmp_path: Path) -> None:
    folder, _ = exported(trained)
    program = (
        "import sys; import avdistill.serving.recognise as r, avdistill.data.media as m; print(r.__file__, m.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder / "code", capture_output=True, text=True, check=True
    )
    assert all(Path(file).is_relative_to(folder.resolve() / "code") for file in done.stdout.split())
    # Its readers, too, are processes that run this code, whatever is in the current folder.
    (tmp_path / "avdistill").mkdir()
    (tmp_path / "avdistill" / "__init__.py").write_text("raise SystemExit('another')")
    (tmp_path / "example.mp4").write_bytes(
        base64.b64decode(json.loads((folder / "input_example.json").read_text())["data"][0][0])
    )
    program = (
        f"import sys; sys.path.insert(0, {str((folder / 'code').resolve())!r})\n"
        "from pathlib import Path; import time\n"
        "from avdistill.serving.reading import Readers; from avdistill.serving.limits import Limits\n"
        "settings = {'fps': 4, 'short_side': 32, 'reader': 'auto', 'encoding': 'raw', 'quality': 90}\n"
        "print(Readers(1).read(Path('example.mp4'), settings, Limits(), time.monotonic() + 60).shape[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "(32, 32, 3)\n"
    names = {file.relative_to(folder / "code").as_posix() for file in (folder / "code").rglob("*.py")}
    assert "avdistill/data/loader.py" in names and "avdistill/training/trainer.py" not in names


def test_a_program_that_differs_is_refused(tmp_path: Path) -> None:
    student = build_student("r2plus1d_10", 3, 0.0625)
    alone = export.Standalone(student, "imagenet").eval()
    windows = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    export.save_program(alone, windows, tmp_path / "student.pt2")
    assert export.difference(tmp_path / "student.pt2", alone, windows) <= 1e-6
    with torch.no_grad():
        student.fc.bias[1] += 2e-4
    with pytest.raises(UserError, match=r"student.pt2 differs from the student by 0.0002; expected at most 0.0001"):
        export.difference(tmp_path / "student.pt2", alone, windows)
    with torch.no_grad():
        student.fc.bias[1] = float("nan")
    with pytest.raises(UserError, match="by nan"):
        export.difference(tmp_path / "student.pt2", alone, windows)


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    alone = export.Standalone(build_student("r2plus1d_10", 3, 0.0625), "imagenet").eval()
    windows = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    export.save_onnx(alone, windows, tmp_path / "student.onnx")
    assert export.difference(tmp_path / "student.onnx", alone, windows) <= 1e-4
    assert export.difference(tmp_path / "student.onnx", alone, windows.repeat(3, 1, 1, 1, 1)) <= 1e-4


def test_the_example_is_a_video(tmp_path: Path) -> None:
    from avdistill.data.media import read_frames

    frames = np.full((9, 21, 35, 3), 200, dtype=np.uint8)
    (tmp_path / "example.mp4").write_bytes(export.example_video(frames, 2.0))
    read = read_frames(tmp_path / "example.mp4", 2.0, 20)
    assert read.shape == (4, 20, 34, 3)  # even sides, 2 s
    assert abs(float(read.mean()) - 200) < 3
