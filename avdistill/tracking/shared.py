"""Files that journals and mirror share, and where MLflow is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdistill.pipeline.errors import redact

if TYPE_CHECKING:
    from avdistill.config.schema import Params


ROOT = Path(__file__).resolve().parents[2]
SQLITE = "sqlite:///"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database in the repository's root. Paths of SQLite databases are absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{ROOT / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


def artifact_location() -> str | None:
    """URI of the folder mlartifacts beside a SQLite database; None leaves the place to the tracking server."""
    uri = tracking_uri()
    return Path(uri.removeprefix(SQLITE)).with_name("mlartifacts").as_uri() if uri.startswith(SQLITE) else None


def is_mirrored() -> bool:
    """Whether runs are sent to MLflow."""
    return os.environ.get("AV_TRACKING") != "off"


def is_running(file: Path) -> bool:
    """Whether the process that writes a journal still holds it."""
    try:
        with file.open("rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file. Yields whether it was to be had; with `wait` it always is, in the end."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


def journal_folder(params: Params) -> Path:
    """Folder of a suite's journals."""
    return (Path(params.suite.out) / ".tracking").resolve()


def unreachable_marker(folder: Path) -> Path:
    """The file that is there while MLflow cannot be reached."""
    return folder / "unreachable"


def read_sent(file: Path) -> dict[str, Any]:
    """What <journal>.sent.json says; nothing if there is none."""
    try:
        state: dict[str, Any] = json.loads(file.with_suffix(".sent.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def one_line(error: BaseException) -> str:
    """The message of an error as one line without passwords."""
    return redact(" ".join(str(error).split()))[:500]
