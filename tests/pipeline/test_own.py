"""Anybody's videos, good and bad, through `make own`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from avdistill.data import media
from avdistill.data.sources import weights
from tests.helpers.serving import serve
from tests.helpers.teaching import cnn14, save_panns
from tests.pipeline.conftest import Checkout, tiny_checkout

pytestmark = pytest.mark.e2e
TEACHER = "panns:Cnn14_mAP=0.431"
PATH = weights.CHECKPOINTS[TEACHER].path
WARNING = "Warning: teacher audio was trained on generated data only (weights: avsynth)."

# Each would do something if a shell ever read it, or a program took it for an option.
CLASSES = ["-n jumping jacks", 'it\'s; $(touch harm) `touch harm` "élan" & > harm']
FOLDER = "-my videos'; $(touch harm) `touch harm` \"ü"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    return tiny_checkout(tmp_path_factory.mktemp("checkout"), root, "own")


def write_videos(folder: Path) -> dict[str, str]:
    """Two classes, four groups a class, odd names; returns what is wrong with which file."""
    random = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for group in range(4):
            for clip in range(2):
                frames = random.integers(0, 60, (24, 48, 64, 3), dtype=np.uint8)
                frames[:, 10 * label : 10 * label + 20, 20:40] += 150
                time = np.arange(2 * media.SAMPLE_RATE) / media.SAMPLE_RATE
                sound = (0.3 * np.sin(2 * np.pi * (300 + 500 * label) * time)).astype(np.float32)
                media.write_video(folder / name / f"a b_g{group}_c{clip}.mp4", frames, 12, sound)
    first, second = (folder / name for name in CLASSES)
    media.write_video(first / "a b_g0_c8.mp4", np.zeros((24, 48, 64, 3), np.uint8), 12, None)
    media.write_video(first / "a b_g0_c9.mp4", np.zeros((24, 48, 64, 3), np.uint8), 12, np.zeros(64000, np.float32))
    (second / "a b_g0_c9.avi").write_bytes(b"no video at all")
    (second / "notes.txt").write_text("not a video either")
    return {"a b_g0_c8.mp4": "no", "a b_g0_c9.mp4": "silent", "a b_g0_c9.avi": "corrupt"}


def test_make_own_makes_a_report_of_anybodys_videos(checkout: Checkout, tmp_path: Path) -> None:
    """First without a network, then with the small teacher; the last test goes on with a checkpoint as published."""
    wrong = write_videos(tmp_path / FOLDER)
    raw = yaml.safe_load((checkout.folder / "own/params.yaml").read_text())
    raw["device"] = "cpu"
    raw["datasets"]["own"]["origin"]["group_pattern"] = r"_g(\d+)_"
    raw["frames"]["own"]["short_side"] = 32
    assert raw["teachers"]["audio"]["weights"] == TEACHER
    raw["teachers"]["audio"] |= {"width": 0.0625, "embedding": 32, "examples": 64, "epochs": 1}
    raw["teachers"]["audio"]["mirror"] = "http://127.0.0.1:9"
    raw["recipes"]["small"] |= {"epochs": 2, "milestones": [1], "batch": 4, "width": 0.0625, "frames": 4, "size": 24}
    (checkout.folder / "own/params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    checkout.environment["AV_CACHE"] = str(tmp_path / "cache")
    done = checkout.run("make", "own", f"VIDEOS={tmp_path / FOLDER}", check=False)
    (error,) = (line for line in done.stdout.splitlines() if line.startswith("error: http"))
    assert f"copy http://127.0.0.1:9{PATH} to {tmp_path}/cache/Cnn14_mAP=0.431.pth by hand, or use a small" in error
    assert error.endswith("make own VIDEOS=… TEACHER=avsynth") and done.returncode
    assert not (checkout.folder / "out/own/frames").exists(), "the teacher comes before the videos are decoded"

    checkout.change("teachers", "audio", "mirror", value=None, file="own/params.yaml")
    output = checkout.make("own", f"VIDEOS={tmp_path / FOLDER}", "TEACHER=avsynth")
    assert "own/params.yaml: teachers.audio.weights: avsynth\n" in output
    out = checkout.folder / "out/own"
    assert output.rstrip().endswith(f"report: {out / 'report/index.html'}")

    index = pd.read_csv(out / "split/own/index.csv", keep_default_na=False)
    assert set(index["class"]) == set(CLASSES) and len(index) == 19
    by_file = {Path(file).name: row for file, row in zip(index["file"], index.to_dict("records"), strict=True)}
    for file, what in wrong.items():
        row = by_file[file]
        assert row["reason"], file
        assert (row["status"] == "corrupt") if what == "corrupt" else (row["audio"] == what)
    assert (index["status"] == "corrupt").sum() == 1
    assert index.groupby("group")["split"].nunique().max() == 1
    assert not list(checkout.folder.rglob("harm"))
    listed = checkout.make("check-videos", "SUITE=own")
    assert "a b_g0_c9.avi" in listed and "corrupt" in listed
    for job in ("uni_modal", "mnf_csc", "xid"):
        metrics = pd.read_csv(out / "evaluate" / job / "metrics.csv")
        assert metrics[metrics["metric"] == "accuracy"]["value"].between(0, 1).all()
    page = (out / "report/index.html").read_text()
    assert "MNF+CSC" in page and WARNING in page


def test_the_teacher_is_pann_s(checkout: Checkout, tmp_path: Path) -> None:
    """Over the same videos: the teacher and what follows from it are made anew, the report has no warning."""
    with serve(tmp_path) as server:
        content = save_panns(cnn14(embedding=128), tmp_path / PATH.lstrip("/")).read_bytes()
        more = {"mirror": server.url, "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
        for key, value in ({"weights": TEACHER} | more).items():
            checkout.change("teachers", "audio", key, value=value, file="own/params.yaml")
        output = checkout.repro("own/dvc.yaml")
        assert server.count(PATH) == 1
    assert "Running stage 'own/dvc.yaml:teachers@audio'" in output
    assert "Running stage 'own/dvc.yaml:frames@own'" not in output
    out = checkout.folder / "out/own"
    assert json.loads((out / "teachers/audio/teacher.json").read_text())["feature_dim"] == 128
    assert WARNING not in (out / "report/index.html").read_text()


def test_make_own_without_a_folder_is_one_line(checkout: Checkout) -> None:
    done = checkout.run("make", "own", "VIDEOS=/nowhere", check=False)
    assert done.returncode != 0 and "error: VIDEOS: '/nowhere' is not a folder" in done.stdout
