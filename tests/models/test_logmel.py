"""The log-mel front end against librosa and against what a genuine PANNs front end gave."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models import logmel

SHARED = Path(os.environ.get("AV_SHARED", Path(__file__).parents[3] / "shared"))
FIXTURE = SHARED / "data/panns/logmel_fixture.npz"


@pytest.mark.parametrize("samples", [1024, 4001, 32_000])
def test_equals_librosa(samples):
    librosa = pytest.importorskip("librosa")
    sound = (np.random.default_rng(samples).standard_normal(samples) * 0.1).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=sound, sr=32_000, n_fft=1024, hop_length=320, n_mels=64, fmin=50, fmax=14_000, power=2.0, pad_mode="reflect"
    )
    expected = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None).T
    ours = logmel.log_mel(torch.from_numpy(sound)).numpy()
    assert ours.shape == expected.shape == (samples // 320 + 1, 64)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.skipif(not FIXTURE.exists(), reason="the recorded spectrograms are not here")
@pytest.mark.parametrize("name", ["sym5_0s", "octet_6s"])
def test_equals_panns(name):
    data = np.load(FIXTURE, allow_pickle=False)
    ours = logmel.log_mel(torch.from_numpy(data[f"{name}_waveform"])).numpy()
    np.testing.assert_allclose(ours, data[f"{name}_logmel"], atol=1e-3, rtol=0)


def test_batches_are_what_their_rows_are():
    sound = torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(0))
    whole = logmel.log_mel(sound)
    assert whole.shape == (2, 3, 16, 64)
    torch.testing.assert_close(whole[1, 2], logmel.log_mel(sound[1, 2]))


def test_short_and_silent_sound():
    for samples in (1, 100, 512, 1023):
        sound = torch.randn(samples, generator=torch.Generator().manual_seed(0))
        spectrogram = logmel.log_mel(sound)
        assert spectrogram.shape == (4, 64)
        assert spectrogram.isfinite().all()
    assert (logmel.log_mel(torch.zeros(3200)) == -100).all()
    with pytest.raises(ValueError, match="no samples"):
        logmel.log_mel(torch.zeros(0))
