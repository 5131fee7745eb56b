"""The pages of MLflow and Prefect on this machine: python -m flows.ui [--mlflow-port N] [--prefect-port N]

Ctrl-C ends both. A tracking server or a Prefect server that is configured elsewhere (MLFLOW_TRACKING_URI,
PREFECT_API_URL) is not started here.
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
    """A server to start: its name, its port, its command, and what this wants in its environment."""

    name: str
    port: int
    command: list[str]
    environment: Mapping[str, str] = {}


def servers(mlflow_port: int, prefect_port: int) -> list[Server]:
    """What is to be started here. Raises UserError if that is nothing."""
    bin_folder, uri = Path(sys.executable).parent, tracking_uri()
    found = []
    if uri.startswith(SQLITE):
        store = ["--backend-store-uri", uri, "--default-artifact-root", str(artifact_location())]
        address = ["--host", HOST, "--port", str(mlflow_port), "--workers", "1"]
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # evaluation of language models
        found.append(
            Server("mlflow", mlflow_port, [str(bin_folder / "mlflow"), "server", *store, *address], environment)
        )
    if not os.environ.get("PREFECT_API_URL"):
        command = [str(bin_folder / "prefect"), "server", "start", "--host", HOST, "--port", str(prefect_port)]
        # By itself its page asks port 4200, wherever it was served from.
        environment = {"PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{prefect_port}/api"}
        found.append(Server("prefect", prefect_port, command, environment))
    if not found:
        raise UserError("MLFLOW_TRACKING_URI and PREFECT_API_URL name servers elsewhere; nothing to start here")
    return found


def serve(wanted: list[Server], logs: Path) -> None:
    """Start servers, print their addresses, and wait until one of them ends or this process is interrupted.

    Raises UserError if a port is taken or a server ends by itself."""
    for server in wanted:
        if _answers(server.port):
            raise UserError(f"port {server.port} is in use; choose another one by --{server.name}-port")
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
                    raise UserError(f"the {server.name} server did not stay up; see {logs / server.name}.log")
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
    """The command line of what serves pages: calls `run` with MLflow's and Prefect's ports, until Ctrl-C or SIGTERM."""
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
    """Serve the pages of this checkout's database and of this user's Prefect."""
    # Also creates the database, before the server's processes open it.
    files = [str(file) for pattern in ("params.yaml", "*/params.yaml") for file in sorted(Path().glob(pattern))]
    subprocess.run([sys.executable, "-m", "avdistill.tracking", "sync", *files])
    serve(servers(mlflow_port, prefect_port), Path("out/servers"))


if __name__ == "__main__":
    command("flows.ui", "The pages of MLflow and Prefect.", pages)
