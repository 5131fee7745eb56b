"""Sounds, motions and images of other kinds than those of avsynth, on which small networks are pre-trained."""

from __future__ import annotations

import numpy as np

from avdistill.data.synthesis import motions, scenes, sounds

SIZE, FRAMES, FPS, CLUTTER = 24, 8, 4, 0.5  # of generic_motions


def generic_sounds(count: int, seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Synthesise generic sounds with music or noise in the background.

    Returns float32 (count, samples) at 32 kHz, labels (count,), and the class names. The classes alternate. None of the
    sounds is the sound of a class of avsynth.
    """
    names = list(sounds.GENERIC)
    labels = np.arange(count) % len(names)
    samples = round(seconds * sounds.RATE)
    waveforms = np.empty((count, samples), dtype=np.float32)
    for row, label in enumerate(labels):
        rng = np.random.default_rng([seed, 3, row])
        tempo = rng.uniform(0.8, 1.6)
        other = sounds.music(rng, samples, tempo) if rng.uniform() < 0.5 else rng.standard_normal(samples, np.float32)
        mixed = sounds.mix(sounds.GENERIC[names[label]](rng, samples, tempo), other, rng.uniform(-25, 0))
        waveforms[row] = sounds.normalise_rms(mixed) * np.float32(10 ** (rng.uniform(-30, -18) / 20))
    return waveforms, labels, names


def generic_motions(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Render clips of generic motions, for students to start from.

    Returns uint8 (count, 8, 24, 24, 3) at 4 frames per second, labels (count,), and the class names. The classes
    alternate. None of the motions is an action of avsynth."""
    names = list(motions.GENERIC)
    labels = np.arange(count) % len(names)
    clips = np.empty((count, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        rng = np.random.default_rng([seed, 6, row])
        scene = scenes.draw_scene(rng, SIZE, SIZE, CLUTTER)
        scene = scenes.draw_ground(rng, scene, str(rng.choice(list(scenes.GROUNDS))), CLUTTER)
        motion, tempo = motions.GENERIC[names[label]], rng.uniform(0.45, 0.85)
        clips[row] = motions.render(rng, scene, motion, tempo, np.arange(FRAMES) / FPS, CLUTTER)
    return clips, labels, names


def generic_images(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw images of shapes, plain or striped, on scenes.

    Returns uint8 (count, size, size, 3), labels (count,), and the class names: every shape with both fillings. The
    classes alternate.
    """
    names = [f"{filling} {shape}" for shape in scenes.SHAPES for filling in ("plain", "striped")]
    labels = np.arange(count) % len(names)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        filling, _, shape = names[label].partition(" ")
        images[row] = scenes.draw_image(np.random.default_rng([seed, 4, row]), shape, filling == "striped", size)
    return images, labels, names
