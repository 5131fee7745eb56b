"""Stage mix_noise: spectrograms of clips mixed with the sound of a clip of another class (Xia et al., Table 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from avdistill.data import datasets
from avdistill.data.packing import pack, usable_clips
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from stages.spectrogram import read_sound, spectrogram

if TYPE_CHECKING:
    import pandas as pd


class Mixture(NamedTuple):
    """A clip, the clip whose sound is its noise, and the signal-to-noise ratio in dB."""

    clip: datasets.Clip
    noise: datasets.Clip
    snr_db: float

    @property
    def id(self) -> str:
        """Return the id of the clip."""
        return self.clip.id


def main(stage: Stage) -> None:
    """Write a store of spectrograms, pairs.csv (id, noise_id, measured snr_db), and problems.csv."""
    import pandas as pd

    from avdistill.data.files import write_csv

    params = stage.params.noise_mixes[str(stage.item)]
    audible, clips, _ = usable_clips(stage, params.dataset, "audio", "yes")
    noises = [clips[row] for row in sample_partners(audible, params.seed)]
    pairs = [Mixture(clip, noise, params.snr_db) for clip, noise in zip(clips, noises, strict=True)]
    stage.run.log_params(params.model_dump())
    measured = []

    def finish(pair: Mixture, mixed: tuple[np.ndarray, float]) -> np.ndarray:
        sound, snr_db = mixed
        measured.append((pair.clip.id, pair.noise.id, snr_db))
        return spectrogram(sound)

    with stage.output() as folder:
        counts = pack(folder, "float32", pairs, mix, finish, "mix in noise")
        write_csv(folder / "pairs.csv", pd.DataFrame(measured, columns=["id", "noise_id", "snr_db"]))
        stage.run.log_artifact(folder / "pairs.csv")
        stage.run.log_artifact(folder / "problems.csv")
    stage.run.log_metrics(counts)


def sample_partners(audible: pd.DataFrame, seed: int) -> np.ndarray:
    """Sample for each row of the index the row whose sound is its noise: row numbers, int64 (rows,).

    A random permutation within each split (no sound of the test split in training), corrected by random swaps until
    each clip has a partner of another class. If a class has more than half of the clips of a split, no permutation
    meets this, and some clips are the noise of several others. Raises UserError if a split has a single class.
    """
    rng = np.random.default_rng(seed)
    partner = np.full(len(audible), -1)
    groups = audible.groupby("split").groups
    for split in ("val", "test", "train"):  # the order determines the random numbers of each split
        if split not in groups:
            continue
        rows = groups[split]
        labels = audible["label"].to_numpy()[rows]
        order = rng.permutation(len(rows))
        for i in range(len(rows)):
            if labels[order[i]] != labels[i]:
                continue
            others = np.flatnonzero(labels != labels[i])
            if not len(others):
                raise UserError(f"split '{split}' has sound of one class only; expected clips of two or more classes")
            swaps = others[labels[order[others]] != labels[i]]
            if len(swaps):
                j = rng.choice(swaps)
                order[i], order[j] = order[j], order[i]
            else:
                order[i] = rng.choice(others)
        partner[rows] = np.asarray(rows)[order]
    return partner


def mix(pair: Mixture) -> tuple[np.ndarray, float]:
    """Mix the sounds of a pair. Returns the mixture, float32 (samples,), and the measured SNR in dB."""
    return add_noise(read_sound(pair.clip), read_sound(pair.noise), pair.snr_db)


def add_noise(sound: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, float]:
    """Add noise to sound, float32 (samples,), with a mean power `snr_db` below that of the sound.

    The noise is looped or cut to the length of the sound. Returns the mixture, float32 (samples,), not clipped, and
    the measured SNR in dB. If the noise is silent over that length, the sound is unchanged and the SNR is infinite."""
    noise = np.resize(noise, len(sound)).astype(np.float64)
    power, noise_power = np.mean(np.square(sound, dtype=np.float64)), np.mean(noise**2)
    if noise_power == 0:
        return sound, float("inf")
    mixed = (sound + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))).astype(np.float32)
    return mixed, float(10 * np.log10(power / np.mean((mixed.astype(np.float64) - sound) ** 2)))
