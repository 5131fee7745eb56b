"""Errors whose message is meant for the user and is shown without a traceback."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

# Disk full, quota exceeded, file size limit of the process exceeded.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """An error that the user can fix, such as a wrong key or a missing file. Printed as one line; exit code 1.

    Credentials in URLs are removed from the message."""

    def __str__(self) -> str:
        return redact(super().__str__())


def redact(text: str) -> str:
    """Strip credentials from the URLs in `text`.

    >>> redact("http://me:secret@host/path")
    'http://***@host/path'
    """
    return re.sub(r"(?<=://)[^/?#\s]*@", "***@", text)


def no_room(error: BaseException | None, path: Path) -> UserError | None:
    """Return a UserError if `error` or one of its causes means that there is no room for `path`, else None."""
    if isinstance(error, UserError):
        return None  # its message is more specific
    while error is not None and not (isinstance(error, OSError) and error.errno in NO_ROOM):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    folder = next(above for above in path.absolute().parents if above.is_dir())
    free = shutil.disk_usage(folder).free
    return UserError(f"{path}: {error.strerror} ({free / 1e6:.1f} MB are free in {folder}); make room and run again")


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn errors in the block that mean "no room for `path`" into a UserError."""
    try:
        yield
    except Exception as error:
        if full := no_room(error, path):
            raise full from None
        raise


def check_exists(key: str, name: str, choices: Iterable[str], what: str) -> None:
    """Raise UserError with the nearest of the choices if the name that a key has is none of them."""
    if name not in choices:
        raise UserError(f"{key}: there is no {what} '{name}'; {nearest(name, choices)}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a wrong name: the nearest valid one, or all of them.

    >>> nearest("mnfcsc", ["kd", "mnf_csc"])
    "did you mean 'mnf_csc'?"
    """
    choices = sorted(map(str, valid))
    close = get_close_matches(str(name), choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(choices)}" if choices else "valid: none"
