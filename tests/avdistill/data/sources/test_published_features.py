"""Published features: archives as CCL's, mapped to clips by name; and the figures that the real ones are known for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index
from avdistill.data.sources import published_features
from avdistill.pipeline.errors import UserError
from avdistill.training import heads
from models.metrics import retrieval
from stages import check, teacher_features, teacher_head
from tests.helpers.little import logged
from tests.helpers.replicas import write_ccl_features as archive
from tests.helpers.teaching import index_of, stage, suite


def features(tmp_path: Path, index: pd.DataFrame, source: str) -> Params:
    """A suite whose features entry `f` is imported from an archive."""
    entry = {"dataset": "d", "teacher": "none", "input": "split/d", "published": "ccl_ucf51_audio", "source": source}
    return suite(tmp_path, index, features={"f": entry})


def run(params: Params) -> Path:
    """The folder that stage teacher_features makes."""
    teacher_features.main(stage(params, "teacher_features", "f"))
    return params.path("teacher_features", "f")


CLIPS = {f"{name}/v_{name}_g0{group}_c01": None for name in ("Archery", "Surfing") for group in (1, 2, 3)}


def little_index() -> pd.DataFrame:
    """Six clips, one without sound and one corrupt."""
    rows: list[dict[str, Any]] = [
        {"id": clip, "file": f"{clip}.avi", "class": clip.split("/")[0], "group": clip[-7:-4], "split": "train"}
        for clip in CLIPS
    ]
    rows[0] |= {"audio": "no"}
    rows[5] |= {"status": "corrupt"}
    return index_of(rows)


def test_vectors_find_their_clips_by_name(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = {clip: random.normal(size=5).astype(np.float32) for clip in CLIPS}
    del vectors["Archery/v_Archery_g01_c01"], vectors["Archery/v_Archery_g03_c01"]
    vectors["Surfing/v_Surfing_g01_c01"] = random.normal(size=(3, 5))
    vectors["Surfing/v_Surfing_g09_c01"] = vectors["Surfing/._v_Surfing_g02_c01"] = np.ones(5)
    source = archive(tmp_path / "a.tar.gz", dict(sorted(vectors.items(), key=lambda item: item[0][::-1])))
    params = features(tmp_path, little_index(), str(source))
    made = stage(params, "teacher_features", "f")
    teacher_features.main(made)
    folder = params.path("teacher_features", "f")
    found = read_arrays(folder / "features.npz")
    assert found["ids"].tolist() == sorted(CLIPS)
    assert found["mask"].tolist() == [False, True, False, True, True, True]
    assert found["features"].dtype == np.float32
    expected = [np.zeros(5) if clip not in vectors else np.atleast_2d(vectors[clip]).mean(0) for clip in sorted(CLIPS)]
    np.testing.assert_allclose(found["features"], expected, rtol=1e-6)
    # Usable are all but the one without sound and the corrupt one; g03 of Archery has no vector.
    assert logged(made) == {"clips": 4, "matched": 3, "published": 5}
    unmatched = pd.read_csv(folder / "unmatched.csv").to_dict("records")
    assert unmatched == [
        {"name": "v_Archery_g03_c01", "found_in": "index"},
        {"name": "v_Surfing_g03_c01", "found_in": "archive"},
        {"name": "v_Surfing_g09_c01", "found_in": "archive"},
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["features.npz", "unmatched.csv"]


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


BAD = {
    "pickle": ({"a/b": pickled()}, "a/b.npy.*not a .npy file of numbers"),
    "no array": ({"a/b": b"hello"}, "a/b.npy.*not a .npy file of numbers"),
    "empty": ({"a/b": b""}, "a/b.npy.*not a .npy file of numbers"),
    "a header that promises too much": ({"a/b": b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, "
        b"'shape': (9999999,), }".ljust(80)}, "a/b.npy.*not a .npy file of numbers"),
    "integers": ({"a/b": np.arange(3)}, "a/b.npy.*int64"),
    "not a number": ({"a/b": np.array([np.nan])}, "a/b.npy.*finite"),
    "a cube": ({"a/b": np.ones((2, 2, 2))}, r"a/b.npy.*\(2, 2, 2\)"),
    "twice": ({"a/b": np.ones(2), "c/b": np.ones(2)}, "c/b.npy.*two files"),
    "lengths": ({"a/b": np.ones(2), "a/c": np.ones(3)}, "b has 2, c has 3"),
    "climbs out": ({"../b": np.ones(2)}, "leads out"),
    "other clips": ({"a/b": np.ones(2)}, "no .npy file is named like a clip of dataset 'd'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_archive_of_features_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    vectors, words = BAD[name]
    params = features(tmp_path, little_index(), str(archive(tmp_path / "a.tar.gz", vectors)))
    with pytest.raises(UserError, match=words) as caught:
        run(params)
    assert "\n" not in str(caught.value)
    assert not params.path("teacher_features", "f").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "missing"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    source = archive(tmp_path / "a.tar.gz", {clip: np.random.default_rng(0).normal(size=512) for clip in CLIPS})
    if damage == "cut":
        source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    elif damage == "text":
        source.write_text("<html>404</html>")
    else:
        source.unlink()
    with pytest.raises(UserError, match=r"a\.tar\.gz: (not a complete tar archive|there is no such archive)") as caught:
        published_features.read(source)
    assert "\n" not in str(caught.value)


def test_a_path_out_of_the_archive_is_refused_whatever_its_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leads out"):
        published_features.read(archive(tmp_path / "a.tar.gz", {"a/b": np.ones(2)}, folder="/tmp"))


def test_an_archive_may_come_from_a_url(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", dict.fromkeys(CLIPS, np.ones(2)))
    folder = run(features(tmp_path, little_index(), source.as_uri()))
    assert read_arrays(folder / "features.npz")["mask"].all()
    assert sorted(path.name for path in folder.iterdir()) == ["features.npz", "unmatched.csv"]


ENTRY = {"dataset": "avsynth", "teacher": "none", "input": "split/avsynth", "published": "ccl_ucf51_audio"}
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "name": ({"published": "ccl_ucf51"}, ["features.f.published", "did you mean 'ccl_ucf51_audio'?"]),
    "teacher": ({"teacher": "audio"}, ["features.f.teacher", "'none'"]),
    "input": ({"input": "spectrogram/avsynth"}, ["features.f.input", "'split/avsynth'"]),
    "dataset": ({"dataset": "avsynt"}, ["features.f.dataset", "'avsynth'"]),
    "source of a teacher": (
        {"published": None, "source": "x.tar.gz", "teacher": "audio", "input": "spectrogram/avsynth"},
        ["features.f.source", "published"],
    ),
    "no teacher": ({"published": None}, ["features.f.teacher", "valid: audio"]),
    "archive": ({"source": "nowhere.tar.gz"}, ["features.f.source", "nowhere.tar.gz"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, root: Path, name: str) -> None:
    change, words = MISTAKES[name]
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["features"]["f"] = {key: value for key, value in (ENTRY | change).items() if value is not None}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        check.check(str(file), load(file))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def ucf51(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Params:
    """UCF51 as the official lists of split 1 have it, with the real features in an archive as CCL's, imported."""
    with np.load(shared_data / "features" / "ucf51_cnn14_emb512.npz") as arrays:
        clips = [f"{label}/{clip}" for label, clip in zip(arrays["label"], arrays["video"], strict=True)]
        vectors = dict(zip(clips, arrays["feature"], strict=True))
    # The lists write HandstandPushups/v_HandStandPushups_…
    classes = {clip.split("/")[0].lower() for clip in clips}
    rows = []
    for split in ("train", "test"):
        for line in (shared_data / "annotations" / "ucf101" / f"{split}list01.txt").read_text().splitlines():
            file = line.split()[0]
            name = file.split("/")[0]
            if name.lower() in classes:
                rows.append(
                    {"id": file, "file": file, "class": name, "group": f"{name}/{file[-11:-8]}", "split": split}
                )
    folder = tmp_path_factory.mktemp("ucf51")
    params = features(folder, index_of(rows), str(archive(folder / "a.tar.gz", vectors)))
    run(params)
    return params


def test_all_real_features_find_their_clips(ucf51: Params) -> None:
    mask = read_arrays(ucf51.path("teacher_features", "f") / "features.npz")["mask"]
    assert (len(mask), mask.sum()) == (6845, 6837)
    unmatched = pd.read_csv(ucf51.path("teacher_features", "f") / "unmatched.csv")
    silent = [f"v_{name}_c0{clip}" for name in ("BasketballDunk_g15", "HandStandPushups_g14") for clip in (4, 5, 6, 7)]
    silent[4:] = [f"v_HandStandPushups_g14_c0{clip}" for clip in (1, 2, 3, 4)]
    assert unmatched["name"].tolist() == silent


def test_audio_alone_retrieves_at_the_known_rate(ucf51: Params) -> None:
    index = read_index(ucf51.index("d"))
    arrays = read_arrays(ucf51.path("teacher_features", "f") / "features.npz")
    found = [
        torch.from_numpy(values[arrays["mask"] & (index["split"] == split).to_numpy()])
        for split in ("test", "train")
        for values in (arrays["features"], index["label"].to_numpy())
    ]
    assert retrieval(*found)["R@1"] == pytest.approx(0.403, abs=0.001)


def test_audio_alone_classifies_at_the_known_rate(ucf51: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a validation split the third of the weight decays is taken; the other heads would be trained for nothing.
    monkeypatch.setattr(heads, "DECAYS", (heads.DECAYS[2],))
    teacher_head.main(stage(ucf51, "teacher_head", "f"))
    metrics = json.loads((ucf51.path("teacher_head", "f") / "metrics.json").read_text())
    assert 0.45 <= metrics["accuracy"]["test"] <= 0.47
    assert metrics["clips"] == {"train": 4893, "val": 0, "test": 1944}


def test_a_head_without_training_clips_is_an_error(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", dict.fromkeys(CLIPS, np.ones(2)))
    params = features(tmp_path, little_index().assign(split="test"), str(source))
    run(params)
    with pytest.raises(UserError, match="f: no usable clip of the train split has features"):
        teacher_head.main(stage(params, "teacher_head", "f"))
