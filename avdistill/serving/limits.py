"""What one request to the served student may cost: every limit, with its default and its environment variable.

| variable | default | limits |
|---|---:|---|
| AV_SERVE_PATHS | on | `on`: any file may be named; `off`: none; a folder: files in it, after links are followed |
| AV_SERVE_MB | 64 | size of a file sent in base64 (MiB) |
| AV_SERVE_SECONDS | 600 | length of a video |
| AV_SERVE_MEGAPIXELS | 40 | size of a frame (8K has 33) |
| AV_SERVE_READER_SECONDS | 20 | time to read a video; after it the reader's process is killed |
| AV_SERVE_READER_MB | 2048 | memory of a reader's process (MiB); enforced on Linux |
| AV_SERVE_REQUEST_SECONDS | 50 | time for all videos of a request; MLflow's server answers 504 after 60 s |

Where reader `auto` used decord and had to be killed, PyAV gets as much time again.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from avdistill.pipeline.errors import UserError


class Limits(NamedTuple):
    """Limits of a request, in MiB, seconds and millions of pixels."""

    paths: str = "on"
    mb: int = 64
    seconds: int = 600
    megapixels: int = 40
    reader_seconds: int = 20
    reader_mb: int = 2048
    request_seconds: int = 50


def limits() -> Limits:
    """Read the limits from the environment. Raises UserError for a number that is not a positive integer."""
    numbers = {}
    for name, default in Limits._field_defaults.items():
        if name != "paths":
            value = os.environ.get(variable(name)) or str(default)
            if not (value.isdecimal() and int(value) > 0):
                raise UserError(f"{variable(name)}: expected a whole number above 0, found {value!r}")
            numbers[name] = int(value)
    return Limits(os.environ.get(variable("paths")) or "on", **numbers)


def variable(name: str) -> str:
    """Return the environment variable of a limit: reader_mb -> AV_SERVE_READER_MB."""
    return f"AV_SERVE_{name.upper()}"
