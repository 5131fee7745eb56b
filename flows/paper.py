"""Flow `reproduce`: bring a whole suite up to date, with one Prefect task per stage.

    python -m flows.paper [SUITE [TARGET...]] [--workers N] [--pool NAME]

DVC decides which stages are out of date. No Prefect server is needed; if PREFECT_API_URL names one, the run appears
there. The flow creates two artifacts: the state of each stage, and the tables of the report. With a Prefect work pool,
other machines run the stages (flows/machines.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
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
from flows import command
from flows.devices import GPU_STAGES, gpus, held
from flows.dvc import Dvc, StageError, StoppedError, name_of, parts, short
from flows.machines import HERE, Machines, returned
from flows.scheduler import run_graph

MLFLOW_UI = "http://127.0.0.1:5000"  # of `python -m flows.ui`
DONE = ("ran", "cached", "skipped")
NOT_RUN = "not run"
# Delays before a download is retried, because hosts may be unreachable. Other stages would fail in the same way again.
RETRY_SECONDS = [30.0, 120.0]


class Outcome(NamedTuple):
    """Result of a stage: ran, cached, skipped, failed, cancelled or not run; its duration; the reason if it failed."""

    state: str
    seconds: float = 0.0
    reason: str = ""


def _name() -> str:
    """Return the name of a flow run: the suite's name and the time."""
    suite = flow_run.parameters.get("suite", "dvc.yaml")
    with contextlib.suppress(UserError):
        suite = load(Path(suite).with_name("params.yaml")).suite.name
    return f"{suite} {datetime.now():%Y-%m-%d %H:%M}"


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(
    stage: str,
    up_to_date: bool,
    dvc: Dvc,
    environment: dict[str, str],
    gpus: Sequence[str] = (),
    machines: Machines | None = None,
) -> State[Any]:
    """Run one stage of the graph, on one of `machines` or here.

    Its state is Ran, Cached (DVC restored its outputs), Skipped (it was up to date), Failed or Cancelled. A stage that
    uses GPUs waits until no other flow of this Prefect server holds them, and holds them while it runs."""
    log = get_run_logger()
    if up_to_date:
        log.info("up to date")
        return Completed(name="Skipped", message="neither the stage nor its upstream stages have changed")
    try:
        if machines:
            return Completed(name=machines.run(stage, log.info).capitalize())
        with held(gpus if name_of(stage) in GPU_STAGES else (), lambda: dvc.stopping):
            return Completed(name=dvc.repro(stage, log.info, environment).capitalize())
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="stopped with the flow")


@flow(name="reproduce", flow_run_name=_name, persist_result=False)
def reproduce(
    suite: Annotated[str, Field(pattern=r"(^|/)dvc\.yaml$")] = "dvc.yaml",
    workers: Annotated[int, Field(ge=1, le=256)] = 2,
    targets: list[str] | None = None,
    pool: str | None = None,
) -> State[Any]:
    """Bring a suite up to date: run the stages whose code, params or data have changed, and their downstream stages.

    Stages that do not depend on each other run in parallel. If a stage fails, only its downstream stages are not run,
    and the flow fails at the end.

    Args:
        suite: The dvc.yaml of the suite, relative to the repository's root: dvc.yaml (embedded suite),
            findings/dvc.yaml (every claim, with power), paper/dvc.yaml (the papers' datasets) or own/dvc.yaml (your
            own videos).
        workers: Number of stages that run in parallel. They share the cores of the machine, or are sent to the pool.
        targets: Stages to bring up to date, with their upstream stages: train@kd, train for all stages of that name,
            or the name of a study for the evaluations of its runs. None means the whole suite.
        pool: Prefect work pool whose workers run the stages (docs/cluster.md). None: run them here.
    """
    log = get_run_logger()
    try:
        params = load(Path(suite).with_name("params.yaml"))
        studies = {name: study_targets(params, name) for name in params.studies}
        with Dvc() as dvc:
            whole = dvc.graph(suite)
            graph = select(whole, targets, studies)
            machines = Machines(pool, dvc, suite, params, whole) if pool else None
            try:
                # DVC always runs stage code. The status of the others is only valid after it has run.
                first = [stage for stage in graph if short(stage) in (HERE if machines else {"code"})]
                outcomes = {}
                for stage in first:
                    began = time.monotonic()
                    outcomes[stage] = Outcome(dvc.repro(stage, log.info), time.monotonic() - began)
                others = {stage: above - {*first} for stage, above in graph.items() if stage not in first}
                status = dvc.status(suite)
                changed = set(status)
                if machines:
                    machines.prepare()
                    changed = machines.changed(status)
                outcomes |= _run_all(dvc, others, changed, workers, gpus(params.device), machines)
                if machines:
                    done = [stage for stage, outcome in outcomes.items() if outcome.state in DONE]
                    dvc.pull(returned(done, named(whole, targets or [], studies)))
            except StoppedError:
                return Cancelled(message="running stages were terminated")
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    _sync(params, log.info)
    name = re.sub("[^a-z0-9]+", "-", params.suite.name.lower()).strip("-")
    newest = ledger(params) | (machines.makers if machines else {})
    made = table(outcomes, _makers(params, outcomes, dvc.locked(suite), newest))
    create_markdown_artifact(made, key=f"stages-{name}", description=f"Stages of {params.suite.title}")
    reported = any(name_of(stage) == "report" and outcome.state in DONE for stage, outcome in outcomes.items())
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
    """Return the part of a graph that `targets` (see `named`) need; None means all of it."""
    if not targets:
        return graph
    needed = named(graph, targets, studies)
    for stage in reversed(graph):  # the graph is in execution order
        if stage in needed:
            needed |= graph[stage]
    return {stage: above for stage, above in graph.items() if stage in needed}


def named(
    graph: Mapping[str, set[str]], targets: Sequence[str], studies: Mapping[str, list[str]] | None = None
) -> set[str]:
    """Return the stages that `targets` name.

    A target is a stage, a name before @ that several stages share, or a key of `studies`, which maps studies to their
    stages. If a stage and a study have the same name, the stage is meant. Raises UserError for an unknown target."""
    stages: dict[str, set[str]] = {}
    for stage in graph:
        for name in {stage, short(stage), name_of(stage)}:
            stages.setdefault(name, set()).add(stage)
    known = {name: set(members) & graph.keys() for name, members in (studies or {}).items()} | stages
    for target in targets:
        if target not in known:
            choices = [name for name in known if ":" not in name]
            raise UserError(f"targets: there is no stage or study '{target}'; {nearest(target, choices)}")
    return set().union(*(known[target] for target in targets))


def table(outcomes: dict[str, Outcome], makers: dict[str, str]) -> str:
    """Return a Markdown table of the stages: state, seconds, and the MLflow run that made the outputs."""
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
    """Return the claims, the gains by setting and the tables of the papers as Markdown; empty if there are none."""
    folder = params.path("report") / "tables"
    parts = [
        file.read_text(encoding="utf-8") for file in (folder / "claims.md", folder / "settings.md") if file.exists()
    ]
    for name, entry in params.report.tables.items():
        # A table with one column per teacher has one file per metric, others have a single file.
        files = [folder / f"{name}-gains{end}.md" for end in ("", *(f"-{metric}" for metric in entry.metrics))]
        if texts := [file.read_text(encoding="utf-8") for file in files if file.exists()]:
            parts += [f"## {entry.title}", *texts]
    return "\n\n".join(parts)


def _makers(
    params: Params,
    outcomes: dict[str, Outcome],
    locked: dict[str, str],
    newest: Mapping[tuple[str | int | None, ...], str],
) -> dict[str, str]:
    """Return the MLflow run that made the current outputs of each stage; `newest` has the newest run of each.

    This need not be the stage's newest run, because DVC may have restored the outputs of an older one. The runs are
    therefore stored by the digest of the stage's entry in dvc.lock."""
    file = params.path(".tracking") / "makers.json"
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    makers = {}
    for stage, outcome in outcomes.items():
        if outcome.state not in DONE or stage not in locked:
            continue
        run_id = newest.get(parts(stage))
        if run_id and (outcome.state == "ran" or (outcome.state == "skipped" and locked[stage] not in known)):
            known[locked[stage]] = run_id
        if locked[stage] in known:
            makers[stage] = known[locked[stage]]
    write_json(file, known)
    return makers


def _run_all(
    dvc: Dvc,
    graph: dict[str, set[str]],
    changed: set[str],
    workers: int,
    gpus: Sequence[str],
    machines: Machines | None,
) -> dict[str, Outcome]:
    """Run a graph, at most `workers` stages at a time. Raises StoppedError if the flow run is cancelled."""
    outcomes: dict[str, Outcome] = {}
    futures: dict[str, PrefectFuture[Any]] = {}
    remade: set[str] = set()  # stages whose outputs may have changed

    def submit(stage: str, ready: int) -> PrefectFuture[Any]:
        up_to_date = stage not in changed and not graph[stage] & remade
        environment = {
            "PREFECT__FLOW_RUN_ID": str(flow_run.id),
            "AV_CORES": str(max(1, cores() // min(workers, ready))),
        }
        step = run_stage
        if name_of(stage) == "download":
            step = run_stage.with_options(retries=len(RETRY_SECONDS), retry_delay_seconds=RETRY_SECONDS)
        upstream = [futures[above] for above in graph[stage]]
        more = {"wait_for": upstream, "return_state": False}
        futures[stage] = step.submit(stage, up_to_date, dvc, environment, gpus, machines, **more)
        return futures[stage]

    try:
        for stage, state, seconds in run_graph(graph, submit, lambda: workers):
            reason = (state.message or "unknown") if state.is_failed() or state.is_crashed() else ""
            outcomes[stage] = Outcome("failed" if reason else str(state.name).lower(), seconds, reason)
            if outcomes[stage].state != "skipped" and not (machines and stage in machines.unchanged):
                remade.add(stage)
    finally:
        if machines:
            machines.write()
    return {stage: outcomes.get(stage, Outcome(NOT_RUN)) for stage in graph}


def _sync(params: Params, log: Any) -> None:
    """Send pending runs to MLflow, in a subprocess so that this process does not import MLflow."""
    if os.environ.get("AV_TRACKING") != "off":
        command = [sys.executable, "-m", "avdistill.tracking", "sync", params.suite.file]
        done = subprocess.run(command, capture_output=True, text=True)
        log((done.stdout + done.stderr).strip())


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.paper", description="Bring a suite up to date.")
    parser.add_argument(
        "suite", nargs="?", default="dvc.yaml", help="dvc.yaml (default), or that of another suite: paper/dvc.yaml"
    )
    parser.add_argument(
        "targets", nargs="*", help="stages or studies to bring up to date, such as train@kd; default: all stages"
    )
    parser.add_argument("--workers", type=int, default=2, help="number of stages in parallel (default: 2)")
    parser.add_argument(
        "--pool", help="Prefect work pool whose workers run the stages; default: this machine runs them"
    )
    given = parser.parse_args()
    command.run(reproduce, given.suite, given.workers, given.targets or None, given.pool)


if __name__ == "__main__":
    _main()
