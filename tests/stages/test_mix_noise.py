from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avdistill.data import datasets, media
from avdistill.data.index import read_index
from avdistill.data.packed import Store
from avdistill.pipeline.errors import UserError
from models.logmel import log_mel
from stages import download, mix_noise, spectrogram, split
from tests.helpers.little import RATE, folder_of_videos, stage, tone


def heard(labels: list[int], splits: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "split": splits})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["train", "test"])), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_partners_are_of_the_same_part_and_another_class(rows: list[tuple[int, str]], seed: int) -> None:
    table = heard([label for label, _ in rows], [split for _, split in rows])
    try:
        partner = mix_noise.sample_partners(table, seed)
    except UserError as error:
        assert "of one class only" in str(error)
        assert (table.groupby("split")["label"].nunique() == 1).any()
        return
    assert (table["split"].to_numpy()[partner] == table["split"]).all()
    assert (table["label"].to_numpy()[partner] != table["label"]).all()
    np.testing.assert_array_equal(partner, mix_noise.sample_partners(table, seed))
    for _, own in table.groupby("split"):
        if own["label"].value_counts().max() <= len(own) / 2:
            assert sorted(partner[own.index]) == sorted(own.index), "each recording serves once"


def test_noise_says_nothing_about_the_class() -> None:
    table = heard([n % 4 for n in range(4000)], ["train"] * 4000)
    partner = mix_noise.sample_partners(table, 0)
    counts = pd.crosstab(table["label"], table["label"].to_numpy()[partner]).to_numpy()
    assert np.abs(counts[~np.eye(4, dtype=bool)] - 1000 / 3).max() < 80


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 6.0, 60.0])
@pytest.mark.parametrize("noise_seconds", [0.3, 2.0])
def test_ratio_of_powers(snr_db: float, noise_seconds: float) -> None:
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, RATE).astype(np.float32)
    noise = rng.normal(0, 0.7, round(noise_seconds * RATE)).astype(np.float32)
    mixed, measured = mix_noise.add_noise(sound, noise, snr_db)
    added = mixed.astype(np.float64) - sound
    assert mixed.dtype == np.float32
    assert mixed.shape == sound.shape
    assert 10 * np.log10((sound.astype(np.float64) ** 2).mean() / (added**2).mean()) == pytest.approx(snr_db, abs=1e-3)
    assert measured == pytest.approx(snr_db, abs=1e-3)
    looped = np.array([noise[n % len(noise)] for n in range(RATE)], dtype=np.float64)
    assert np.corrcoef(added, looped)[0, 1] > 0.999


def test_silent_noise_adds_nothing() -> None:
    mixed, measured = mix_noise.add_noise(tone(0.5), np.zeros(100, dtype=np.float32), 0.0)
    np.testing.assert_array_equal(mixed, tone(0.5))
    assert measured == np.inf


def test_both_stages_of_sound(tmp_path: Path) -> None:
    folder_of_videos(tmp_path / "videos")
    origin = {"kind": "folder", "source": str(tmp_path / "videos")}
    download.main(stage("download", "d", tmp_path, origin))
    split.main(stage("split", "d", tmp_path, origin))
    spectrogram.main(stage("spectrogram", "d", tmp_path, origin))
    mix_noise.main(stage("mix_noise", "m", tmp_path, origin))
    index = read_index(tmp_path / "out/split/d/index.csv").set_index("id")
    clean, noisy = Store(tmp_path / "out/spectrogram/d"), Store(tmp_path / "out/mix_noise/m")
    assert set(clean) == set(noisy) == set(index.index[index["audio"] == "yes"])
    for name in clean:
        assert clean[name].dtype == noisy[name].dtype == np.float32
        assert clean[name].shape == noisy[name].shape == (151, 64)
        assert not np.array_equal(clean[name], noisy[name])
    path = tmp_path / "videos" / "class 0/it's_g1_é.mp4"
    expected = log_mel(torch.from_numpy(media.read_audio(path, end=index.loc["class 0/it's_g1_é.mp4", "end"])))
    np.testing.assert_array_equal(clean["class 0/it's_g1_é.mp4"], expected.numpy())
    pairs = pd.read_csv(tmp_path / "out/mix_noise/m/pairs.csv")
    assert sorted(pairs["id"]) == sorted(noisy)
    assert pairs["snr_db"].to_numpy() == pytest.approx(6, abs=1e-3)
    own, noise = index.loc[pairs["id"]], index.loc[pairs["noise_id"]]
    assert (own["split"].to_numpy() == noise["split"].to_numpy()).all()
    assert (own["class"].to_numpy() != noise["class"].to_numpy()).all()
    assert pd.read_csv(tmp_path / "out/mix_noise/m/problems.csv").empty


def test_real_sound(shared_data: Path) -> None:
    clip = datasets.Clip("x", shared_data / "ucf101/Surfing/v_Surfing_g01_c01.avi", 0.0, None)
    sound = spectrogram.read_sound(clip)
    made = spectrogram.spectrogram(sound)
    assert made.shape == (len(sound) // 320 + 1, 64)
    assert -100 <= made.min() < made.max() < 60
