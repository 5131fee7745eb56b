"""Start the web UIs of MLflow and Prefect on this machine.

    python -m flows.ui [--mlflow-port N] [--prefect-port N]

Ctrl-C stops both. A server is not started here if MLFLOW_TRACKING_URI or PREFECT_API_URL names one elsewhere.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from avdistill.pipeline.errors import UserError
from avdistill.tracking.shared import SQLITE, artifact_location, tracking_uri
from flows.processes import end

HOST = "127.0.0.1"
START_SECONDS = 120.0


class Server(NamedTuple):
    """A server to start: name, port, command, and variables to add to its environment."""

    name: str
    port: int
    command: list[str]
    environment: Mapping[str, str] = {}


def servers(mlflow_port: int, prefect_port: int) -> list[Server]:
    """Return the servers to start here. Raises UserError if there are none."""
    bin_folder, uri = Path(sys.executable).parent, tracking_uri()
    found = []
    if uri.startswith(SQLITE):
        store = ["--backend-store-uri", uri, "--default-artifact-root", str(artifact_location())]
        address = ["--host", HOST, "--port", str(mlflow_port), "--workers", "1"]
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # only used to evaluate language models
        found.append(
            Server("mlflow", mlflow_port, [str(bin_folder / "mlflow"), "server", *store, *address], environment)
        )
    if not os.environ.get("PREFECT_API_URL"):
        command = [str(bin_folder / "prefect"), "server", "start", "--host", HOST, "--port", str(prefect_port)]
        # Without this variable the UI queries port 4200, whatever port it is served from.
        environment = {"PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{prefect_port}/api"}
        found.append(Server("prefect", prefect_port, command, environment))
    if not found:
        raise UserError("MLFLOW_TRACKING_URI and PREFECT_API_URL name servers elsewhere; nothing to start here")
    return found


def serve(wanted: list[Server], logs: Path) -> None:
    """Start servers, print their addresses and wait until one of them exits or this process is interrupted.

    Raises UserError if a port is in use, or if a server exits or does not answer in time."""
    for server in wanted:
        if _answers(server.port):
            raise UserError(f"port {server.port} is in use; choose another one with --{server.name}-port")
    logs.mkdir(parents=True, exist_ok=True)
    running: list[subprocess.Popen[str]] = []
    try:
        for server in wanted:
            with (logs / f"{server.name}.log").open("w") as log:
                process = subprocess.Popen(
                    server.command,
                    env={**os.environ, **server.environment},
                    stdout=log,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            running.append(process)
        waiting, until = list(wanted), time.monotonic() + START_SECONDS
        while True:
            for server, process in zip(wanted, running, strict=True):
                if process.poll() is not None or (server in waiting and time.monotonic() > until):
                    raise UserError(f"the {server.name} server exited or did not start; see {logs / server.name}.log")
                if server in waiting and _answers(server.port):
                    print(f"{server.name:8}http://{HOST}:{server.port}", flush=True)
                    waiting.remove(server)
            time.sleep(0.2)
    finally:
        end(running, grace=10)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0


def command(name: str, description: str, run: Callable[[int, int], None]) -> None:
    """Parse a command line with both ports and call `run(mlflow_port, prefect_port)` until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    parser.add_argument("--prefect-port", type=int, default=4200)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run(given.mlflow_port, given.prefect_port)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print()


def pages(mlflow_port: int, prefect_port: int) -> None:
    """Serve the UIs of this checkout's MLflow database and of this user's Prefect."""
    # This also creates the database before several server processes open it.
    files = [str(file) for pattern in ("params.yaml", "*/params.yaml") for file in sorted(Path().glob(pattern))]
    subprocess.run([sys.executable, "-m", "avdistill.tracking", "sync", *files])
    serve(servers(mlflow_port, prefect_port), Path("out/servers"))


if __name__ == "__main__":
    command("flows.ui", "Start the web UIs of MLflow and Prefect.", pages)
