"""What the bytes of a video file say about it, without a decoder: its type and its declared size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer


# FFmpeg's names of the containers that endings promise.
CONTAINERS = {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"} | dict.fromkeys((".mp4", ".m4v", ".mov"), "mov")
UNKNOWN_RIFF = 0xFFFFFF00  # what a program writes that cannot go back to the header


def not_a_video(path: Path) -> str | None:
    """What a file is that FFmpeg cannot make anything of."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty file"
    # Text, such as a server's page of apologies: no control characters but tabs and line ends.
    return "mislabelled: text, not a video" if min(head) >= 9 and not set(head) & set(range(14, 32)) else None


def mislabelling(container: InputContainer, path: Path) -> str | None:
    """Where a file is of another type than its name says: some programs believe the name."""
    content, name = container.format.name.split(",")[0], CONTAINERS.get(path.suffix.lower())
    return None if name in {None, content} else f"mislabelled: the name says {path.suffix}, the content is {content}"


def truncation(path: Path) -> str | None:
    """Where the end of a file is missing."""
    size = path.stat().st_size if path.is_file() else 0
    declared = _declared_size(path) if size else 0
    return f"truncated: {size} of {declared} bytes" if declared > size else None


def _declared_size(path: Path) -> int:
    """How many bytes a file has by its own account; 0 where its type does not say.

    AVI says it in its first header, MP4 and relatives box by box, Matroska and WebM in the header of their one segment.
    """
    with path.open("rb") as file:
        head = file.read(128)
        if head[:4] == b"RIFF":
            size = int.from_bytes(head[4:8], "little")
            return size + 8 if size < UNKNOWN_RIFF else 0
        if head[:4] == b"\x1a\x45\xdf\xa3":
            header, at = _ebml_size(head, 4)
            segment, begin = _ebml_size(head, at + header + 4)
            return begin + segment if head[at + header :].startswith(b"\x18\x53\x80\x67") and segment else 0
        if head[4:8] != b"ftyp":
            return 0
        position, end = 0, path.stat().st_size
        while position < end:
            file.seek(position)
            box = file.read(16)
            size = int.from_bytes(box[:4], "big")
            if size == 1:  # a large box: its size stands behind its name
                size = int.from_bytes(box[8:], "big")
            if size < 8:  # 0: to the end of the file
                return 0
            position += size
        return position


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """The size of a Matroska element that stands at a place, 0 if it is unknown, and the place behind it."""
    if at >= len(head) or not head[at]:
        return 0, at
    length = 9 - head[at].bit_length()  # as many bytes as the first has leading zeros, and one
    bits = (1 << 7 * length) - 1
    value = int.from_bytes(head[at : at + length], "big") & bits
    return (0 if value == bits else value), at + length
