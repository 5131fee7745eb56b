"""All of Prefect on this machine: python -m flows.serve [--mlflow-port N] [--prefect-port N]

Starts the pages (flows/ui.py), deploys prefect.yaml, and starts a worker that runs what is scheduled or asked for, one
flow at a time. All of it listens on this machine only, and ends with Ctrl-C: the worker, the flow that it runs, what
that has started, and the servers. Where PREFECT_API_URL names a server elsewhere, that one is used.
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
STOP_SECONDS = 60.0  # for what runs to end


def prefect(*arguments: str) -> list[str]:
    """A command of this environment's Prefect."""
    return [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *arguments]


def deploy(environment: dict[str, str]) -> None:
    """Make the work pool and deploy all of prefect.yaml. Raises UserError with Prefect's words."""
    pool = prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    limit = prefect("work-pool", "set-concurrency-limit", POOL, "1")
    for command in (pool, limit, prefect("deploy", "--all", "--prefect-file", "prefect.yaml")):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines() or [str(done.returncode)]
            raise UserError(f"prefect {' '.join(command[2:4])}: {lines[-1]}")


def serve(mlflow_port: int, prefect_port: int) -> None:
    """Start everything, and wait until a part of it ends or this process is interrupted.

    Raises UserError if a part does not start, or ends by itself."""
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
        print(f"worker  of pool {POOL}; start with: PREFECT_API_URL={url} prefect deployment run …", flush=True)
        while all(process.poll() is None for process in running):
            time.sleep(0.2)
        raise UserError(f"a part of it did not stay up; see {LOGS}")
    finally:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C waits for no flow
            cancel_runs(url)
        for process in running:
            end([process], grace=10)


def cancel_runs(url: str) -> None:
    """Cancel the flow runs of our worker and wait until they have ended. (A worker that ends kills its runs, and they
    would have no time to end their stages.)"""
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
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:  # noqa: S310 - the address is ours
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    ui.command("flows.serve", "Prefect's server, worker, deployments.", serve)
