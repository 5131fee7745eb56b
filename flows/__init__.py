"""Prefect flows: which stages run, in which order, when and where. DVC decides what there is to do."""

import os
from pathlib import Path

# The documented switches of the tools' telemetry, set before any of them is imported and inherited by what is started.
os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

# A machine that is busy with training needs longer than Prefect's 20 s to start the server of a flow without one.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")


def _writable(folder: Path) -> bool:
    """Whether a folder can be written to, or created in its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


# Prefect keeps its database in the home folder; where that cannot be written, the database goes to out/.
if "PREFECT_HOME" not in os.environ and not _writable(Path(os.path.expanduser("~/.prefect"))):  # noqa: PTH111
    os.environ["PREFECT_HOME"] = str(Path("out/.prefect").resolve())
