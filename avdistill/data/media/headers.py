"""Detect mislabelled and truncated video files from their bytes, without a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer


# FFmpeg's name of the container format that each file extension implies.
CONTAINERS = {".avi": "avi", ".mkv": "matroska", ".webm": "matroska"} | dict.fromkeys((".mp4", ".m4v", ".mov"), "mov")
UNKNOWN_RIFF = 0xFFFFFF00  # sizes from here on are placeholders of writers that could not seek back to the header


def not_a_video(path: Path) -> str | None:
    """Return what a file is if it is empty or text, else None.

    The answer explains why FFmpeg cannot open the file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty file"
    # Text, such as an HTML error page of a server: no control characters except tabs and line ends.
    return "mislabelled: text, not a video" if min(head) >= 9 and not set(head) & set(range(14, 32)) else None


def mislabelling(container: InputContainer, path: Path) -> str | None:
    """Return a message if the file extension does not match the container format, else None.

    Some programs choose the demuxer by the extension and fail on such files."""
    content, name = container.format.name.split(",")[0], CONTAINERS.get(path.suffix.lower())
    return None if name in {None, content} else f"mislabelled: the extension is {path.suffix}, the content is {content}"


def truncation(path: Path) -> str | None:
    """Return a message if a file is shorter than its header declares, else None."""
    size = path.stat().st_size if path.is_file() else 0
    declared = _declared_size(path) if size else 0
    return f"truncated: {size} of {declared} bytes" if declared > size else None


def _declared_size(path: Path) -> int:
    """Return the size in bytes that the headers of a file declare; 0 if the format does not declare one.

    AVI declares it in the RIFF header, MP4 and its relatives box by box, Matroska and WebM in the segment header.
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
            if size == 1:  # a large box: the 64-bit size follows the box type
                size = int.from_bytes(box[8:], "big")
            if size < 8:  # 0: the box extends to the end of the file
                return 0
            position += size
        return position


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """Decode the EBML size at offset `at`. Return it (0 if unknown) and the offset behind it."""
    if at >= len(head) or not head[at]:
        return 0, at
    length = 9 - head[at].bit_length()  # the leading zero bits of the first byte, plus one
    bits = (1 << 7 * length) - 1
    value = int.from_bytes(head[at : at + length], "big") & bits
    return (0 if value == bits else value), at + length
