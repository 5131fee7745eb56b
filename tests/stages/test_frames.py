from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from avdistill.config.schema import Frames
from avdistill.data import datasets, packing
from avdistill.data.packed import Store
from avdistill.pipeline.errors import UserError
from avdistill.reporting.check_videos import check_videos
from stages import download, frames, split
from tests.helpers.little import folder_of_videos, levels, spoil_packet, stage


@pytest.fixture
def origin(tmp_path: Path) -> dict[str, object]:
    """A dataset whose videos are looked at already."""
    folder_of_videos(tmp_path / "videos", groups=3)
    origin: dict[str, object] = {"kind": "folder", "source": str(tmp_path / "videos")}
    download.main(stage("download", "d", tmp_path, origin))
    split.main(stage("split", "d", tmp_path, origin, split={"test": 0.3, "val": 0}))
    return origin


def test_the_whole_stage(tmp_path: Path, origin: dict[str, object]) -> None:
    # A clip that split could look at, and that breaks later.
    (tmp_path / "videos/class 0/it's_g1_é.mp4").write_bytes(b"damaged since")
    running = stage("frames", "d", tmp_path, origin)
    frames.main(running)
    store = Store(tmp_path / "out/frames/d")
    assert len(store) == 7
    assert "class 2/it's_g0_é.mp4" not in store  # corrupt, so not even tried
    for name in store:
        assert store[name].shape == (6, 16, 32, 3)
        assert store[name].dtype == np.uint8
        assert levels(store[name]) == [0, 3, 6, 9, 12, 15]
    problems = pd.read_csv(tmp_path / "out/frames/d/problems.csv")
    assert problems["id"].tolist() == ["class 0/it's_g1_é.mp4"]
    assert "Invalid data" in problems["reason"][0]
    assert ("log_metrics", ({"clips": 7, "problems": 1},), {}) in running.run.calls  # type: ignore[attr-defined]


def test_an_interrupted_stage_goes_on(
    tmp_path: Path, origin: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SHARD_BYTES", 1)  # a shard a clip
    tried: list[str] = []

    def each(read: object, clips: list[datasets.Clip], description: str, **_: object) -> object:
        for clip in clips:
            tried.append(clip.id)
            if len(tried) == 4:
                raise KeyboardInterrupt
            yield clip, read(clip)  # type: ignore[operator]

    monkeypatch.setattr(packing, "each", each)
    with pytest.raises(KeyboardInterrupt):
        frames.main(stage("frames", "d", tmp_path, origin))
    assert not (tmp_path / "out/frames/d").exists()
    frames.main(stage("frames", "d", tmp_path, origin))
    store = Store(tmp_path / "out/frames/d")
    store.verify()
    assert len(store) == 8
    assert len(tried) == 4 + (8 - 3)
    # Other params start from nothing.
    tried.clear()
    with pytest.raises(KeyboardInterrupt):
        frames.main(stage("frames", "d", tmp_path, origin, frames={"fps": 2}))


def test_nothing_readable_is_an_error(tmp_path: Path, origin: dict[str, object]) -> None:
    for path in (tmp_path / "videos").rglob("*.mp4"):
        path.write_bytes(b"damaged since")
    with pytest.raises(UserError, match=r"none of 8 clips could be read; .*Invalid data"):
        frames.main(stage("frames", "d", tmp_path, origin))


def test_jpegs_are_read_as_the_same_pictures_are(tmp_path: Path, origin: dict[str, object]) -> None:
    stores = []
    for encoding in ("raw", "jpeg"):
        frames.main(stage("frames", "d", tmp_path, origin, frames={"encoding": encoding, "quality": 95}))
        (tmp_path / "out/frames/d").rename(tmp_path / encoding)
        stores.append(Store(tmp_path / encoding))
    assert set(stores[0]) == set(stores[1]) and len(stores[0]) > 0
    for key in stores[0]:
        raw, jpeg = stores[0][key], stores[1][key]
        assert jpeg.shape == raw.shape and len(jpeg) == len(raw)
        assert np.abs(jpeg[2:5].astype(int) - raw[2:5]).max() <= 3


def test_damage_is_where_a_user_looks(tmp_path: Path) -> None:
    """A packet that cannot be decoded costs that packet; the clip is named by check-videos and in problems.csv."""
    origin = {"kind": "folder", "source": str(tmp_path / "videos")}
    folder_of_videos(tmp_path / "videos")
    path = next((tmp_path / "videos").glob("class 2/*g2*.mp4"))
    spoil_packet(path, "video", 10)
    stages = {name: stage(name, "d", tmp_path, origin) for name in ("download", "split", "frames")}
    params = stages["frames"].params
    download.main(stages["download"])
    split.main(stages["split"])
    told = check_videos(params, "d")
    assert f"{path.parent.name}/{path.name}: damaged: 1 video packets cannot be decoded" in told, "before stage frames"
    frames.main(stages["frames"])
    problems = pd.read_csv(params.path("frames", "d") / "problems.csv")
    (row,) = problems[problems["id"].str.contains("g2")].itertuples()
    assert row.reason == "damaged: 1 video packets cannot be decoded"
    assert row.id in Store(params.path("frames", "d"))
    told = check_videos(params, "d")
    assert f"{row.id}: damaged: 1 video packets cannot be decoded" in told


def hanging(frames_entry: Frames, clip: datasets.Clip) -> object:
    """A reader that hangs on one clip and dies on another, as C code may."""
    if frames_entry.reader == "auto" and clip.id.startswith("class 0/it's_g1"):
        while True:
            time.sleep(1)
    if frames_entry.reader == "auto" and clip.id.startswith("class 1/it's_g1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return frames.read(frames_entry, clip)


def test_pyav_takes_over_from_a_reader_that_hangs_or_crashes(
    tmp_path: Path, origin: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "PATIENCE", 3.0)
    real = packing.each

    def each(read: Any, clips: Any, description: str, **more: Any) -> Any:
        return real(partial(hanging, *read.args), clips, description, **more)

    monkeypatch.setattr(packing, "each", each)
    began = time.monotonic()
    frames.main(stage("frames", "d", tmp_path, origin))
    assert time.monotonic() - began < 60
    store = Store(tmp_path / "out/frames/d")
    assert len(store) == 8
    for name in store:
        assert levels(store[name]) == [0, 3, 6, 9, 12, 15]
    problems = pd.read_csv(tmp_path / "out/frames/d/problems.csv")
    assert problems["id"].str[:15].tolist() == ["class 0/it's_g1", "class 1/it's_g1"]
    assert set(problems["reason"]) == {"decord hung or crashed, read by PyAV"}
