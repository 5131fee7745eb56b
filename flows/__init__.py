"""Prefect flows: they run stages in order, side by side and on a schedule. DVC decides which stages are out of date."""

import os
from pathlib import Path

from avdistill.pipeline.processes import ensure_user

ensure_user()

# Switch the tools' telemetry off. Set before any of them is imported; subprocesses inherit it.
os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

# Prefect gives a temporary server 20 s to start, which is too short on a machine that is busy with training.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")


# Prefect and MLflow speak to servers on this machine, which a proxy cannot reach.
for _name in ("no_proxy", "NO_PROXY"):
    _hosts = os.environ.get(_name, "")
    os.environ[_name] = ",".join(filter(None, [_hosts, "127.0.0.1,localhost"])) if "127.0.0.1" not in _hosts else _hosts


def _writable(folder: Path) -> bool:
    """Return whether a folder is writable, or can be created in its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK)


# Prefect keeps its database in the home folder; if that is not writable, use out/.
if "PREFECT_HOME" not in os.environ and not _writable(Path(os.path.expanduser("~/.prefect"))):  # noqa: PTH111
    os.environ["PREFECT_HOME"] = str(Path("out/.prefect").resolve())
