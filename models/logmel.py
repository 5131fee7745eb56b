"""Log-mel spectrograms as PANNs defines them. Its models, trained on AudioSet, expect exactly this front end.

Source: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks", TASLP 2020; constants from the authors'
program.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE = 32_000  # Hz
WINDOW = 1024  # samples, periodic Hann
HOP = 320  # samples, so 100 frames per second
MELS = 64
LOW_HZ, HIGH_HZ = 50.0, 14_000.0
FLOOR = 1e-10  # smallest power, so -100 dB


@cache
def mel_filters() -> Tensor:
    """Return Slaney's mel filter bank, (WINDOW / 2 + 1, MELS), on the CPU."""
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(WINDOW // 2 + 1, LOW_HZ, HIGH_HZ, MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney")


def log_mel(waveform: Tensor) -> Tensor:
    """Compute the log-mel spectrogram in dB, (..., frames, 64), of a waveform (..., samples).

    The waveform is float in -1..1 at 32 kHz. frames = samples // 320 + 1: one centred frame every 10 ms, with
    reflection padding at both ends. A waveform shorter than one window is zero-padded to one window (4 frames).
    Values are at least -100 dB. Raises ValueError if the waveform has no samples."""
    if waveform.shape[-1] == 0:
        raise ValueError("log_mel: the waveform has no samples")
    if waveform.shape[-1] < WINDOW:
        waveform = functional.pad(waveform, (0, WINDOW - waveform.shape[-1]))
    window = torch.hann_window(WINDOW, device=waveform.device)
    flat = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(flat, WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = (spectrum * spectrum.conj()).real.transpose(-1, -2)  # abs().square() takes longer than the STFT itself
    mel = power @ mel_filters().to(waveform.device)
    decibels = 10 * torch.log10(mel.clamp(min=FLOOR))
    return decibels.reshape(*waveform.shape[:-1], *decibels.shape[-2:])
