"""Draw frames with NumPy: shapes as signed distance functions, scenes as textures under a drifting camera.

Lengths are in pixels, angles in radians, colours float (3,) in 0..1, frames float32 (T, H, W, 3) in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

MARGIN = 8  # pixels that the scene extends beyond the frame on every side, for the camera drift


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.5


# Signed distance from the outline of a shape of radius about 1 (negative inside).
SHAPES: dict[str, Distance] = {
    "bar": lambda x, y: _box(x, y, 1.0, 0.35),
    "triangle": _triangle,
    "tee": lambda x, y: np.minimum(_box(x, y + 0.6, 0.9, 0.3), _box(x, y - 0.2, 0.3, 0.8)),
    "half disc": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, y),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.5, y)),
    "ellipse": lambda x, y: (np.hypot(x, y / 0.45) - 1.0) * 0.6,
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
    "square": lambda x, y: _box(x, y, 0.8, 0.8),
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.28), _box(x, y, 0.28, 1.0)),
}
# Colours of the grounds below an action.
GROUNDS: dict[str, tuple[float, float, float]] = {
    "meadow": (0.12, 0.36, 0.10),
    "water": (0.08, 0.22, 0.45),
    "sand": (0.46, 0.38, 0.20),
    "clay": (0.45, 0.17, 0.10),
    "asphalt": (0.17, 0.17, 0.19),
    "ice": (0.36, 0.45, 0.48),
    "boards": (0.30, 0.20, 0.11),
    "carpet": (0.30, 0.08, 0.26),
    "mat": (0.10, 0.33, 0.32),
    "moss": (0.30, 0.36, 0.05),
}
# Shapes whose rotation is visible: none looks the same after less than a third of a turn.
ACTORS = ("bar", "triangle", "tee", "half disc", "crescent", "ellipse")


def cover(
    shape: str, height: int, width: int, x: np.ndarray, y: np.ndarray, angle: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    """Return the coverage of each pixel by a moving shape, float32 (T, H, W) in 0..1; x, y, angle, radius are (T,)."""

    def by_time(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, dtype=np.float32)[:, np.newaxis, np.newaxis]

    dx = np.arange(width, dtype=np.float32) - by_time(x)
    dy = np.arange(height, dtype=np.float32)[:, np.newaxis] - by_time(y)
    cosine, sine, size = by_time(np.cos(angle)), by_time(np.sin(angle)), by_time(radius)
    distance = SHAPES[shape]((dx * cosine + dy * sine) / size, (dy * cosine - dx * sine) / size) * size
    return np.clip(0.5 - distance, 0, 1)


@dataclass(frozen=True)
class Scene:
    """The background, and the shape and colour of the actor; the clips of a group share them."""

    canvas: np.ndarray  # (H + 2 MARGIN, W + 2 MARGIN, 3)
    actor: str
    colour: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.canvas.shape[0] - 2 * MARGIN, self.canvas.shape[1] - 2 * MARGIN


def draw_scene(rng: np.random.Generator, height: int, width: int, clutter: float) -> Scene:
    """Draw a scene: a texture of waves in two colours with static shapes; `clutter` in 0..1 scales both.

    The actor's colour is brighter than the background.
    """
    tall, wide = height + 2 * MARGIN, width + 2 * MARGIN
    y, x = np.mgrid[:tall, :wide].astype(np.float32)
    waves = np.zeros((tall, wide), dtype=np.float32)
    for _ in range(6):
        angle, length, phase = rng.uniform(0, np.pi), rng.uniform(6, 40), rng.uniform(0, 2 * np.pi)
        waves += np.sin(2 * np.pi / length * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    ground, other, colour = rng.uniform(0.1, 0.5, 3), rng.uniform(0, 0.7, 3), rng.uniform(0.45, 1, 3)
    shade = np.clip(0.5 + waves / 7, 0, 1)[..., np.newaxis] * 0.6 * clutter
    canvas = (ground * (1 - shade) + other * shade).astype(np.float32)
    for _ in range(round(rng.uniform(2, 6) * clutter)):
        across, down = rng.uniform(0, wide, 1), rng.uniform(0, tall, 1)
        turn, radius = rng.uniform(0, 2 * np.pi, 1), rng.uniform(2, 6, 1)
        layer = cover(str(rng.choice(list(SHAPES))), tall, wide, across, down, turn, radius)[0, ..., np.newaxis]
        canvas += layer * 0.6 * (rng.uniform(0, 0.9, 3) - canvas)
    return Scene(canvas.astype(np.float32), str(rng.choice(ACTORS)), colour)


def draw_ground(rng: np.random.Generator, scene: Scene, ground: str, clutter: float) -> Scene:
    """Return the scene with a ground below a horizon of random height, with random shade and grain."""
    canvas = scene.canvas.copy()
    horizon = round(canvas.shape[0] - MARGIN - rng.uniform(0.2, 0.35) * (canvas.shape[0] - 2 * MARGIN))
    shade = np.array(GROUNDS[ground]) * rng.uniform(0.8, 1.2) + rng.uniform(-0.03, 0.03, 3)
    below = canvas[horizon:]
    below[:] = shade + 0.06 * clutter * rng.standard_normal((*below.shape[:2], 1))
    return replace(scene, canvas=canvas)


def render(
    rng: np.random.Generator, scene: Scene, position: np.ndarray, angle: np.ndarray, radius: np.ndarray, clutter: float
) -> np.ndarray:
    """Render the scene with its actor at `position` (T, 2), camera drift and noise, as uint8 (T, H, W, 3)."""
    height, width = scene.size
    time = np.linspace(0, 1, len(position))
    reach = clutter * (MARGIN - 2)
    drift = MARGIN + reach * np.sin(rng.uniform(0, 2 * np.pi, 2) + rng.uniform(0.5, 2.5, 2) * time[:, np.newaxis])
    frames = np.stack([_window(scene.canvas, x, y, height, width) for x, y in drift])
    layer = cover(scene.actor, height, width, position[:, 0], position[:, 1], angle, radius)[..., np.newaxis]
    frames += layer * (scene.colour.astype(np.float32) - frames)
    frames *= np.float32(rng.uniform(0.8, 1.15))
    frames += rng.standard_normal((*frames.shape[:3], 1), dtype=np.float32) * np.float32(0.05 * clutter)
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


def draw_image(rng: np.random.Generator, shape: str, striped: bool, size: int) -> np.ndarray:
    """Draw an image of a shape on a scene, uint8 (size, size, 3); `striped` fills it with stripes of two colours."""
    scene = draw_scene(rng, size, size, 0.5)
    x, y = size / 2 + rng.uniform(-0.15, 0.15, (2, 1)) * size
    turn, radius = rng.uniform(0, 2 * np.pi, 1), size * rng.uniform(0.15, 0.3, 1)
    layer = cover(shape, size, size, x, y, turn, radius)[0, ..., np.newaxis]
    colour = np.broadcast_to(scene.colour, (size, size, 3))
    if striped:
        across = np.cos(turn) * np.arange(size) + np.sin(turn) * np.arange(size)[:, np.newaxis]
        colour = np.where((across % 5 < 2.5)[..., np.newaxis], colour, 1 - colour)
    image = scene.canvas[MARGIN:-MARGIN, MARGIN:-MARGIN]
    image = image + layer * (colour - image) + rng.normal(0, 0.02, (size, size, 1))
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _window(canvas: np.ndarray, x: float, y: float, height: int, width: int) -> np.ndarray:
    """Crop (height, width) of the canvas at the fractional offset (x, y), bilinearly interpolated."""
    column, row = int(x), int(y)
    right, down = np.float32(x - column), np.float32(y - row)
    part = canvas[row : row + height + 1, column : column + width + 1]
    part = part[:-1] * (1 - down) + part[1:] * down
    return part[:, :-1] * (1 - right) + part[:, 1:] * right
