"""Features of every clip: against the network on one clip at a time, and the same however the work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays
from avdistill.data.index import write_index
from avdistill.data.packed import Store, StoreWriter
from models.teachers import build_teacher
from stages import teacher_features
from tests.helpers.teaching import cnn14, index_of, stage, suite

CLASSES = 6
LENGTHS = (31, 40, 40, 75, 40, 31, 33, 40, 31, 40)  # spectra of each clip
NO_SOUND = 1


@pytest.fixture(autouse=True)
def in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of ten clips, on one core; at most 90 spectra a batch."""
    monkeypatch.setattr(teacher_features, "SHARD", 4)
    monkeypatch.setattr(teacher_features, "BATCH_SPECTRA", 90)
    monkeypatch.setenv("AV_CORES", "1")


def clips() -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "id": f"clip {number}",
            "file": f"{number}.avi",
            "class": f"class {number % 2}",
            "group": "g",
            "split": "train",
        }
        for number in range(len(LENGTHS))
    ]
    rows[NO_SOUND]["audio"] = "no"
    return index_of(rows)


def hearing(tmp_path: Path, weights: str = "x.pth", seed: int = 0, **more: str) -> tuple[Params, dict[str, np.ndarray]]:
    """A suite with a narrow CNN14 and its recordings, which are returned too; `more` is for its features."""
    entry = {"dataset": "d", "teacher": "t", "input": "spectrogram/d", **more}
    teacher = {"kind": "cnn14", "weights": weights, "width": 1 / 16, "embedding": 24}
    params = suite(tmp_path, clips(), teachers={"t": teacher}, features={"f": entry})
    random = np.random.default_rng(seed)
    sounds = {
        f"clip {number}": random.normal(-40, 20, (length, 64)).astype(np.float32)
        for number, length in enumerate(LENGTHS)
        if number != NO_SOUND
    }
    with StoreWriter(params.path("spectrogram", "d"), "float32") as store:
        for name, sound in sounds.items():
            store.put(name, sound)
    save(params, cnn14(CLASSES, seed=seed))
    return params, sounds


def save(params: Params, model: torch.nn.Module) -> None:
    """The weights, where stage teachers puts them."""
    folder = params.path("teachers", "t")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "weights.pt")


def run(params: Params) -> dict[str, np.ndarray]:
    teacher_features.main(stage(params, "teacher_features", "f"))
    return read_arrays(params.path("teacher_features", "f") / "features.npz")


@torch.inference_mode()
def alone(model: Any, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """What the network makes of one clip: means over its rows, in float64."""
    output = model(inputs)
    parts = {"features": output.embedding, "logits": output.logits}
    parts |= {f"block_{number}": block for number, block in enumerate(output.blocks)}
    return {name: values.double().numpy().mean(0) for name, values in parts.items()}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_is_off_by_thousandths(tmp_path: Path, precision: str) -> None:
    exact = run(hearing(tmp_path / "exact")[0])
    found = run(hearing(tmp_path / "reduced", precision=precision)[0])
    for name in ("features", "logits", *(f"block_{number}" for number in range(6))):
        assert found[name].dtype == np.float32
        apart = np.abs(found[name] - exact[name]).max() / np.abs(exact[name]).max()
        assert 0 < apart < 0.02, name
    assert np.abs(found["probabilities"] - exact["probabilities"]).max() < 0.02


@pytest.mark.parametrize("weights", ["x.pth", "avsynth"])
def test_sounds_are_heard_whole_and_each_clip_has_a_row(tmp_path: Path, weights: str) -> None:
    params, sounds = hearing(tmp_path, weights)
    found = run(params)
    names = [f"clip {number}" for number in range(len(LENGTHS))]
    assert found["ids"].tolist() == names
    assert found["mask"].tolist() == [name in sounds for name in names]
    model = cnn14(CLASSES)
    assert [found[f"block_{number}"].shape[1] for number in range(6)] == list(model.block_dims)
    for row, name in enumerate(names):
        if name not in sounds:
            assert not any(found[key][row].any() for key in found if key not in ("ids", "mask"))
            continue
        expected = alone(model, torch.from_numpy(sounds[name])[None])
        for key, values in expected.items():
            assert found[key].dtype == np.float32
            np.testing.assert_allclose(found[key][row], values, rtol=1e-4, atol=1e-5, err_msg=f"{key} of {name}")
        logits = expected["logits"]
        odds = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        probabilities = 1 / (1 + np.exp(-logits)) if weights == "x.pth" else odds
        assert found["probabilities"].dtype == np.float16
        np.testing.assert_allclose(found["probabilities"][row], probabilities, rtol=2e-3, atol=1e-6)
    assert found["logits"].std() > 0.01
    assert found["mask"].sum() == 9
    assert [path.name for path in params.path("teacher_features", "f").iterdir()] == ["features.npz"]


def test_pictures_are_averaged_over_evenly_spaced_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_features, "BATCH_IMAGES", 16)
    entry = {"dataset": "d", "teacher": "t", "input": "frames/d"}
    teacher = {"kind": "resnet10", "weights": "avsynth"}
    params = suite(tmp_path, clips(), teachers={"t": teacher}, features={"f": entry})
    random = np.random.default_rng(0)
    counts = (1, 3, 8, 9, 15, 8, 30, 2, 3, 8)
    films = {f"clip {n}": random.integers(0, 256, (count, 32, 40, 3), np.uint8) for n, count in enumerate(counts)}
    with StoreWriter(params.path("frames", "d"), "uint8") as store:
        for name, film in films.items():
            store.put(name, film)
    torch.manual_seed(0)
    model = build_teacher("resnet10", CLASSES).eval()
    save(params, model)
    found = run(params)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    chosen = {9: [0, 1, 2, 3, 5, 6, 7, 8], 15: [0, 2, 4, 6, 8, 10, 12, 14], 30: [0, 4, 8, 12, 17, 21, 25, 29]}
    for row, (count, film) in enumerate(zip(counts, films.values(), strict=True)):
        square = film[chosen.get(count, list(range(count)))][:, :, 4:36].astype(np.float64) / 255
        inputs = torch.from_numpy(((square - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
        for key, values in alone(model, inputs).items():
            np.testing.assert_allclose(
                found[key][row], values, rtol=1e-4, atol=1e-5, err_msg=f"{key} of {count} frames"
            )
    assert found["mask"].all()


def test_an_interrupted_stage_goes_on_with_the_next_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, _ = hearing(tmp_path / "whole")
    run(params)
    again, _ = hearing(tmp_path / "interrupted")
    extract, asked = teacher_features.extract, []

    def interrupted(work: Any, number: int, ids: np.ndarray) -> None:
        asked.append(number)
        if len(asked) == 2:
            raise KeyboardInterrupt
        extract(work, number, ids)

    monkeypatch.setattr(teacher_features, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    assert not again.path("teacher_features", "f").exists()
    run(again)
    assert asked == [0, 1, 1, 2]
    assert (again.path("teacher_features", "f") / "features.npz").read_bytes() == (
        params.path("teacher_features", "f") / "features.npz"
    ).read_bytes()


def test_shards_of_other_weights_are_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, _ = hearing(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(teacher_features, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(params)
    other = cnn14(CLASSES, seed=1)
    save(params, other)
    found = run(params)
    sounds = Store(params.path("spectrogram", "d"))
    expected = alone(other, torch.from_numpy(np.array(sounds["clip 0"]))[None])
    np.testing.assert_allclose(found["features"][0], expected["features"], rtol=1e-4, atol=1e-5)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_several_processes_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = hearing(tmp_path / "one")
    run(alone)
    monkeypatch.setenv("AV_CORES", "2")
    together, _ = hearing(tmp_path / "two")
    run(together)
    files = [params.path("teacher_features", "f") / "features.npz" for params in (alone, together)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_dataset_without_any_sound_has_empty_rows(tmp_path: Path) -> None:
    params, _ = hearing(tmp_path)
    write_index(params.index("d"), clips().assign(id=[f"x{n}" for n in range(10)]))
    found = run(params)
    assert not found["mask"].any()
    assert found["features"].shape == (10, 24)
    assert not found["features"].any()


def test_each_draw_of_a_teacher_has_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = []
    for seed in (0, 1):
        params, _ = hearing(tmp_path / str(seed), "avsynth")
        save(params, cnn14(CLASSES, seed=seed))
        alone.append(run(params))
    params, _ = hearing(tmp_path / "drawn", "avsynth")
    drawn = params.teachers["t"].model_copy(update={"draws": 2})
    params = params.model_copy(update={"teachers": {"t": drawn}})
    folder = params.path("teachers", "t") / "draw-1"
    folder.mkdir()
    torch.save(cnn14(CLASSES, seed=1).state_dict(), folder / "weights.pt")
    run(params)
    made = params.path("teacher_features", "f")
    for expected, path in zip(alone, (made / "features.npz", made / "draw-1" / "features.npz"), strict=True):
        found = read_arrays(path)
        assert set(found) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, name)
    assert not np.array_equal(alone[0]["features"], alone[1]["features"])
    assert sorted(path.name for path in made.rglob("*")) == ["draw-1", "features.npz", "features.npz"]
