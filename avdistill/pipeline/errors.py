"""The one kind of error whose message is meant for the user and needs no traceback."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # full; over the user's quota; over the process's limit


class UserError(Exception):
    """Something the user can mend: a wrong key, a missing file. Printed as one line; exit code 1.

    Whatever address its message names, no password is shown."""

    def __str__(self) -> str:
        return redact(super().__str__())


def redact(text: str) -> str:
    """A text whose URLs have lost users and passwords.

    >>> redact("http://me:secret@host/path")
    'http://***@host/path'
    """
    return re.sub(r"(?<=://)[^/?#\s]*@", "***@", text)


def no_room(error: BaseException | None, path: Path) -> UserError | None:
    """What to tell the user where `error`, or what led to it, says that there is no room for `path`; else None."""
    if isinstance(error, UserError):
        return None  # it says what there is to say
    while error is not None and not (isinstance(error, OSError) and error.errno in NO_ROOM):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    folder = next(above for above in path.absolute().parents if above.is_dir())
    free = shutil.disk_usage(folder).free
    return UserError(f"{path}: {error.strerror} ({free / 1e6:.1f} MB are free in {folder}); make room and run it again")


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """What is written to `path`. Raises UserError where there is no room for it."""
    try:
        yield
    except Exception as error:
        if full := no_room(error, path):
            raise full from None
        raise


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a wrong name: the nearest valid one, or all of them.

    >>> nearest("mnfcsc", ["kd", "mnf_csc"])
    "did you mean 'mnf_csc'?"
    """
    choices = sorted(map(str, valid))
    close = get_close_matches(str(name), choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(choices)}" if choices else "there is none to choose from"
