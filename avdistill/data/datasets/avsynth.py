"""avsynth: short synthetic videos with sound, generated from a seed, with ground truth for each clip.

**Video.** An action is a motion: a shape that swings, bounces, circles, … in front of a scene. Shape, colours, size,
position and phase are sampled independently of the action. No two motions differ only by left and right, so clips may
be mirrored. A single frame indicates the action only by the ground: with probability `typical` the typical ground of
the action (as water for falling), else a random one. A group is one scene and one actor, the same in all actions.
`clutter` scales the disturbances: texture, static shapes, camera drift, noise, grain of the ground.

**Class.** A class consists of `variants` actions, in equal numbers. The label names the class and not the action: this
is what a student could learn from the sound and not from the label.

**Sound.** An action with *strong* correlation (the fraction `strong` of the actions) has a sound of its own; the *weak*
ones share a speech-like one. A clip has relevant sound with probability `relevant`: with probability `informed` the
sound of the action that is seen, else that of an action of the same class sampled at random. So at `informed: 0` the
sound says nothing of the picture beyond the class. Other clips have irrelevant sound (wind, rain, hum, music),
independent of the class. With probability `no_sound` a clip has none: no audio stream, or digital silence. Every sound
has background music, at a level sampled uniformly from `music_db` (dB relative to the sound).

All random numbers of a clip depend only on (`seed`, action, group, clip), so the bytes do not depend on the number of
processes. clips.csv has the ground truth: `action` (seen), `heard` (the action whose sound it is, `talk`, or empty for
sound that is irrelevant or absent), `relevant` (yes or no: the sound is that of the class), `correlation` (strong or
weak, of the action seen), `music_db`, and `sound` (own, talk, wind, rain, hum, music, silence or none).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avdistill.config.origins import Avsynth
from avdistill.data import media
from avdistill.data.datasets import CLIPS
from avdistill.data.synthesis import motions, scenes, sounds
from avdistill.pipeline import workers
from avdistill.pipeline.errors import UserError


class Action(NamedTuple):
    """A motion, its own sound (used if its correlation is strong), and its typical ground."""

    motion: motions.Motion
    instrument: sounds.Instrument
    ground: str


# Class k of a dataset with v variants consists of the actions k v to k v + v - 1. Neighbours look different, so that a
# class of two has two motions to be learned.
ACTIONS: dict[str, Action] = {
    "swinging": Action(motions.OWN["swinging"], sounds.whoosh, "meadow"),
    "bouncing": Action(motions.OWN["bouncing"], sounds.boing, "boards"),
    "circling": Action(motions.OWN["circling"], sounds.whirr, "asphalt"),
    "zigzagging": Action(motions.OWN["zigzagging"], sounds.chirps, "clay"),
    "falling": Action(motions.OWN["falling"], sounds.falling_whistle, "water"),
    "pulsing": Action(motions.OWN["pulsing"], sounds.thump, "mat"),
    "rising": Action(motions.OWN["rising"], sounds.rising_whistle, "sand"),
    "spinning": Action(motions.OWN["spinning"], sounds.ratchet, "ice"),
    "sliding": Action(motions.OWN["sliding"], sounds.scrape, "carpet"),
    "looping": Action(motions.OWN["looping"], sounds.siren, "moss"),
}


def classes(origin: Avsynth) -> list[str]:
    """Return the name of each class: its actions, joined by "_or_"."""
    names, size = list(ACTIONS), origin.variants
    return ["_or_".join(names[first : first + size]) for first in range(0, origin.classes * size, size)]


def strong(origin: Avsynth) -> list[bool]:
    """Return for each action whether it has a sound of its own: the fraction `strong`, spread evenly over the list."""
    steps = np.floor(np.arange(origin.classes * origin.variants + 1) * origin.strong + 1e-9)
    return (np.diff(steps) > 0).tolist()


@dataclass(frozen=True)
class SynthClip:
    """A planned clip: its class, action, group and number, and the ground truth of its sound."""

    name: str
    label: str
    action: int
    group: int
    number: int
    source: int  # the action whose sound the clip has, if that is relevant
    sound: str  # "own", "talk", a key of sounds.IRRELEVANT, "silence" (a stream of zeros) or "none" (no stream)
    music_db: float

    @property
    def file(self) -> str:
        """Return the path relative to the folder of videos."""
        return f"{self.label}/{self.name}.mp4"

    @property
    def heard(self) -> str:
        """Return the action whose own sound the clip has, "talk", or "" if its sound is irrelevant or absent."""
        return {"own": list(ACTIONS)[self.source], "talk": "talk"}.get(self.sound, "")


def plan(origin: Avsynth) -> list[SynthClip]:
    """Sample the attributes of all clips of an origin, without rendering them."""
    return [
        _sample(origin, action, group, number)
        for action in range(origin.classes * origin.variants)
        for group in range(origin.groups)
        for number in range(origin.clips_per_group)
    ]


def _sample(origin: Avsynth, action: int, group: int, number: int) -> SynthClip:
    rng = np.random.default_rng([origin.seed, 0, action, group, number])
    absent, relevant, kind, informed = rng.uniform(size=4)
    first = action // origin.variants * origin.variants
    other = first + int(rng.integers(origin.variants))
    source = action if informed < origin.informed else other
    irrelevant = str(rng.choice(list(sounds.IRRELEVANT)))
    if absent < origin.no_sound:
        sound = "none" if kind < 0.5 else "silence"
    elif relevant < origin.relevant:
        sound = "own" if strong(origin)[source] else "talk"
    else:
        sound = irrelevant
    name = f"{list(ACTIONS)[action]}_g{group + 1:03d}_c{number + 1:02d}"
    music_db = round(float(rng.uniform(*origin.music_db)), 2)
    label = classes(origin)[action // origin.variants]
    return SynthClip(name, label, action, group, number, source, sound, music_db)


def make(origin: Avsynth, clip: SynthClip) -> tuple[np.ndarray, np.ndarray | None]:
    """Render a clip: frames uint8 (T, H, W, 3), and sound float32 (samples,) or None for a clip without a stream."""
    actions = list(ACTIONS.values())
    action = actions[clip.action]
    scene = _scene(origin, clip, action.ground)
    rng = np.random.default_rng([origin.seed, 2, clip.action, clip.group, clip.number])
    tempo = rng.uniform(0.45, 0.85)
    time = np.arange(round(origin.seconds * origin.fps)) / origin.fps
    frames = motions.render(rng, scene, action.motion, tempo, time, origin.clutter)
    samples = round(origin.seconds * sounds.RATE)
    if clip.sound == "none":
        return frames, None
    if clip.sound == "silence":
        return frames, np.zeros(samples, dtype=np.float32)
    voices = {"own": actions[clip.source].instrument, "talk": sounds.talk, **sounds.IRRELEVANT}
    sound = sounds.mix(voices[clip.sound](rng, samples, tempo), sounds.music(rng, samples, tempo), clip.music_db)
    sound += np.float32(0.02) * rng.standard_normal(samples, dtype=np.float32)
    return frames, sounds.normalise_rms(sound) * np.float32(10 ** (rng.uniform(-30, -18) / 20))


def _scene(origin: Avsynth, clip: SynthClip, typical: str) -> scenes.Scene:
    """Draw the scene of a clip's group, with the typical ground of its action or a random one."""
    group_rng = np.random.default_rng([origin.seed, 1, clip.group])
    rng = np.random.default_rng([origin.seed, 5, clip.action, clip.group, clip.number])
    other = str(rng.choice(list(scenes.GROUNDS)))
    ground = typical if rng.uniform() < origin.typical else other
    scene = scenes.draw_scene(group_rng, origin.height, origin.width, origin.clutter)
    return scenes.draw_ground(rng, scene, ground, origin.clutter)


def check(origin: Avsynth) -> None:
    """Check that there are enough actions, and the range `music_db`. Raises UserError."""
    if origin.classes * origin.variants > len(ACTIONS):
        raise UserError(
            f"variants: {origin.classes} classes of {origin.variants} need {origin.classes * origin.variants} actions; "
            f"expected at most {len(ACTIONS)}"
        )
    low, high = origin.music_db
    if low > high:
        raise UserError(f"music_db: expected [low, high] in dB with low <= high, found [{low:g}, {high:g}]")


def videos(origin: Avsynth, folder: Path) -> Path:
    """Return the folder of the videos, <class>/<action>_g<group>_c<clip>.mp4."""
    return folder / "videos"


def download(origin: Avsynth, folder: Path) -> None:
    """Write the missing videos, and clips.csv."""
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
            "class": clip.label,
            "group": f"g{clip.group + 1:03d}",
            "action": list(ACTIONS)[clip.action],
            "heard": clip.heard,
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
