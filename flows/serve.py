"""Start Prefect with a worker, and MLflow's UI, on this machine.

    python -m flows.serve [--mlflow-port N] [--prefect-port N]

Starts the web UIs (flows/ui.py), deploys prefect.yaml and starts a worker that runs scheduled and requested flows, one
at a time. Everything listens on this machine only. Ctrl-C stops the worker, its flow with all subprocesses, and the
servers. If PREFECT_API_URL names a server elsewhere, that server is used.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx

from avdistill.pipeline.errors import UserError
from flows import ui
from flows.processes import end
from flows.ui import HOST, START_SECONDS

POOL = "avdistill"  # of prefect.yaml
LOGS = Path("out/servers")
STOP_SECONDS = 60.0  # for running flows to stop


def prefect(*arguments: str) -> list[str]:
    """Return a command line of this environment's Prefect."""
    return [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]


def deploy(environment: dict[str, str]) -> None:
    """Create the work pool and deploy all of prefect.yaml. Raises UserError with Prefect's message."""
    pool = prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    limit = prefect("work-pool", "set-concurrency-limit", POOL, "1")
    for command in (pool, limit, prefect("deploy", "--all", "--prefect-file", "prefect.yaml")):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines() or [str(done.returncode)]
            raise UserError(f"prefect {' '.join(command[2:4])}: {lines[-1]}")


def serve(mlflow_port: int, prefect_port: int) -> None:
    """Start the UIs and the worker, and wait until one of them exits or this process is interrupted.

    Raises UserError if one of them does not start or exits."""
    url = os.environ.get("PREFECT_API_URL") or f"http://{HOST}:{prefect_port}/api"
    LOGS.mkdir(parents=True, exist_ok=True)
    ports = ["--mlflow-port", str(mlflow_port), "--prefect-port", str(prefect_port)]
    pages = subprocess.Popen([sys.executable, "-m", "flows.ui", *ports], text=True, start_new_session=True)
    running = [pages]
    try:
        until = time.monotonic() + START_SECONDS
        while not _healthy(url):
            if pages.poll() is not None or time.monotonic() > until:
                raise UserError(f"no Prefect server answers at {url}; see {LOGS / 'prefect.log'}")
            time.sleep(0.5)
        environment = {**os.environ, "PREFECT_API_URL": url}
        deploy(environment)
        with (LOGS / "worker.log").open("w") as log:
            command = prefect("worker", "start", "--pool", POOL, "--type", "process", "--name", "here")
            worker = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
            )
        running.insert(0, worker)
        print(f"worker  of pool {POOL}; start a flow with: PREFECT_API_URL={url} prefect deployment run …", flush=True)
        while all(process.poll() is None for process in running):
            time.sleep(0.2)
        raise UserError(f"a server or the worker exited; see {LOGS}")
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C skips waiting for the flow
            cancel_runs(url)
        for process in running:
            end([process], grace=10)


def cancel_runs(url: str) -> None:
    """Cancel the flow runs of this worker pool and wait until they have ended, at most STOP_SECONDS.

    A worker that exits kills its flow runs, which then could not terminate their stages."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelling

    chosen = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    pool = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    until = time.monotonic() + STOP_SECONDS
    with (
        contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError),
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        while (runs := client.read_flow_runs(flow_run_filter=chosen, work_pool_filter=pool)) and (
            time.monotonic() < until
        ):
            for run in runs:
                if run.state is not None and not run.state.is_cancelling():
                    client.set_flow_run_state(run.id, Cancelling())
            time.sleep(0.5)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310 - the address is one of our own
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    ui.command("flows.serve", "Start Prefect's server, worker and deployments, and MLflow's UI.", serve)
