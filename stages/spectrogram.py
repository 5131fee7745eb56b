"""Stage spectrogram: compute PANNs' log-mel spectrogram (models/logmel.py) of every clip with sound."""

from __future__ import annotations

import numpy as np

from avdistill.data import datasets, media
from avdistill.data.packing import pack, usable_clips
from avdistill.pipeline.stage import Stage


def main(stage: Stage) -> None:
    """Write a store of spectrograms, float32 (frames, 64) in dB, 100 frames per second, by clip id; problems.csv."""
    _, clips, digest = usable_clips(stage, str(stage.item), "audio", "yes")
    with stage.output(key=digest) as folder:
        counts = pack(folder, "float32", clips, read_sound, lambda _, sound: spectrogram(sound), "spectrograms")
        stage.run.log_artifact(folder / "problems.csv")
    stage.run.log_metrics(counts)


def read_sound(clip: datasets.Clip) -> np.ndarray:
    """Read the sound of a clip, float32 (samples,) at 32 kHz, mono."""
    return media.read_audio(clip.path, start=clip.start, end=clip.end)


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Compute the log-mel spectrogram of float32 (samples,) at 32 kHz: float32 (samples // 320 + 1, 64)."""
    import torch

    from models.logmel import log_mel

    torch.set_num_threads(1)
    return log_mel(torch.from_numpy(sound)).numpy()
