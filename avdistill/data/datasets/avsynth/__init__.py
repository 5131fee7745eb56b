"""avsynth: short videos drawn and synthesised from a seed, with the truth about each clip written down.

**Pictures.** A class is a motion: a shape that swings, bounces, circles, … in front of a scene. Shape, colours, size,
place and phase are drawn independently of the class, and no motion is told from another by left and right, so that
clips may be mirrored. What one picture says of the class is the ground below: with probability `typical` that on which
the class is at home, as swimming is in water, else any. A group is one scene and one actor, and is the same in all
classes. Two pairs of classes, bouncing and hopping, falling and dropping, look alike, ground and all, and differ in
their sound alone, as in real life some do: no student that only sees can tell them apart. `clutter` scales what
disturbs: texture, resting shapes, drift of the camera, noise, grain of the ground.

**Sound.** A class whose correlation is *strong* (the share `strong` of the classes) has a sound of its own; the
*weak* ones share one that is like speech. A clip's sound belongs to its class with probability `relevant`; else it
is irrelevant (wind, rain, hum, music), whatever the class. With probability `no_sound` there is none: no stream, or
digital silence. Music lies beneath everything, at a loudness drawn evenly from `music_db` relative to the clip's
sound.

Each clip is made from numbers drawn from (`seed`, class, group, clip) alone, so any number of processes makes the
same bytes. clips.csv adds the truth: `relevant` (yes or no: the sound belongs to the action), `correlation` (strong
or weak, of the class), `music_db`, and `sound` (own, talk, wind, rain, hum, music, silence or none).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avdistill.config.origins import Avsynth
from avdistill.data import media
from avdistill.data.datasets import CLIPS
from avdistill.data.datasets.avsynth import pictures, sounds
from avdistill.pipeline import workers
from avdistill.pipeline.errors import UserError


class Path2D(NamedTuple):
    """A motion: offset from the middle in units of reach (T, 2), y downwards; turn in radians and growth (T,)."""

    offset: np.ndarray
    turn: np.ndarray
    growth: np.ndarray


Motion = Callable[[np.random.Generator, np.ndarray], Path2D]


def _path(
    x: np.ndarray | float, y: np.ndarray | float, phase: np.ndarray, turn: np.ndarray | None = None, growth: float = 1
) -> Path2D:
    still = np.zeros_like(phase)
    offset = np.stack([x + still, y + still], axis=1)
    return Path2D(offset, still if turn is None else turn, growth + still)


def _wave(phase: np.ndarray) -> np.ndarray:
    """Sine of a phase in cycles."""
    return np.sin(2 * np.pi * phase)


def _triangle(phase: np.ndarray) -> np.ndarray:
    """Triangle wave in -1..1."""
    return 4 * np.abs(phase % 1 - 0.5) - 1


def _side(rng: np.random.Generator) -> float:
    """Left or right."""
    return float(rng.choice([-1.0, 1.0]))


# Each takes the phase in cycles (T,), which passes at 0.45 to 0.85 cycles a second.


def _swinging(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    lean = 1.0 * _wave(phase)
    return _path(1.5 * np.sin(lean), 1.5 * np.cos(lean) - 1.2, phase, turn=-lean)


def _bouncing(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    height = 4 * (phase % 1) * (1 - phase % 1)
    return _path(0.0, 0.9 - 1.8 * height, phase)


def _circling(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    phase = phase * _side(rng)
    return _path(_wave(phase), _wave(phase + 0.25), phase)


def _spinning(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 0.0, phase, turn=2 * np.pi * phase * _side(rng))


def _pulsing(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    still = _path(0.0, 0.0, phase)
    return still._replace(growth=1 + 0.5 * _wave(phase))


def _falling(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 2.4 * (phase % 1) ** 2 - 1.2, phase)


def _zigzagging(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(1.2 * _triangle(0.4 * phase), 0.6 * _triangle(1.6 * phase), phase)


def _rising(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 1.2 - 2.4 * (phase % 1), phase)


def _looping(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(1.3 * _wave(0.7 * phase), 0.8 * _wave(1.4 * phase), phase)


def _sliding(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(_side(rng) * (2.6 * (phase % 1) - 1.3), 0.0, phase)


class Action(NamedTuple):
    """What a class is: how it moves, the sound of its own if it is a strong one, and the ground where it is at home."""

    motion: Motion
    instrument: sounds.Instrument
    ground: str


# A dataset of n classes has the first n.
ACTIONS: dict[str, Action] = {
    "swinging": Action(_swinging, sounds.whoosh, "meadow"),
    "circling": Action(_circling, sounds.whirr, "asphalt"),
    "falling": Action(_falling, sounds.falling_whistle, "water"),
    "bouncing": Action(_bouncing, sounds.boing, "boards"),
    "rising": Action(_rising, sounds.rising_whistle, "sand"),
    "spinning": Action(_spinning, sounds.ratchet, "ice"),
    "zigzagging": Action(_zigzagging, sounds.chirps, "clay"),
    "sliding": Action(_sliding, sounds.scrape, "carpet"),
    "hopping": Action(_bouncing, sounds.blips, "boards"),
    "dropping": Action(_falling, sounds.rattle, "water"),
    "pulsing": Action(_pulsing, sounds.thump, "mat"),
    "looping": Action(_looping, sounds.siren, "moss"),
}


def strong(origin: Avsynth) -> list[bool]:
    """Which classes have a sound of their own: the share `strong` of them, spread evenly over the list."""
    steps = np.floor(np.arange(origin.classes + 1) * origin.strong + 1e-9)
    return (np.diff(steps) > 0).tolist()


@dataclass(frozen=True)
class SynthClip:
    """One clip as it was drawn: where it stands, and the truth about its sound."""

    name: str
    action: int
    group: int
    number: int
    sound: str  # "own", "talk", one of the irrelevant, "silence" (a stream of zeros) or "none" (no stream)
    music_db: float

    @property
    def file(self) -> str:
        """Path below the videos."""
        action = list(ACTIONS)[self.action]
        return f"{action}/{self.name}.mp4"


def plan(origin: Avsynth) -> list[SynthClip]:
    """All clips of a origin, drawn but not yet made."""
    return [
        _draw(origin, action, group, number)
        for action in range(origin.classes)
        for group in range(origin.groups)
        for number in range(origin.clips_per_group)
    ]


def _draw(origin: Avsynth, action: int, group: int, number: int) -> SynthClip:
    rng = np.random.default_rng([origin.seed, 0, action, group, number])
    absent, relevant, kind = rng.uniform(size=3)
    irrelevant = str(rng.choice(list(sounds.IRRELEVANT)))
    if absent < origin.no_sound:
        sound = "none" if kind < 0.5 else "silence"
    elif relevant < origin.relevant:
        sound = "own" if strong(origin)[action] else "talk"
    else:
        sound = irrelevant
    name = f"{list(ACTIONS)[action]}_g{group + 1:02d}_c{number + 1:02d}"
    music_db = round(float(rng.uniform(*origin.music_db)), 2)
    return SynthClip(name, action, group, number, sound, music_db)


def make(origin: Avsynth, clip: SynthClip) -> tuple[np.ndarray, np.ndarray | None]:
    """Pictures uint8 (T, H, W, 3) and sound float32 (samples,), or None for a clip without one."""
    action = list(ACTIONS.values())[clip.action]
    setting = _setting(origin, clip, action.ground)
    rng = np.random.default_rng([origin.seed, 2, clip.action, clip.group, clip.number])
    tempo = rng.uniform(0.45, 0.85)
    frames = _film(rng, origin, setting, action.motion, tempo)
    samples = round(origin.seconds * sounds.RATE)
    if clip.sound == "none":
        return frames, None
    if clip.sound == "silence":
        return frames, np.zeros(samples, dtype=np.float32)
    voices = {"own": action.instrument, "talk": sounds.talk, **sounds.IRRELEVANT}
    sound = sounds.mix(voices[clip.sound](rng, samples, tempo), sounds.music(rng, samples, tempo), clip.music_db)
    sound += np.float32(0.02) * rng.standard_normal(samples, dtype=np.float32)
    return frames, sounds.loud(sound) * np.float32(10 ** (rng.uniform(-30, -18) / 20))


def _setting(origin: Avsynth, clip: SynthClip, home: str) -> pictures.Scene:
    """The scene of a clip's group, on the ground where its class is at home or on any."""
    backdrop = np.random.default_rng([origin.seed, 1, clip.group])
    rng = np.random.default_rng([origin.seed, 5, clip.action, clip.group, clip.number])
    anywhere = str(rng.choice(list(pictures.GROUNDS)))
    ground = home if rng.uniform() < origin.typical else anywhere
    setting = pictures.scene(backdrop, origin.height, origin.width, origin.clutter)
    return pictures.on_ground(rng, setting, ground, origin.clutter)


def _film(
    rng: np.random.Generator, origin: Avsynth, setting: pictures.Scene, motion: Motion, tempo: float
) -> np.ndarray:
    """The actor of a scene in motion: size, reach, middle and first phase are the clip's own."""
    height, width = origin.height, origin.width
    time = np.arange(round(origin.seconds * origin.fps)) / origin.fps
    path = motion(rng, rng.uniform() + tempo * time)
    reach = height * rng.uniform(0.28, 0.36)
    middle = np.array([width, height]) / 2 + rng.uniform(-0.08, 0.08, 2) * height
    radius = height * rng.uniform(0.18, 0.22) * path.growth
    turn = path.turn + rng.uniform(0, 2 * np.pi)
    return pictures.film(rng, setting, middle + reach * path.offset, turn, radius, origin.clutter)


def check(origin: Avsynth) -> None:
    """Raises UserError if the range of loudness is upside down."""
    low, high = origin.music_db
    if low > high:
        raise UserError(f"music_db: expected [low, high] in dB, found [{low:g}, {high:g}]")


def videos(origin: Avsynth, folder: Path) -> Path:
    """Videos lie as videos/<class>/<class>_g<group>_c<clip>.mp4."""
    return folder / "videos"


def download(origin: Avsynth, folder: Path) -> None:
    """Make the videos that are not there yet, and clips.csv."""
    import pandas as pd

    from avdistill.data.files import write_csv

    clips = plan(origin)
    root = videos(origin, folder)
    missing = [clip for clip in clips if not (root / clip.file).exists()]
    for clip, problem in workers.each(partial(_write, origin, root), missing, "make videos"):
        if problem is not None:
            raise UserError(f"{root / clip.file}: {problem}")
    correlated = strong(origin)
    rows = [
        {
            "id": clip.name,
            "file": clip.file,
            "class": list(ACTIONS)[clip.action],
            "group": f"g{clip.group + 1:02d}",
            "relevant": "yes" if clip.sound in ("own", "talk") else "no",
            "correlation": "strong" if correlated[clip.action] else "weak",
            "music_db": clip.music_db,
            "sound": clip.sound,
        }
        for clip in clips
    ]
    write_csv(folder / CLIPS, pd.DataFrame(rows))


def _write(origin: Avsynth, root: Path, clip: SynthClip) -> None:
    frames, sound = make(origin, clip)
    media.write_video(root / clip.file, frames, origin.fps, sound, sounds.RATE)


# --- what teachers learn from: nothing of it is in the dataset ------------------------------------------------------


def pretraining_sounds(count: int, seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Generic sounds with music or noise beneath: float32 (count, samples) at 32 kHz, labels (count,), class names.

    Classes come in turn. None of the instruments is heard in the dataset's actions.
    """
    names = list(sounds.GENERIC)
    labels = np.arange(count) % len(names)
    samples = round(seconds * sounds.RATE)
    waveforms = np.empty((count, samples), dtype=np.float32)
    for row, label in enumerate(labels):
        rng = np.random.default_rng([seed, 3, row])
        tempo = rng.uniform(0.8, 1.6)
        beneath = sounds.music(rng, samples, tempo) if rng.uniform() < 0.5 else rng.standard_normal(samples, np.float32)
        mixed = sounds.mix(sounds.GENERIC[names[label]](rng, samples, tempo), beneath, rng.uniform(-25, 0))
        waveforms[row] = sounds.loud(mixed) * np.float32(10 ** (rng.uniform(-30, -18) / 20))
    return waveforms, labels, names


def pretraining_images(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Still shapes, filled plain or striped, on scenes: uint8 (count, size, size, 3), labels (count,), class names.

    Classes come in turn: every shape with every filling.
    """
    names = [f"{filling} {shape}" for shape in pictures.SHAPES for filling in ("plain", "striped")]
    labels = np.arange(count) % len(names)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        filling, _, shape = names[label].partition(" ")
        images[row] = pictures.still(np.random.default_rng([seed, 4, row]), shape, filling == "striped", size)
    return images, labels, names
