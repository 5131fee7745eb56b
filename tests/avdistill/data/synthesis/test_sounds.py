from __future__ import annotations

import numpy as np
import pytest

from avdistill.data.synthesis import sounds


def test_tone_has_the_pitch_that_was_asked_for() -> None:
    spectrum = np.abs(np.fft.rfft(sounds.tone(np.full(32_000, 440.0), (1, 0.5))))
    assert spectrum.argmax() == 440
    assert spectrum[880] / spectrum[440] == pytest.approx(0.5, rel=0.02)


def test_noise_has_the_band_that_was_asked_for() -> None:
    sound = sounds.noise(np.random.default_rng(0), 320_000, 1000, 2000)
    power = (np.abs(np.fft.rfft(sound)) ** 2).reshape(-1)[:160_000].reshape(-1, 1000).sum(1)  # in bands of 100 Hz
    frequency = 50.0 + 100 * np.arange(160)
    outside = np.maximum(np.maximum(np.log2(1000 / frequency), np.log2(frequency / 2000)), 0)
    expected = np.exp(-2 * outside**2) ** 2
    np.testing.assert_allclose(power / power.sum(), expected / expected.sum(), atol=0.008)
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(1, abs=1e-3)


def test_mix_is_relative_to_the_sound() -> None:
    rng = np.random.default_rng(0)
    sound, other = rng.normal(size=1000), 7 * rng.normal(size=1000)
    added = sounds.mix(sound, other, -12.0) - sounds.normalise_rms(sound)
    assert 20 * np.log10(np.sqrt(np.mean(added**2))) == pytest.approx(-12, abs=0.01)
