"""Motions of avsynth's actors: functions of the phase (T,) in cycles, which advances by 0.45 to 0.85 per second."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from avdistill.data.synthesis import scenes


class Path2D(NamedTuple):
    """A motion: offset from the centre in units of reach (T, 2), y downwards; turn in radians and scale (T,)."""

    offset: np.ndarray
    turn: np.ndarray
    scale: np.ndarray


Motion = Callable[[np.random.Generator, np.ndarray], Path2D]


def _path(
    x: np.ndarray | float, y: np.ndarray | float, phase: np.ndarray, turn: np.ndarray | None = None, scale: float = 1
) -> Path2D:
    zeros = np.zeros_like(phase)
    offset = np.stack([x + zeros, y + zeros], axis=1)
    return Path2D(offset, zeros if turn is None else turn, scale + zeros)


def _wave(phase: np.ndarray) -> np.ndarray:
    """Return the sine of a phase in cycles."""
    return np.sin(2 * np.pi * phase)


def _triangle(phase: np.ndarray) -> np.ndarray:
    """Return a triangle wave in -1..1 of a phase in cycles."""
    return 4 * np.abs(phase % 1 - 0.5) - 1


def _side(rng: np.random.Generator) -> float:
    """Return -1 or 1 at random."""
    return float(rng.choice([-1.0, 1.0]))


# --- motions of the actions ------------------------------------------------------------------------------------------


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
    return still._replace(scale=1 + 0.5 * _wave(phase))


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


OWN: dict[str, Motion] = {
    "swinging": _swinging,
    "bouncing": _bouncing,
    "circling": _circling,
    "zigzagging": _zigzagging,
    "falling": _falling,
    "pulsing": _pulsing,
    "rising": _rising,
    "spinning": _spinning,
    "sliding": _sliding,
    "looping": _looping,
}


# --- motions for the pre-training of students; no action of the dataset has them --------------------------------------


def _shaking(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    x, y = rng.uniform(-0.35, 0.35, (2, len(phase)))
    return _path(x, y, phase)


def _resting(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    x, y = rng.uniform(-0.8, 0.8, 2)
    return _path(x, y, phase)


def _climbing(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    way = 2.6 * (phase % 1) - 1.3
    return _path(_side(rng) * way, -way, phase)


def _diving(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    way = 2.6 * (phase % 1) - 1.3
    return _path(_side(rng) * way, way, phase)


def _growing(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 0.0, phase)._replace(scale=0.5 + phase % 1)


def _shrinking(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 0.0, phase)._replace(scale=1.5 - phase % 1)


def _pacing(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(1.2 * _triangle(phase), rng.uniform(-0.5, 0.5), phase)


def _hovering(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(rng.uniform(-0.5, 0.5), 1.1 * _wave(phase), phase)


def _stepping(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    step = np.floor(2 * phase).astype(int)
    step -= step[0]
    x, y = rng.uniform(-1.1, 1.1, (2, step[-1] + 1))[:, step]
    return _path(x, y, phase)


def _waving(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 0.0, phase, turn=1.2 * _wave(phase))


def _squaring(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    phase = phase * _side(rng)
    x, y = (np.clip(1.6 * _wave(phase + start), -1, 1) for start in (0, 0.25))
    return _path(x, y, phase)


def _blinking(rng: np.random.Generator, phase: np.ndarray) -> Path2D:
    return _path(0.0, 0.0, phase)._replace(scale=np.where((2 * phase) % 1 < 0.5, 1.0, 0.5))


GENERIC: dict[str, Motion] = {
    "shaking": _shaking,
    "resting": _resting,
    "climbing": _climbing,
    "diving": _diving,
    "growing": _growing,
    "shrinking": _shrinking,
    "pacing": _pacing,
    "hovering": _hovering,
    "stepping": _stepping,
    "waving": _waving,
    "squaring": _squaring,
    "blinking": _blinking,
}


def render(
    rng: np.random.Generator, scene: scenes.Scene, motion: Motion, tempo: float, time: np.ndarray, clutter: float
) -> np.ndarray:
    """Render the actor of a scene in motion at `time` (T,) in seconds, as uint8 (T, H, W, 3).

    `tempo` is in cycles per second. Size, reach, centre and initial phase are sampled."""
    height, width = scene.size
    path = motion(rng, rng.uniform() + tempo * time)
    reach = height * rng.uniform(0.28, 0.36)
    centre = np.array([width, height]) / 2 + rng.uniform(-0.08, 0.08, 2) * height
    radius = height * rng.uniform(0.18, 0.22) * path.scale
    turn = path.turn + rng.uniform(0, 2 * np.pi)
    return scenes.render(rng, scene, centre + reach * path.offset, turn, radius, clutter)
