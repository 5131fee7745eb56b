"""Little videos and a folder of them, for the tests of the stages that read videos."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np

from avdistill.config.schema import Params
from avdistill.data import media
from avdistill.pipeline.stage import Stage

RATE = 32_000


def ramp(count: int, height: int = 32, width: int = 64) -> np.ndarray:
    """Grey pictures, each 6 levels brighter than the one before: the level tells which one was read."""
    levels = 20 + 6 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def levels(pictures: np.ndarray) -> list[int]:
    """Numbers of the pictures of a ramp."""
    return [round((float(picture.mean()) - 20) / 6) for picture in pictures]


def tone(seconds: float, frequency: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def folder_of_videos(folder: Path, classes: int = 3, groups: int = 4) -> None:
    """<class>/g<group>.mp4 of 1.5 s; g0 of class 0 has no sound, of class 1 silence, of class 2 is no video at all."""
    for label in range(classes):
        for group in range(groups):
            path = folder / f"class {label}" / f"it's_g{group}_é.mp4"
            sound: np.ndarray | None = tone(1.5, 300 + 100 * label + 10 * group)
            if group == 0 and label == 0:
                sound = None
            if group == 0 and label == 1:
                sound = np.zeros_like(tone(1.5))
            media.write_video(path, ramp(18), 12, sound)
            if group == 0 and label == 2:
                path.write_bytes(b"this is no video")


def spoil_packet(path: Path, kind: str, number: int) -> None:
    """Overwrite one packet of the first stream of a kind ("video", "audio") so that it cannot be decoded."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(getattr(container.streams, kind)[0]) if packet.size]
        place, size = packets[number].pos, packets[number].size
    content = bytearray(path.read_bytes())
    content[place : place + size] = b"\xff" * size
    path.write_bytes(content)


def flip_bytes(path: Path, numbers: tuple[int, ...]) -> None:
    """Change 16 bytes amid some packets of video, so that they are decoded with errors, which the decoder hides."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        places = [(packets[number].pos, packets[number].size) for number in numbers]
    content = bytearray(path.read_bytes())
    for place, size in places:
        middle = place + size // 2
        content[middle : middle + 16] = bytes(value ^ 0x5A for value in content[middle : middle + 16])
    path.write_bytes(content)


class Recorder:
    """Stands for a tracked run: remembers what was logged."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def stage(name: str, item: str, tmp_path: Path, origin: dict[str, Any], **changes: dict[str, Any]) -> Stage:
    """A stage of a suite in tmp_path with one dataset `d`, and with noise mix `m` of it."""
    dataset = {"origin": origin, "split": {"test": 0.25, "val": 0.25} | changes.get("split", {})}
    job = {"method": "uni_modal", "dataset": "d", "input": "frames/d", "recipe": "r", "seeds": [0], "runs": {"u": {}}}
    params = Params.model_validate(
        {
            "suite": {"name": "t", "title": "t", "root": ".", "file": "params.yaml", "out": str(tmp_path / "out")},
            "datasets": {"d": dataset},
            "frames": {"d": {"dataset": "d", "short_side": 16} | changes.get("frames", {})},
            "noise_mixes": {"m": {"dataset": "d", "snr_db": 6.0}},
            "recipes": {"r": {}},
            "jobs": {"c": job},
            "report": {"baseline": "u"},
        }
    )
    return Stage(name, item, params, Recorder())  # type: ignore[arg-type]


def logged(stage: Stage) -> dict[str, float]:
    """The metrics that a stage with a `Recorder` has logged."""
    run: Any = stage.run
    return {key: value for name, args, _ in run.calls if name == "log_metrics" for key, value in args[0].items()}


def rotate(path: Path, turns: int) -> None:
    """Set the rotation flag of an MP4 or MOV: `turns` quarter turns counterclockwise bring its frames upright."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version and flags, times, id, duration, layer, volume
    matrix = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[turns]
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", content, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
