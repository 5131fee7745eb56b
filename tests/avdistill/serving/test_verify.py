"""A model is followed back to dvc.lock, or one line says what differs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdistill.data.files import write_json
from avdistill.pipeline import provenance
from avdistill.pipeline.errors import UserError
from avdistill.serving.verify import verify

STAGES: dict[str, tuple[list[str], str]] = {  # what stages of a suite in out/s read and write
    "download@d": (["code/download/d.json", "check/datasets/d.json", "/videos"], "download/d"),
    "split@d": (["code/split/d.json", "download/d"], "split/d"),
    "train@kd": (["code/train/kd.json", "check/jobs/kd.json", "split/d", "train/none"], "train/kd"),
    "train@ccl": (["code/train/ccl.json", "check/jobs/ccl.json", "split/d", "train/none"], "train/ccl"),
    "check": (["code/check.json"], "train/none"),
}
EXPORT = "export@d"


def full(path: str) -> str:
    return path.removeprefix("/") if path.startswith("/") else f"out/s/{path}"


def write_lock(root: Path, **changed: str) -> None:
    """dvc.lock with an MD5 for each path, "<path>-1" but for those of `changed`; and the model's, if it is there."""

    def entry(path: str) -> dict[str, Any]:
        return {"path": full(path), "hash": "md5", "md5": changed.get(path, f"{path}-1"), "size": 1}

    stages: dict[str, Any] = {
        name: {"cmd": "x", "deps": [entry(path) for path in deps], "outs": [entry(out)]}
        for name, (deps, out) in STAGES.items()
    }
    model = root / "out/s/export/d"
    if model.exists():
        md5s = provenance.files(model) | {provenance.NAME: provenance.md5(model / provenance.NAME)}
        code = {"path": "out/s/code/export/d.json", "md5": provenance.md5(root / "out/s/code/export/d.json"), "size": 1}
        output = {"path": "out/s/export/d", "hash": "md5", "md5": provenance.folder_md5(md5s), "size": 1}
        stages[EXPORT] = {"cmd": "x", "deps": [code], "outs": [output]}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that was exported in a repository, and its dvc.lock."""
    monkeypatch.chdir(tmp_path)
    for deps, _ in STAGES.values():
        for path in deps:
            if path.startswith("code"):
                write_json(Path(full(path)), {"modules": {}, "packages": {"torch": "2.11.0"}})
    write_json(Path("out/s/code/export/d.json"), {"modules": {}, "packages": {"av": "18"}})
    write_lock(tmp_path)
    folder = tmp_path / "out/s/export/d"
    (folder / "code").mkdir(parents=True)
    (folder / "MLmodel").write_text("a")
    (folder / "code" / "b.py").write_text("b")
    paths = ["out/s/split/d", "out/s/train/kd", "out/s/code/export/d.json"]
    provenance.record(folder, EXPORT, Path("dvc.lock"), "out/s", paths)
    write_lock(tmp_path)
    return folder


def test_what_a_model_comes_from(model: Path) -> None:
    """The other job, and the empty teacher, do not count."""
    about = json.loads((model / "provenance.json").read_text())
    assert about["stage"] == EXPORT and about["lock"] == "dvc.lock"
    names = ["out/s/download/d", "out/s/split/d", "out/s/train/kd", "videos"]
    assert list(about["data"]) == names
    assert about["data"]["videos"] == "/videos-1" and about["data"]["out/s/train/kd"] == "train/kd-1"
    assert list(about["params"]) == ["out/s/check/datasets/d.json", "out/s/check/jobs/kd.json"]
    assert {Path(path).parent.name for path in about["code"]} == {"download", "split", "train", "export"}
    assert about["packages"].keys() == {"python", "torch", "av"}
    assert list(about["files"]) == ["MLmodel", "code/b.py"]


def test_the_model_of_the_lock(model: Path, tmp_path: Path) -> None:
    line = "export@d of dvc.lock; 4 data, 2 params, 4 code, 3 packages"
    assert verify(model) == (True, f"{model}: {line}")
    copy = tmp_path / "elsewhere"  # as MLflow keeps it
    for path in model.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(model)).write_bytes(path.read_bytes())
    (copy / "registered_model_meta").write_text("MLflow's")
    assert verify(copy) == (True, f"{copy}: {line}")


def test_a_model_that_was_changed(model: Path) -> None:
    (model / "code" / "b.py").write_text("c")
    (model / "more.py").write_text("d")
    assert verify(model) == (False, f"{model}: changed since its export: code/b.py, more.py")


def test_a_provenance_that_was_changed(model: Path) -> None:
    """So that it fits to changed files."""
    (model / "MLmodel").write_text("evil")
    about = json.loads((model / "provenance.json").read_text())
    write_json(model / "provenance.json", about | {"files": provenance.files(model)})
    same, line = verify(model)
    assert not same and line.endswith("not export@d of dvc.lock: made from the same, other bytes came out")


def test_one_line_says_what_differs(model: Path, tmp_path: Path) -> None:
    write_lock(tmp_path, **{"train/kd": "2", "check/jobs/kd.json": "2", "code/train/kd.json": "2", "train/ccl": "2"})
    write_json(Path("out/s/code/train/kd.json"), {"modules": {}, "packages": {"torch": "2.12.0"}})
    raw = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    raw["stages"][EXPORT]["outs"][0]["md5"] = "another"
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(raw, sort_keys=False))
    assert verify(model) == (
        False,
        f"{model}: not export@d of dvc.lock: data: out/s/train/kd; params: out/s/check/jobs/kd.json; "
        "code: out/s/code/train/kd.json; packages: torch 2.11.0 -> 2.12.0",
    )


def test_what_cannot_be_verified(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no provenance.json; expected a folder written by stage export"):
        verify(tmp_path)
    (tmp_path / "dvc.lock").unlink()
    with pytest.raises(UserError, match=r"dvc.lock: has no export@d; run `dvc repro export@d`"):
        verify(model)
    about = json.loads((model / "provenance.json").read_text())
    write_json(model / "provenance.json", about | {"lock": "paper/dvc.lock"})
    with pytest.raises(UserError, match=r"paper/dvc.lock: has no export@d; run `dvc repro paper/dvc.yaml:export@d`"):
        verify(model)
    (model / "provenance.json").write_text("[]")
    with pytest.raises(UserError, match=r"provenance.json: damaged"):
        verify(model)


def test_a_lock_that_is_being_written_is_waited_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (tmp_path / "dvc.lock").read_text()
    (tmp_path / "dvc.lock").write_text(whole[: len(whole) // 2].rpartition("md5")[0])
    writer = threading.Timer(0.3, lambda: (tmp_path / "dvc.lock").write_text(whole))
    writer.start()
    before = time.monotonic()
    assert verify(model)[0]
    assert time.monotonic() - before > 0.2
    writer.join()
    (tmp_path / "dvc.lock").write_text("schema")
    monkeypatch.setattr(provenance, "PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"dvc.lock: incomplete; another DVC is writing it, or was killed"):
        verify(model)
