"""Flow `reproduce`: a whole suite, one Prefect task a stage, with DVC deciding what there is to do.

    python -m flows.paper [SUITE [TARGET...]] [--workers N]

It needs no Prefect server; where PREFECT_API_URL names one, the run shows there. It has two artifacts: what became of
each stage, and the report's tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.config.studies import targets as study_targets
from avdistill.data.files import write_json
from avdistill.pipeline.errors import UserError, nearest, redact
from avdistill.pipeline.processes import cores
from avdistill.tracking.journal import ledger
from flows.devices import gpus, held
from flows.dvc import Dvc, StageError, StoppedError

MLFLOW_UI = "http://127.0.0.1:5000"  # of `python -m flows.ui`
DONE = ("ran", "cached", "skipped")
NOT_RUN = "not run"
LOOK_SECONDS = 5.0  # how often a run asks whether it was cancelled
GPU_STAGES = {"teachers", "teacher_features", "teacher_head", "train", "evaluate"}
# Hosts are away for a while, so a download is tried again after so many seconds. All else would fail in the same way.
RETRY_SECONDS = [30.0, 120.0]


class Outcome(NamedTuple):
    """What became of a stage: ran, cached, skipped, failed, cancelled or not run; and why, if it failed."""

    state: str
    seconds: float = 0.0
    reason: str = ""


def _name() -> str:
    """Name of a flow run: the suite's name and the time."""
    suite = flow_run.parameters.get("suite", "dvc.yaml")
    with contextlib.suppress(UserError):
        suite = load(Path(suite).with_name("params.yaml")).suite.name
    return f"{suite} {datetime.now():%Y-%m-%d %H:%M}"


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    stage: str, up_to_date: bool, dvc: Dvc, environment: dict[str, str], gpus: Sequence[str] = ()
) -> State[Any]:
    """One stage of the graph. Its state is Ran, Cached (DVC had its outputs), Skipped (they are there) or Failed.

    A stage that computes on GPUs waits until nobody else does, on this server, and holds them as long as it runs."""
    log = get_run_logger()
    if up_to_date:
        log.info("up to date")
        return Completed(name="Skipped", message="neither it nor anything before it has changed")
    try:
        with held(gpus if _name_of(stage) in GPU_STAGES else (), lambda: dvc.stopping):
            return Completed(name=dvc.repro(stage, log.info, environment).capitalize())
    except StageError as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="ended with the flow")


@flow(name="reproduce", flow_run_name=_name, persist_result=False)
def reproduce(
    suite: Annotated[str, Field(pattern=r"(^|/)dvc\.yaml$")] = "dvc.yaml",
    workers: Annotated[int, Field(ge=1, le=256)] = 2,
    targets: list[str] | None = None,
) -> State[Any]:
    """Bring a suite up to date: each stage whose code, params or data changed, and all that follows from it.

    Stages that do not depend on each other run side by side. A stage that fails does not stop the others; only what
    depends on it is not run, and the flow fails at the end.

    Args:
        suite: The dvc.yaml of the suite, from the repository's root: dvc.yaml is the embedded suite, paper/dvc.yaml
            the papers' datasets, own/dvc.yaml your own videos.
        workers: How many stages may run side by side. The cores of the machine are shared out among them.
        targets: Stages to bring up to date, with all that they need: train@kd, train for all of that name, or the
            name of a study for the evaluations of its runs. None means the whole suite.
    """
    log = get_run_logger()
    try:
        params = load(Path(suite).with_name("params.yaml"))
        with Dvc() as dvc:
            graph = select(dvc.graph(suite), targets, {name: study_targets(params, name) for name in params.studies})
            try:
                # DVC always runs this stage. Once it has run, whatever it found is in the status of the others.
                always = {stage for stage in graph if _short(stage) == "code"}
                for stage in always:
                    dvc.repro(stage, log.info)
                outcomes = _run_all(dvc, graph, dvc.status(suite).keys() - always, workers, gpus(params.device))
            except StoppedError:
                return Cancelled(message="what was running has been ended")
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    _sync(params, log.info)
    name = re.sub("[^a-z0-9]+", "-", params.suite.name.lower()).strip("-")
    made = table(outcomes, _makers(params, outcomes, dvc.locked(suite)))
    create_markdown_artifact(made, key=f"stages-{name}", description=f"Stages of {params.suite.title}")
    reported = any(_name_of(stage) == "report" and outcome.state in DONE for stage, outcome in outcomes.items())
    if reported and (tables := report_tables(params)):
        create_markdown_artifact(tables, key=f"report-{name}", description=params.suite.title)
    counts = Counter(outcome.state for outcome in outcomes.values())
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    failed = [f"{stage} ({outcome.reason})" for stage, outcome in outcomes.items() if outcome.state == "failed"]
    if failed:
        return Failed(message=f"failed: {'; '.join(failed)}. {len(outcomes)} stages: {summary}")
    return Completed(message=f"{len(outcomes)} stages: {summary}")


def select(
    graph: dict[str, set[str]], targets: list[str] | None, studies: Mapping[str, list[str]] | None = None
) -> dict[str, set[str]]:
    """The part of a graph that targets need. A target is a stage, the name that several stages share before @, or one
    of `studies`, which maps names to their stages (a stage of that name comes first).

    Raises UserError for a target that names none."""
    if not targets:
        return graph
    stages: dict[str, set[str]] = {}
    for stage in graph:
        for name in {stage, _short(stage), _short(stage).partition("@")[0]}:
            stages.setdefault(name, set()).add(stage)
    named = {name: set(members) & graph.keys() for name, members in (studies or {}).items()} | stages
    needed: set[str] = set()
    for target in targets:
        if target not in named:
            choices = [name for name in named if ":" not in name]
            raise UserError(f"targets: there is no stage or study '{target}'; {nearest(target, choices)}")
        needed |= named[target]
    for stage in reversed(graph):  # the order is one in which they can run
        if stage in needed:
            needed |= graph[stage]
    return {stage: above for stage, above in graph.items() if stage in needed}


def table(outcomes: dict[str, Outcome], makers: dict[str, str]) -> str:
    """Markdown: what became of each stage, and the MLflow run that made its outputs."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    address = redact(address.rstrip("/")).replace("***@", "") if address.startswith("http") else MLFLOW_UI
    rows = ["| stage | state | seconds | MLflow run |", "|---|---|---:|---|"]
    for stage, outcome in outcomes.items():
        run_id = makers.get(stage)
        link = f"[{run_id[:8]}]({address}/#/runs/{run_id})" if run_id else ""
        reason = f": {outcome.reason}".replace("|", "\\|") if outcome.reason else ""
        rows.append(f"| {stage} | {outcome.state}{reason} | {outcome.seconds:.1f} | {link} |")
    return "\n".join(rows)


def report_tables(params: Params) -> str:
    """Markdown: the papers' tables of the report, gains as reported and as measured; empty where there is none."""
    folder, parts = params.path("report") / "tables", []
    for name, entry in params.report.tables.items():
        # One file, or one for each metric where the table has a column for each teacher.
        files = [folder / f"{name}-gains{end}.md" for end in ("", *(f"-{metric}" for metric in entry.metrics))]
        if texts := [file.read_text(encoding="utf-8") for file in files if file.exists()]:
            parts += [f"## {entry.title}", *texts]
    return "\n\n".join(parts)


def _makers(params: Params, outcomes: dict[str, Outcome], locked: dict[str, str]) -> dict[str, str]:
    """The MLflow run that made the outputs which each stage has now.

    Not always the stage's newest one: DVC may have brought back what an older run had made. So the runs are kept by
    the content of the stage's entry in dvc.lock."""
    file = params.path(".tracking") / "makers.json"
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    newest = ledger(params)
    makers = {}
    for stage, outcome in outcomes.items():
        if outcome.state not in DONE or stage not in locked:
            continue
        name, _, item = _short(stage).partition("@")
        run_id = newest.get((name, item or None))
        if run_id and (outcome.state == "ran" or (outcome.state == "skipped" and locked[stage] not in known)):
            known[locked[stage]] = run_id
        if locked[stage] in known:
            makers[stage] = known[locked[stage]]
    write_json(file, known)
    return makers


def _run_all(
    dvc: Dvc, graph: dict[str, set[str]], changed: set[str], workers: int, gpus: Sequence[str]
) -> dict[str, Outcome]:
    """Run a graph, at most `workers` stages at a time. Raises StoppedError if the run is cancelled meanwhile."""
    outcomes: dict[str, Outcome] = {}
    futures: dict[str, PrefectFuture[Any]] = {}
    running: dict[UUID, tuple[str, float]] = {}  # stage and when it began, by task run
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    look_at = time.monotonic() + LOOK_SECONDS
    while len(outcomes) < len(graph):
        for stage, above in graph.items():
            if any(outcomes[upstream].state not in DONE for upstream in above & outcomes.keys()):
                outcomes[stage] = Outcome(NOT_RUN)
        ready = [s for s, above in graph.items() if s not in futures and s not in outcomes and above <= outcomes.keys()]
        # Submitted one by one, as a place gets free: what waits in the pool could not be called off.
        for stage in ready[: workers - len(running)]:
            upstream = [futures[above] for above in graph[stage]]
            up_to_date = stage not in changed and all(outcomes[above].state == "skipped" for above in graph[stage])
            share = max(1, cores() // min(workers, len(running) + len(ready)))
            environment = {"PREFECT__FLOW_RUN_ID": str(flow_run.id), "AV_CORES": str(share)}
            step = run_stage
            if _name_of(stage) == "download":
                step = run_stage.with_options(retries=len(RETRY_SECONDS), retry_delay_seconds=RETRY_SECONDS)
            future = step.submit(stage, up_to_date, dvc, environment, gpus, wait_for=upstream, return_state=False)
            futures[stage], running[future.task_run_id] = future, (stage, time.monotonic())
            future.add_done_callback(ended.put)
        with contextlib.suppress(Empty):
            future = ended.get(timeout=LOOK_SECONDS if running else 0)
            future.wait()  # done already; this makes the future hold its final state
            stage, begun = running.pop(future.task_run_id)
            state = future.state
            reason = (state.message or "unknown") if state.is_failed() or state.is_crashed() else ""
            outcomes[stage] = Outcome("failed" if reason else str(state.name).lower(), time.monotonic() - begun, reason)
        if time.monotonic() > look_at:
            look_at = time.monotonic() + LOOK_SECONDS
            if cancelled():
                raise StoppedError
    return {stage: outcomes[stage] for stage in graph}


def cancelled() -> bool:
    """Whether this flow run was cancelled from outside. A worker would end it; a run without one has to ask."""
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


def _sync(params: Params, log: Any) -> None:
    """Bring what is left of the runs to MLflow, in a process of its own: this one keeps Prefect's libraries only."""
    if os.environ.get("AV_TRACKING") != "off":
        command = [sys.executable, "-m", "avdistill.tracking", "sync", params.suite.file]
        done = subprocess.run(command, capture_output=True, text=True)
        log((done.stdout + done.stderr).strip())


def _short(stage: str) -> str:
    """paper/dvc.yaml:train@kd -> train@kd."""
    return stage.rpartition(":")[2]


def _name_of(stage: str) -> str:
    """paper/dvc.yaml:train@kd -> train."""
    return _short(stage).partition("@")[0]


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.paper", description="Bring a suite up to date.")
    parser.add_argument("suite", nargs="?", default="dvc.yaml", help="dvc.yaml (default), paper/dvc.yaml, own/dvc.yaml")
    parser.add_argument(
        "targets", nargs="*", help="stages or studies to bring up to date, such as train@kd; default: all"
    )
    parser.add_argument("--workers", type=int, default=2, help="stages side by side (default: 2)")
    given = parser.parse_args()
    # An exception instead of a sudden end, so that Prefect's own server is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = reproduce(given.suite, given.workers, given.targets or None, return_state=True)
    except KeyboardInterrupt:
        sys.exit(130)
    if not state.is_completed():
        sys.exit(f"error: {state.message}")


if __name__ == "__main__":
    _main()
