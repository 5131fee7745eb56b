"""Run a deployed flow on another machine: send it to a Prefect work pool, follow it, start it again if its worker dies.

A worker counts as dead when the server has not heard of it for three of its heartbeats. Two coordinators that want the
same flow run, with equal parameters, share it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, WorkerFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, Worker
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments import run_deployment
from prefect.states import Cancelling, Crashed

from avdistill.pipeline.errors import UserError, nearest
from flows.dvc import StageError, StoppedError
from flows.points import git, uncommitted

POLL_SECONDS = 2.0  # between looks at a flow run
MISSED_HEARTBEATS = 3  # after which a worker counts as dead
HEARTBEAT_SECONDS = 30  # Prefect's default


def check_pool(flow: str, pool: str) -> None:
    """Check that other machines can run what this one wants: raises UserError for uncommitted changes, and for a work
    pool without a deployment of `flow`."""
    if uncommitted():
        raise UserError("pool: other machines run the pushed commit; commit and push your changes first")
    with get_client(sync_client=True) as client:
        _deployment(client, flow, pool)


def run_in_pool(
    flow: str,
    pool: str,
    name: str,
    parameters: Mapping[str, Any],
    gpu: bool,
    log: Callable[[str], None],
    stopped: Callable[[], bool],
) -> FlowRun:
    """Run a flow by a worker of a work pool and return the completed flow run.

    Its queue in the pool is `gpu` or `cpu`. A run that fails, or whose worker dies, is started again; `log` receives
    the reason. Raises StageError with the reason if the same failure comes twice in a row, StoppedError if `stopped`
    returns true, UserError if the pool has no deployment of the flow."""
    previous = ""
    with get_client(sync_client=True) as client:
        while True:
            try:
                deployment = _deployment(client, flow, pool)
                run = _follow(client, pool, _start(client, deployment, flow, name, parameters, gpu), stopped)
            except httpx.HTTPError as error:
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
                    raise StageError(f"Prefect refused {name}: {error}") from None
                if stopped():
                    raise StoppedError from None
                time.sleep(POLL_SECONDS)  # the server is away or overloaded; the same run is found again later
                continue
            if run.state is None or run.state.is_completed():
                return run
            reason = run.state.message or str(run.state.name)
            if reason == previous:
                raise StageError(reason)
            log(f"{name}: {reason}; started again")
            previous = reason


def _deployment(client: SyncPrefectClient, flow: str, pool: str) -> DeploymentResponse:
    """Return the deployment of a flow in a work pool. Raises UserError if there is none."""
    found = client.read_deployments(
        flow_filter=FlowFilter.model_validate({"name": {"any_": [flow]}}),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
    )
    if not found:
        pools = [one.name for one in client.read_work_pools()]
        hint = "run `prefect deploy --prefect-file deploy/prefect.yaml`" if pool in pools else nearest(pool, pools)
        raise UserError(f"pool: work pool '{pool}' has no deployment of flow `{flow}`; {hint}")
    return found[0]


def _start(
    client: SyncPrefectClient,
    deployment: DeploymentResponse,
    flow: str,
    name: str,
    parameters: Mapping[str, Any],
    gpu: bool,
) -> FlowRun:
    """Return the unfinished flow run with these parameters, or start one."""
    tag = f"{flow}-{hashlib.sha256(json.dumps([name, parameters], sort_keys=True).encode()).hexdigest()[:16]}"
    earlier = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate({"tags": {"all_": [tag]}}))
    finished = sum(run.state is not None and run.state.is_final() for run in earlier)
    code = {"AV_COMMIT": git("rev-parse", "HEAD").strip(), "AV_REPOSITORY": git("remote", "get-url", "origin").strip()}
    started: Any = run_deployment(
        deployment.id,
        parameters=dict(parameters),
        timeout=0,
        tags=[tag],
        idempotency_key=f"{tag}-{finished}",
        work_queue_name="gpu" if gpu else "cpu",
        job_variables={"env": code, "gpus": int(gpu)},  # `gpus` of the pool in deploy/kubernetes
    )
    run: FlowRun = started
    return run


def _follow(client: SyncPrefectClient, pool: str, run: FlowRun, stopped: Callable[[], bool]) -> FlowRun:
    """Wait until a flow run has ended, and return it; end it as crashed once its worker counts as dead."""
    heard, patience, since = None, MISSED_HEARTBEATS * HEARTBEAT_SECONDS, time.monotonic()
    while True:
        try:
            run = client.read_flow_run(run.id)
            if run.state is not None and run.state.is_final():
                return run
            if stopped():
                client.set_flow_run_state(run.id, Cancelling())
                raise StoppedError
            name = run.labels.get("prefect.worker.name")
            # A heartbeat is compared with the one before it, because the clocks of two machines differ.
            if (worker := _online(client, pool, name)) is not None and worker.last_heartbeat_time != heard:
                heard, since = worker.last_heartbeat_time, time.monotonic()
                patience = MISSED_HEARTBEATS * (worker.heartbeat_interval_seconds or HEARTBEAT_SECONDS)
            elif name and time.monotonic() - since > patience:
                reason = f"worker {name} died: no heartbeat for {patience} s"
                client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
                continue
        except httpx.HTTPError:  # the server is unreachable; the worker goes on meanwhile
            since = time.monotonic()
        time.sleep(POLL_SECONDS)


def _online(client: SyncPrefectClient, pool: str, name: Any) -> Worker | None:
    """Return a worker of a work pool by its name, or None if the server counts it as offline."""
    online = WorkerFilter.model_validate({"status": {"any_": ["ONLINE"]}})
    workers = client.read_workers_for_work_pool(pool, worker_filter=online) if name else []
    return next((worker for worker in workers if worker.name == name), None)
