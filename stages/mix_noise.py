"""Stage mix_noise: spectrograms of recordings that are each mixed with one of another class (Xia Table 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from avdistill.data import datasets
from avdistill.data.packing import pack
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from stages.spectrogram import listen, spectrogram

if TYPE_CHECKING:
    import pandas as pd


class Mixture(NamedTuple):
    """A clip, and the one whose sound is its noise."""

    clip: datasets.Clip
    noise: datasets.Clip
    snr_db: float

    @property
    def id(self) -> str:
        """Id of the clip."""
        return self.clip.id


def main(stage: Stage) -> None:
    """Write a store as spectrogram does, pairs.csv (id, noise_id, snr_db as measured), and problems.csv."""
    import pandas as pd

    from avdistill.data.files import digest, write_csv
    from avdistill.data.index import read_index

    params = stage.params.noise_mixes[str(stage.item)]
    origin = stage.params.datasets[params.dataset].origin
    source = stage.input("split", params.dataset) / "index.csv"
    index = read_index(source)
    heard = index[index["audio"] == "yes"].reset_index(drop=True)
    videos = datasets.of(origin).videos(origin, stage.input("download", params.dataset))
    clips = datasets.locate(heard, videos)
    noises = [clips[row] for row in draw(heard, params.seed)]
    pairs = [Mixture(clip, noise, params.snr_db) for clip, noise in zip(clips, noises, strict=True)]
    stage.run.log_params(params.model_dump())
    stage.run.log_dataset(name=params.dataset, path=source, digest=digest(source), context="mix_noise")
    measured = []

    def finish(pair: Mixture, mixed: tuple[np.ndarray, float]) -> np.ndarray:
        sound, ratio = mixed
        measured.append((pair.clip.id, pair.noise.id, ratio))
        return spectrogram(sound)

    with stage.output() as folder:
        counts = pack(folder, "float32", pairs, mix, finish, "mix in noise")
        write_csv(folder / "pairs.csv", pd.DataFrame(measured, columns=["id", "noise_id", "snr_db"]))
        stage.run.log_artifact(folder / "pairs.csv")
        stage.run.log_artifact(folder / "problems.csv")
    stage.run.log_metrics(counts)


def draw(heard: pd.DataFrame, seed: int) -> np.ndarray:
    """For each row of the index the number of the row whose sound is its noise, int64 (rows,).

    A random permutation within each split (sound of the test split never enters training), repaired by random swaps
    until each has a partner of another class. Where one class has more than half of a split no permutation can do
    that, and some recordings serve twice. Raises UserError if a split has a single class.
    """
    rng = np.random.default_rng(seed)
    partner = np.full(len(heard), -1)
    groups = heard.groupby("split").groups
    for split in ("val", "test", "train"):  # the order decides what is drawn for which
        if split not in groups:
            continue
        rows = groups[split]
        labels = heard["label"].to_numpy()[rows]
        order = rng.permutation(len(rows))
        for i in range(len(rows)):
            if labels[order[i]] != labels[i]:
                continue
            others = np.flatnonzero(labels != labels[i])
            if not len(others):
                raise UserError(f"split '{split}' has sound of one class only: no recording of another class to mix in")
            swaps = others[labels[order[others]] != labels[i]]
            if len(swaps):
                j = rng.choice(swaps)
                order[i], order[j] = order[j], order[i]
            else:
                order[i] = rng.choice(others)
        partner[rows] = np.asarray(rows)[order]
    return partner


def mix(pair: Mixture) -> tuple[np.ndarray, float]:
    """The sound of a pair, and the measured ratio of powers in dB."""
    return add_noise(listen(pair.clip), listen(pair.noise), pair.snr_db)


def add_noise(sound: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, float]:
    """Sound float32 (samples,) with noise, looped or cut to its length, `snr_db` below it in mean power.

    Returns the mixture, float32 (samples,), not clipped, and the ratio as measured; noise that is silent over that
    length adds nothing, and the ratio is infinite."""
    noise = np.resize(noise, len(sound)).astype(np.float64)
    power, noise_power = np.mean(np.square(sound, dtype=np.float64)), np.mean(noise**2)
    if noise_power == 0:
        return sound, float("inf")
    mixed = (sound + noise * np.sqrt(power / noise_power / 10 ** (snr_db / 10))).astype(np.float32)
    return mixed, float(10 * np.log10(power / np.mean((mixed.astype(np.float64) - sound) ** 2)))
