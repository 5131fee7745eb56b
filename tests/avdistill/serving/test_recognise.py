"""A video in, an answer out: against NumPy in float64, and with all that is no video."""

from __future__ import annotations

import base64
import json
import os
import pickle
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from avdistill.data.files import write_arrays, write_json
from avdistill.data.loader import centre_crop
from avdistill.data.media import read_frames, write_video
from avdistill.pipeline.errors import UserError
from avdistill.serving import recognise
from avdistill.serving.limits import Limits
from avdistill.serving.reading import SIGNATURES
from models.students import build_student
from stages import export
from tests.helpers.little import rotate

CLASSES, SIZE, FPS = ["a", "b", "c"], 16, 4
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stage export makes, of a student that nobody trained; and its weights."""
    made = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    student = build_student("r2plus1d_10", len(CLASSES), 0.0625)
    windows = torch.randint(0, 256, (2, 4, SIZE, SIZE, 3), dtype=torch.uint8)
    export.save_program(export.Standalone(student, "imagenet").eval(), windows, made / "student.pt2")
    torch.save(student, made / "student.pt")
    features = np.random.default_rng(0).random((7, student.feature_dim), dtype=np.float32)
    ids = np.array([f"v{number}" for number in range(7)])
    write_arrays(made / "gallery.npz", ids=ids, labels=np.arange(7) % 3, features=features)
    preprocessing = {"fps": FPS, "short_side": SIZE, "reader": "auto", "frames": 4, "stride": 2, "size": SIZE}
    preprocessing |= {"encoding": "raw", "quality": 90}
    write_json(made / "export.json", {"classes": CLASSES, "preprocessing": preprocessing})
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> recognise.Recogniser:
    return recognise._load_pyfunc(str(folder))


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    """2.5 s of noise that moves, wider than high."""
    frames = np.random.default_rng(1).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    write_video(folder / "clip.mp4", frames, 12, None)
    return folder / "clip.mp4"


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def ask(model: recognise.Recogniser, *videos: object, **params: int) -> list[dict[str, Any]]:
    answer = model.predict(pd.DataFrame({"video": videos}, dtype=object), params)
    assert tuple(answer.columns) == recognise.COLUMNS
    return [dict(row) for row in answer.to_dict("records")]


def recognised(model: recognise.Recogniser, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return model.recognise(path, Limits(), time.monotonic() + 60)


def expected(folder: Path, clip: Path, starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and feature in float64, windows cut by hand."""
    frames = read_frames(clip, FPS, SIZE)
    left = (frames.shape[2] - SIZE) // 2
    normal = (frames[:, :, left : left + SIZE] / 255 - MEAN) / STD
    windows = np.stack([np.take(normal, range(start, start + 4), axis=0, mode="wrap") for start in starts])
    student = torch.load(folder / "student.pt", weights_only=False).double()
    with torch.no_grad():
        output = student(torch.from_numpy(windows.transpose(0, 4, 1, 2, 3)))
    raised = np.exp(output.logits.numpy())
    return (raised / raised.sum(1, keepdims=True)).mean(0), output.feature.numpy().mean(0)


def test_the_answer_for_a_path_and_for_base64(model: recognise.Recogniser, folder: Path, clip: Path) -> None:
    probabilities, feature = expected(folder, clip, [0, 2, 4, 6])  # ten frames
    gallery = np.load(folder / "gallery.npz")
    rows = gallery["features"].astype(np.float64)
    cosines = rows @ feature / np.linalg.norm(rows, axis=1) / np.linalg.norm(feature)
    answers = ask(model, str(clip), in_base64(clip), f"data:video/mp4;base64,{in_base64(clip)}\n", nearest=3)
    for answer in answers:
        assert answer["error"] is None
        assert answer["class"] == CLASSES[int(probabilities.argmax())]
        assert answer["probability"] == pytest.approx(probabilities.max(), abs=1e-5)
        assert answer["probabilities"] == pytest.approx(dict(zip(CLASSES, probabilities, strict=True)), abs=1e-5)
        order = np.argsort(-cosines)[:3]
        assert [near["video"] for near in answer["nearest"]] == [f"v{row}" for row in order]
        assert [near["class"] for near in answer["nearest"]] == [CLASSES[row % 3] for row in order]
        assert [near["similarity"] for near in answer["nearest"]] == pytest.approx(cosines[order], abs=1e-5)
    json.dumps(answers)  # as the server will


def test_a_video_shorter_than_a_window_is_repeated(model: recognise.Recogniser, folder: Path) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    write_video(folder / "short.mp4", frames, 12, None)
    probabilities, feature = recognised(model, folder / "short.mp4")
    wanted = expected(folder, folder / "short.mp4", [0])
    np.testing.assert_allclose(probabilities, wanted[0], atol=1e-5)
    np.testing.assert_allclose(feature, wanted[1], atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_a_rotated_video_is_served_upright(
    model: recognise.Recogniser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int, ending: str
) -> None:
    """As phones store it: the frames lie on their side, and a flag tells so. From a path and from bytes."""
    upright = np.zeros((30, 48, 32, 3), dtype=np.uint8)
    upright[:, :24] = 255  # the upper half is white
    path = tmp_path / f"phone.{ending}"
    write_video(path, np.rot90(upright, -turns, axes=(1, 2)), 12, None)
    rotate(path, turns)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(
        recognise, "centre_crop", lambda window, size: (seen.append(window), centre_crop(window, size))[1]
    )
    first, second = ask(model, str(path), in_base64(path))
    assert first == second and first["error"] is None
    for window in seen:
        assert window.shape[1:] == (SIZE, SIZE, 3)  # the middle of it
        half = SIZE // 2
        assert window[:, : half - 1].min() > 200 and window[:, half + 1 :].max() < 50


def test_a_student_of_jpegs_sees_jpegs(folder: Path, clip: Path) -> None:
    lossy = recognise.Recogniser(folder)
    plain = recognised(lossy, clip)[1]
    lossy.preprocessing = lossy.preprocessing | {"encoding": "jpeg", "quality": 95}
    nearly = recognised(lossy, clip)[1]
    lossy.preprocessing = lossy.preprocessing | {"quality": 5}
    ugly = recognised(lossy, clip)[1]
    assert 0 < (plain - nearly).norm() < (plain - ugly).norm()


@pytest.mark.parametrize(("asked", "found"), [({}, 5), ({"nearest": 100}, 7), ({"nearest": 0}, 0)])
def test_how_many_are_near(model: recognise.Recogniser, clip: Path, asked: dict[str, int], found: int) -> None:
    assert len(ask(model, str(clip), **asked)[0]["nearest"]) == found


def test_a_bad_video_does_not_spoil_the_others(model: recognise.Recogniser, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n")
    (tmp_path / "half.mp4").write_bytes(clip.read_bytes()[:300])
    (tmp_path / "empty.mp4").touch()
    bad = [str(tmp_path / name) for name in ("text.mp4", "half.mp4", "empty.mp4")]
    bad += [in_base64(tmp_path / "half.mp4"), "http://127.0.0.1/clip.mp4", "no such file", "", None, 7, "\0"]
    first, *others, last = ask(model, str(clip), *bad, str(clip))
    assert first == last and first["error"] is None
    assert len(others) == len(bad)
    for answer in others:
        assert answer["error"] and "\n" not in answer["error"]
        assert tempfile.gettempdir() not in answer["error"]
        assert {answer[name] for name in recognise.COLUMNS if name != "error"} == {None}
    assert "not a video file" in others[0]["error"]
    assert "path of a file on this machine" in others[4]["error"]
    with pytest.raises(MlflowException, match=r"^no video can be read; first error: not a video file"):
        ask(model, *bad)


def test_what_is_no_table_of_videos(model: recognise.Recogniser) -> None:
    with pytest.raises(MlflowException, match=r"expected the column 'video', found film"):
        model.predict(pd.DataFrame({"film": ["a.mp4"]}))
    assert ask(model) == []


@pytest.mark.parametrize("ending", ["mp4", "m3u8", "mpd"])
def test_playlists_are_not_opened(model: recognise.Recogniser, clip: Path, tmp_path: Path, ending: str) -> None:
    """FFmpeg would play the files and addresses that they name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/clip.mp4"
        for text in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{clip}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {clip}\n",
        ):
            path = tmp_path / f"list.{ending}"
            path.write_text(text)
            answer = ask(model, str(clip), str(path), in_base64(path))
            assert [bool(row["error"] and "not a video file" in row["error"]) for row in answer] == [False, True, True]
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_paths_can_be_switched_off(model: recognise.Recogniser, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then nobody learns what files there are."""
    monkeypatch.setenv("AV_SERVE_PATHS", "off")
    good, there, missing = ask(model, in_base64(clip), str(clip), "/no/such/clip.mp4")
    assert good["error"] is None
    assert there["error"].partition(";")[0] == missing["error"].partition(";")[0] == "expected a file in base64"


def test_paths_of_one_folder(
    model: recognise.Recogniser, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leads out of it looks as if it were not there."""
    folder, outside = tmp_path / "videos", tmp_path / "secret.mp4"
    folder.mkdir()
    outside.write_bytes(clip.read_bytes())
    (folder / "clip.mp4").write_bytes(clip.read_bytes())
    (folder / "inside.mp4").symlink_to("clip.mp4")
    (folder / "link.mp4").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle.mp4").symlink_to("circle.mp4")
    monkeypatch.setenv("AV_SERVE_PATHS", str(folder))
    inside = ["clip.mp4", "inside.mp4", str(folder / "clip.mp4"), "../videos/clip.mp4"]
    out = [
        str(outside),
        "../secret.mp4",
        f"{folder}/../secret.mp4",
        "link.mp4",
        "up/secret.mp4",
        "no such",
        "circle.mp4",
    ]
    answers = ask(model, *inside, *out)
    assert [row["error"] for row in answers[: len(inside)]] == [None] * len(inside)
    for value, row in zip(out, answers[len(inside) :], strict=True):
        where = f"expected the path of a file in {folder}, or a file in base64"
        assert row["error"] == f"{where}; found {value[:40]!r}"


def test_what_is_no_regular_file_is_not_opened(model: recognise.Recogniser, clip: Path, tmp_path: Path) -> None:
    """A pipe would be waited for, /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.mp4")
    before = time.monotonic()
    good, *bad = ask(model, str(clip), str(tmp_path / "pipe.mp4"), "/dev/zero", str(tmp_path))
    assert time.monotonic() - before < 15
    assert good["error"] is None
    assert all("expected the path of a file on this machine" in row["error"] for row in bad)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_under_another_name(model: recognise.Recogniser, clip: Path, folder: Path, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    (tmp_path / "clip.mp4").write_bytes(trap)
    (tmp_path / "boxed.mp4").write_bytes(b"\0\0\0\x18ftypisom" + trap)
    good, *bad = ask(model, str(clip), *map(str, tmp_path.iterdir()), base64.b64encode(trap).decode())
    assert good["error"] is None and all(row["error"] for row in bad) and len(bad) == 3
    # In place of the gallery: an array of objects would be unpickled.
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    np.savez(copy / "gallery.npz", ids=np.array([Trap(tmp_path / "sprung")], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"gallery.npz: damaged"):
        recognise.Recogniser(copy)
    assert not (tmp_path / "sprung").exists()


def test_a_request_ends_in_its_time(model: recognise.Recogniser, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that is slow: what is done in time is answered, the rest is not begun."""
    assert ask(model, str(clip))[0]["error"] is None  # its reader has started
    student = model.student
    monkeypatch.setattr(model, "student", lambda windows: (time.sleep(6), student(windows))[1])
    monkeypatch.setenv("AV_SERVE_REQUEST_SECONDS", "5")
    before = time.monotonic()
    first, *others = ask(model, *[str(clip)] * 50)
    assert time.monotonic() - before < 15
    assert first["error"] is None
    assert {row["error"] for row in others} == {"the 5 s of the request are over (AV_SERVE_REQUEST_SECONDS)"}


def test_short_names_in_base64_are_no_paths(model: recognise.Recogniser, clip: Path) -> None:
    """3000 characters without a slash are too long for a file's name, on which Python up to 3.12 raises an error."""
    with pytest.raises(MlflowException, match="no video can be read; first error: not a video file"):
        ask(model, "A" * 3000)


def test_bounds(model: recognise.Recogniser, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AV_SERVE_SECONDS", "2")
    with pytest.raises(MlflowException, match=r"longer than 2 s \(AV_SERVE_SECONDS\)"):
        ask(model, str(clip))
    monkeypatch.setenv("AV_SERVE_SECONDS", "3")
    assert ask(model, str(clip))[0]["error"] is None
    monkeypatch.setenv("AV_SERVE_MB", "1")
    large = base64.b64encode(bytes(2**20 + 3)).decode()
    with pytest.raises(MlflowException, match=r"more than 1 MB \(AV_SERVE_MB\)"):
        ask(model, large)
    monkeypatch.setenv("AV_SERVE_MB", "many")
    with pytest.raises(MlflowException, match="AV_SERVE_MB: expected a whole number above 0, found 'many'"):
        ask(model, in_base64(clip))


def test_nothing_is_left_behind(
    model: recognise.Recogniser, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    half = base64.b64encode(clip.read_bytes()[:600]).decode()
    seen: list[bool] = []
    recognise = model.recognise
    monkeypatch.setattr(
        model, "recognise", lambda path, *more: (seen.append(path.parent == tmp_path), recognise(path, *more))[1]
    )
    good, bad = ask(model, in_base64(clip), half)
    assert good["error"] is None and bad["error"]
    assert seen == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_real_videos_are_not_refused_unread(shared_data: Path) -> None:
    videos = [path for path in shared_data.rglob("*") if path.suffix in {".avi", ".mp4", ".webm", ".mkv"}]
    assert len(videos) > 10
    for path in videos:
        with path.open("rb") as file:
            assert SIGNATURES.match(file.read(256)), path
