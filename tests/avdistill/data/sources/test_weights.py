"""Checkpoints: by name from a mirror on loopback, checked, resumed; by path; and nothing that is no checkpoint."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avdistill.config.schema import Params
from avdistill.data.sources import http, weights
from avdistill.pipeline.errors import UserError
from models.teachers import build_teacher
from stages import check, teachers
from tests.helpers.serving import Server, serve
from tests.helpers.teaching import cnn14, save_panns, stage, suite

CNN14, EMB512 = "panns:Cnn14_mAP=0.431", "panns:Cnn14_emb512_mAP=0.420"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the files that `put` is given, and an empty cache."""
    monkeypatch.setattr(http, "PAUSE", 0.01)
    monkeypatch.setenv("AV_CACHE", str(tmp_path / "cache"))
    with serve(tmp_path / "mirror") as server:
        yield server


def put(server: Server, path: str, content: bytes) -> None:
    file = server.folder / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def run(tmp_path: Path, **teacher: Any) -> tuple[Params, Path]:
    """Stage teachers on one teacher; the suite and the folder that it makes."""
    params = suite(tmp_path, teachers={"t": {"kind": "cnn14", "width": 1 / 16} | teacher})
    teachers.main(stage(params, "teachers", "t"))
    return params, params.path("teachers", "t")


def same(folder: Path, state: dict[str, torch.Tensor]) -> bool:
    found = torch.load(folder / "weights.pt", weights_only=True)
    return found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())


def test_a_named_checkpoint_comes_from_the_mirror_and_is_checked(tmp_path: Path, mirror: Server) -> None:
    model = cnn14()
    content = save_panns(model, tmp_path / "x.pth").read_bytes()
    put(mirror, weights.CHECKPOINTS[CNN14].path, content)
    md5 = f"md5:{hashlib.md5(content).hexdigest()}"
    _, folder = run(tmp_path, weights=CNN14, mirror=f"{mirror.url}/", checksum=md5)
    assert same(folder, model.state_dict())
    description = json.loads((folder / "teacher.json").read_text())
    assert (description["kind"], description["feature_dim"]) == ("cnn14", 24)
    assert description["source"] == f"{mirror.url}/records/3987831/files/Cnn14_mAP=0.431.pth"
    assert description["checksum"] == md5
    assert (len(description["classes"]), description["classes"][0]) == (527, "Speech")
    assert sorted(file.name for file in folder.iterdir()) == ["teacher.json", "weights.pt"]


def test_zenodo_s_record_gives_the_checksum_that_is_not_known_here(tmp_path: Path, mirror: Server) -> None:
    content = save_panns(cnn14(), tmp_path / "x.pth").read_bytes()
    put(mirror, weights.CHECKPOINTS[EMB512].path, content)
    record = {"files": [{"key": "other.pth", "checksum": "md5:0"}]}
    put(mirror, "/api/records/3987831", json.dumps(record).encode())
    with pytest.raises(UserError, match=r"records/3987831: no checksum of Cnn14_emb512_mAP=0\.420\.pth"):
        run(tmp_path / "without", weights=EMB512, mirror=mirror.url)
    md5 = f"md5:{hashlib.md5(content).hexdigest()}"
    record["files"].append({"key": "Cnn14_emb512_mAP=0.420.pth", "checksum": md5})
    put(mirror, "/api/records/3987831", json.dumps(record).encode())
    _, folder = run(tmp_path / "with", weights=EMB512, mirror=mirror.url)
    assert json.loads((folder / "teacher.json").read_text())["checksum"] == md5


def test_a_broken_download_goes_on_where_it_ended(
    tmp_path: Path, mirror: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cnn14()
    content = save_panns(model, tmp_path / "x.pth").read_bytes()
    path = weights.CHECKPOINTS[CNN14].path
    put(mirror, path, content)
    mirror.limits[path] = iter([len(content) // 2])
    teacher = {"weights": CNN14, "mirror": mirror.url, "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, **teacher)
    _, folder = run(tmp_path, **teacher)
    assert same(folder, model.state_dict())
    assert mirror.requests == [(path, None), (path, f"bytes={len(content) // 2}-")]


def test_a_checkpoint_is_downloaded_once_per_machine(tmp_path: Path, mirror: Server) -> None:
    content = save_panns(cnn14(), tmp_path / "x.pth").read_bytes()
    md5 = f"md5:{hashlib.md5(content).hexdigest()}"
    for name, known in ((CNN14, {"checksum": md5}), (EMB512, {})):
        path = weights.CHECKPOINTS[name].path
        put(mirror, path, content)
        record = {"files": [{"key": path.rpartition("/")[2], "checksum": md5}]}
        put(mirror, "/api/records/3987831", json.dumps(record).encode())
        for checkout in ("one", "two"):
            _, folder = run(tmp_path / re.sub(r"\W", "_", name) / checkout, weights=name, mirror=mirror.url, **known)
            assert same(folder, cnn14().state_dict())
        assert mirror.count(path) == 1
    assert mirror.count("/api/records/3987831") == 1


@pytest.mark.parametrize("variable", ["AV_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_a_checkpoint_that_was_brought_by_hand_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.01)
    for name in ("AV_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    path = tmp_path / {"AV_CACHE": ".", "XDG_CACHE_HOME": "avdistill", "HOME": ".cache/avdistill"}[variable]
    content = save_panns(cnn14(), tmp_path / "x.pth").read_bytes()
    teacher = {"weights": CNN14, "mirror": "http://127.0.0.1:9", "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
    with pytest.raises(UserError) as caught:
        run(tmp_path, **teacher)
    url = "http://127.0.0.1:9/records/3987831/files/Cnn14_mAP=0.431.pth"
    file = (path / "Cnn14_mAP=0.431.pth").resolve()
    assert re.fullmatch(
        rf"{re.escape(url)}: .*refused; gave up after 3 tries; without a network, copy {re.escape(url)} to "
        rf"{re.escape(str(file))} by hand",
        str(caught.value),
    )
    file.write_bytes(content)
    _, folder = run(tmp_path, **teacher)
    assert same(folder, cnn14().state_dict())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AV_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cache: cannot keep checkpoints here \(Not a directory\); set AV_CACHE to a"):
        run(tmp_path, weights=CNN14)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", [CNN14, "torchvision:resnet34"])
def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path, mirror: Server, name: str) -> None:
    known = weights.CHECKPOINTS[name]
    put(mirror, known.path, b"another file")
    with pytest.raises(UserError) as caught:
        run(tmp_path, kind=known.kind, width=1.0, weights=name, mirror=mirror.url)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{mirror.url}{known.path}: expected {known.checksum.replace(':', ' ')}, found ")
    assert not [file for place in ("out", "cache") for file in (tmp_path / place).rglob("*.pth") if file.is_file()]


def test_a_checkpoint_of_torchvision_is_known_by_the_beginning_of_its_sha256(
    tmp_path: Path, mirror: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build_teacher("resnet10", 1000)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    small = weights.Checkpoint("resnet10", "https://example.org", "/models/x.pth", f"sha256:{digest[:8]}")
    monkeypatch.setitem(weights.CHECKPOINTS, "torchvision:resnet10", small)
    put(mirror, "/models/x.pth", content)
    _, folder = run(tmp_path, kind="resnet10", width=1.0, weights="torchvision:resnet10", mirror=mirror.url)
    assert same(folder, model.state_dict())
    description = json.loads((folder / "teacher.json").read_text())
    assert description["checksum"] == f"sha256:{digest}"
    assert (description["classes"][0], description["classes"][-1]) == ("tench", "toilet tissue")


def test_torchvision_s_checkpoints_are_those_that_torchvision_names() -> None:
    models = pytest.importorskip("torchvision.models")
    for name in ("resnet34", "resnet50"):
        known = weights.CHECKPOINTS[f"torchvision:{name}"]
        url = models.get_model_weights(name).IMAGENET1K_V1.url
        assert (known.kind, known.host + known.path) == (name, url)
        assert known.checksum == f"sha256:{url.split('-')[-1].removesuffix('.pth')}"


def test_the_classes_are_audioset_s(shared_data: Path) -> None:
    with (shared_data / "annotations" / "audioset_class_labels_indices.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["index"]))
    assert teachers.class_names(527) == [row["display_name"] for row in rows]
    assert teachers.class_names(10) == []


class Harmful:
    """What runs a program when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("content", ["pickle", "numbers", "text", "nothing", "another network"])
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path, touched = tmp_path / "x.pth", tmp_path / "touched"
    path.write_bytes(b"")
    if content == "pickle":
        torch.save({"model": cnn14().state_dict(), "sampler": Harmful(touched)}, path)
        pickle.loads(pickle.dumps(Harmful(tmp_path / "proof")))
        assert (tmp_path / "proof").exists()
    elif content == "numbers":
        torch.save({"model": {"fc1.bias": np.ones(3)}}, path)
    elif content == "text":
        path.write_text("<html>not found</html>")
    elif content == "another network":
        torch.save({"fc.bias": torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"x\.pth: not a cnn14 checkpoint") as caught:
        run(tmp_path, weights=str(path))
    assert "\n" not in str(caught.value)
    assert not touched.exists()


def test_a_checkpoint_by_path_has_its_own_sizes(tmp_path: Path) -> None:
    """Width and embedding of the params are those of a teacher that is trained here."""
    model = cnn14(classes=9, embedding=40)
    _, folder = run(tmp_path, weights=str(save_panns(model, tmp_path / "x.pth")), width=0.5, embedding=32)
    assert same(folder, model.state_dict())
    assert json.loads((folder / "teacher.json").read_text()) == {"kind": "cnn14", "feature_dim": 40, "classes": []}


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "name": ({"weights": "panns:Cnn14_emb512"}, ["weights", "did you mean 'panns:Cnn14_emb512_mAP=0.420'?"]),
    "path": ({"weights": "nowhere.pth"}, ["weights", "nowhere.pth", "avsynth", "panns:Cnn14_mAP=0.431"]),
    "kind": ({"weights": "torchvision:resnet34"}, ["kind", "is a resnet34 checkpoint"]),
    "mirror": ({"weights": "avsynth", "mirror": "http://x"}, ["weights", "mirror", "'avsynth' is not one"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_check_finds_wrong_weights(tmp_path: Path, name: str) -> None:
    teacher, words = MISTAKES[name]
    video = tmp_path / "videos"
    for clip in ("a/1.mp4", "b/1.mp4"):
        (video / clip).parent.mkdir(parents=True)
        (video / clip).touch()
    origin = {"kind": "folder", "source": str(video)}
    datasets = {"d": {"origin": origin, "split": {}}}
    params = suite(tmp_path, datasets=datasets, teachers={"t": {"kind": "cnn14"} | teacher})
    with pytest.raises(UserError) as caught:
        check.check("params.yaml", params)
    message = str(caught.value)
    assert message.startswith("params.yaml: teachers.t.")
    assert "\n" not in message
    for word in words:
        assert word in message
