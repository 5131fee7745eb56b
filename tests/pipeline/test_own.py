"""Anybody's videos, good and bad, through `make own`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from avdistill.data import media
from tests.pipeline.conftest import Checkout, tiny_checkout

pytestmark = pytest.mark.e2e

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
    wrong = write_videos(tmp_path / FOLDER)
    raw = yaml.safe_load((checkout.folder / "own/params.yaml").read_text())
    raw["device"] = "cpu"
    raw["datasets"]["own"]["origin"]["group_pattern"] = r"_g(\d+)_"
    raw["frames"]["own"]["short_side"] = 32
    raw["teachers"]["audio"] |= {"width": 0.0625, "embedding": 32, "examples": 64, "epochs": 1}
    raw["recipes"]["small"] |= {"epochs": 2, "milestones": [1], "batch": 4, "width": 0.0625, "frames": 4, "size": 24}
    (checkout.folder / "own/params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    output = checkout.make("own", f"VIDEOS={tmp_path / FOLDER}")
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
    for job in ("uni_modal", "mnf_csc"):
        metrics = pd.read_csv(out / "evaluate" / job / "metrics.csv")
        assert metrics[metrics["metric"] == "accuracy"]["value"].between(0, 1).all()
    assert "MNF+CSC" in (out / "report/index.html").read_text()


def test_make_own_without_a_folder_is_one_line(checkout: Checkout) -> None:
    done = checkout.run("make", "own", "VIDEOS=/nowhere", check=False)
    assert done.returncode != 0 and "error: VIDEOS: '/nowhere' is not a folder" in done.stdout
