"""dvc.lock beside its writer: DVC writes it in place, so whoever reads it may find a part of it."""

from __future__ import annotations

import re

# The last line of a complete dvc.lock, which describes an output.
LAST = re.compile(r"(size: \d+|nfiles: \d+|isexec: true)\n\Z")


def is_complete(text: str) -> bool:
    """Return whether the text of a dvc.lock is all that DVC meant to write."""
    return LAST.search(text) is not None
