"""RAR archives (format 4) of stored files, for tests: there is no free program that packs them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

LINK = 0o120777
FILE = 0o100644


def _block(kind: int, flags: int, body: bytes) -> bytes:
    """A block's header, behind its checksum: the lower half of the CRC-32 of what follows."""
    header = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
    return struct.pack("<H", zlib.crc32(header) & 0xFFFF) + header


def write_rar(
    path: Path, members: dict[str, bytes], mode: int = FILE, method: int = 0x30, solid: bool = False, flags: int = 0
) -> None:
    """Write `members`, contents by name, as they are.

    `mode` is that of Unix; `method` claims a compression (0x30: none, to 0x35); `flags` are added to each file's."""
    blocks = [b"Rar!\x1a\x07\x00", _block(0x73, 0x0008 if solid else 0, bytes(6))]
    for name, content in members.items():
        encoded = name.replace("/", "\\").encode()
        size = len(content)
        made_on_unix, version, time = 3, 20, 0
        fields = struct.pack(
            "<IIBIIBBHI", size, size, made_on_unix, zlib.crc32(content), time, version, method, len(encoded), mode
        )
        blocks += [_block(0x74, 0x8000 | flags, fields + encoded), content]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([*blocks, _block(0x7B, 0x4000, b"")]))
