"""Paths and locks shared by journals and mirror, and the location of MLflow."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdistill.pipeline.errors import UserError, redact

if TYPE_CHECKING:
    from avdistill.config.schema import Params


ROOT = Path(__file__).resolve().parents[2]
SQLITE = "sqlite:///"


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the database in the repository's root; SQLite paths are made absolute.

    Raises UserError for a path in which MLflow cannot create a database."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if not uri.startswith(SQLITE):
        return uri
    database = ROOT / uri.removeprefix(SQLITE)
    for path, character in ((database, "?"), (Path(sys.prefix), "%")):
        if character in str(path):
            raise UserError(
                f"{path}: MLflow cannot create a SQLite database with '{character}' in this path; move the checkout, "
                "set MLFLOW_TRACKING_URI to a server, or set AV_TRACKING=off to run without MLflow"
            )
    return f"{SQLITE}{database}"


def artifact_location() -> str | None:
    """Return the URI of the folder mlartifacts beside a SQLite database; None for a server, which has its own."""
    uri = tracking_uri()
    return Path(uri.removeprefix(SQLITE)).with_name("mlartifacts").as_uri() if uri.startswith(SQLITE) else None


def is_mirrored() -> bool:
    """Return whether runs are sent to MLflow."""
    return os.environ.get("AV_TRACKING") != "off"


def is_running(file: Path) -> bool:
    """Return whether the run of a journal is active, that is, its writer still holds the lock."""
    try:
        with file.open("rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def journal_folder(params: Params) -> Path:
    """Return the folder of a suite's journals."""
    return (Path(params.suite.out) / ".tracking").resolve()


def unreachable_marker(folder: Path) -> Path:
    """Return the path of the file that exists while MLflow is unreachable."""
    return folder / "unreachable"


def read_sent(file: Path) -> dict[str, Any]:
    """Read <journal>.sent.json; empty if it is missing."""
    try:
        state: dict[str, Any] = json.loads(file.with_suffix(".sent.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 500 characters, without passwords."""
    return redact(" ".join(str(error).split()))[:500]
