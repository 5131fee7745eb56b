"""Flows `ablate` and `point`: train a few runs at several values of some keys of params.

    python -m flows.ablations NAME [KEY=VALUE...]
    python -m flows.ablations delta recipes.small.lr=[0.003,0.01] seeds=[0,1]

NAME is an ablation of prefect.yaml; KEY is a parameter of flow `ablate`, or a key of its grid (flows/grid.py), whose
values are replaced. Each point is a DVC experiment (flows/points.py); points that exist already are not run again.
Results appear in `dvc exp show`, in MLflow as one run with a nested run for each point and run, in Prefect as
artifacts, and on the page out/ablations/<name>/index.html (avdistill/reporting/ablation_page.py).
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.config.types import Seed
from avdistill.data.draws import draws_of
from avdistill.data.files import write_csv
from avdistill.pipeline.errors import UserError, nearest
from avdistill.pipeline.processes import cores
from avdistill.reporting.ablation_page import Ablation, markdown, value, verdict, write
from avdistill.tracking.journal import start
from flows import command
from flows.devices import gpus, held
from flows.dvc import Dvc, StageError, StoppedError
from flows.grid import axes
from flows.points import Point, checkout, job_of, points, run_point
from flows.pool import check_pool, run_in_pool
from flows.scheduler import run_graph

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
SuiteFile = Annotated[str, Field(pattern=r"(^|/)dvc\.yaml$")]
Names = Annotated[list[str], Field(min_length=1)]


def _name() -> str:
    """Return the name of a flow run: the ablation's name and the time."""
    return f"{flow_run.parameters.get('name', 'ablation')} {datetime.now():%Y-%m-%d %H:%M}"


@flow(name="ablate", flow_run_name=_name, persist_result=False)
def ablate(
    name: Name,
    runs: Names,
    grid: dict[str, Any],
    labels: dict[str, str] | None = None,
    suite: SuiteFile = "dvc.yaml",
    baseline: str | None = None,
    metric: str = "accuracy",
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None,
    workers: Annotated[int, Field(ge=1, le=64)] = 2,
    pool: str | None = None,
) -> State[Any]:
    """Train runs at every combination of some settings and report how a metric depends on them.

    One key with several values gives a curve, two give a map. Points that exist at the same commit from an earlier
    ablation are not run again.

    Args:
        name: Name of the ablation, used for its page out/ablations/<name>/index.html and its DVC experiments.
        runs: Runs of the suite to train at each point.
        grid: Values by key of the suite's params, such as {"recipes.small.lr": [0.003, 0.01]}. For * in keys, and for
            keys that vary together, see flows/grid.py.
        labels: Words that figures show for a key of the grid, by key. Without them, they show the key.
        suite: The dvc.yaml of the suite: dvc.yaml, findings/dvc.yaml, paper/dvc.yaml or own/dvc.yaml.
        baseline: Run that differences are computed against, also trained at each point. None: no differences.
        metric: Metric to report: accuracy, R@1, mAP@100 or another metric of stage evaluate.
        seeds: Seeds to train with; several give confidence intervals. None: each run's own.
        workers: Number of points that run in parallel. They share the cores of the machine, or are sent to the pool.
        pool: Prefect work pool whose workers run the points (docs/cluster.md). None: run them here.
    """
    log = get_run_logger()
    trained = list(dict.fromkeys([*([baseline] if baseline else []), *runs]))
    try:
        params = load(Path(suite).with_name("params.yaml"))
        varied = axes(grid)
        todo = points(name, params, trained, varied, seeds)
        folder = Path("out/ablations") / name
        failed = _run_all(params, suite, todo, trained, folder, workers, pool)
    except StoppedError:
        return Cancelled(message="running points were terminated")
    except UserError as error:
        return Failed(message=str(error))
    measured = _measured(folder, todo)
    if not measured.empty:
        if metric not in set(measured["metric"]) and f"{metric}/released" not in set(measured["metric"]):
            return Failed(message=f"metric: '{metric}' was not measured; {nearest(metric, set(measured['metric']))}")
        ablation = Ablation(
            name,
            tuple(trained),
            baseline,
            metric,
            grid={label: list(axis.values) for label, axis in varied.items()},
            labels={label: (labels or {}).get(axis.key, axis.key) for label, axis in varied.items()},
            draws=draws_of(params),
        )
        table = write(ablation, measured, folder)
        _log(ablation, params, table, folder)
        _show(ablation, table, folder)
        log.info("page: %s", (folder / "index.html").resolve())
    if failed:
        return Failed(message=f"{len(failed)} of {len(todo)} points failed: {'; '.join(failed)}")
    return Completed(message=f"{len(todo)} points; {(folder / 'index.html').resolve()}")


@flow(name="point", flow_run_name="{name}", persist_result=False)
def point(name: str, suite: SuiteFile, params: dict[str, Any], targets: Names) -> State[Any]:
    """Run one point of an ablation on another machine, in a checkout made by a deployment.

    Reuses outputs of earlier runs from the DVC remote, and pushes the point's experiment and outputs to the remotes.

    Args:
        name: Name of the DVC experiment.
        suite: The dvc.yaml of the suite.
        params: The content of the suite's params file.
        targets: Stages to bring up to date, with their upstream stages.
    """
    log = get_run_logger()
    try:
        with Dvc() as dvc:
            dvc.fetch_run_cache()
            with held(gpus(Params.model_validate(params).device), lambda: dvc.stopping):
                run_point(dvc, suite, Point(name, {}, params, targets), log.info, _environment(cores(), []), pull=True)
            dvc.push_experiment("origin", name)
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="stopped with the flow")
    return Completed(message="results pushed to the git and DVC remotes")


@task(task_run_name="{chosen.name}", cache_policy=NO_CACHE, persist_result=False)
def run_here(chosen: Point, suite: str, dvc: Dvc, share: int, gpu: Sequence[str], made: threading.Event) -> State[Any]:
    """Run a point on this machine, on `share` cores.

    Sets `made` as soon as the outputs that all points share exist, or when the point ends."""
    log, last = get_run_logger(), chosen.targets[-1].partition("@")[2]

    def look(line: str) -> None:
        log.info(line)
        if re.match(rf"(Running stage|Stage) '(.*:)?train@{re.escape(last)}'", line):
            made.set()

    try:
        with held(gpu, lambda: dvc.stopping), checkout(Params.model_validate(chosen.params), dvc) as there:
            run_point(there, suite, chosen, look, _environment(share, gpu))
            dvc.fetch_experiments(there.root.as_uri(), [chosen.name], data=False)
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="stopped with the flow")
    finally:
        made.set()
    return Completed()


@task(task_run_name="{chosen.name}", cache_policy=NO_CACHE, persist_result=False)
def run_there(chosen: Point, suite: str, pool: str, gpu: bool, dvc: Dvc) -> State[Any]:
    """Run a point on another machine, as flow `point` of a work pool, and fetch its results from the remotes."""
    parameters = {"name": chosen.name, "suite": suite, "params": chosen.params, "targets": chosen.targets}
    log = get_run_logger()
    try:
        run = run_in_pool("point", pool, chosen.name, parameters, gpu, log.info, lambda: dvc.stopping)
        dvc.fetch_experiments("origin", [chosen.name])
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="stopped with the flow")
    return Completed(message=f"{run.total_run_time.total_seconds():.1f}")


def _environment(share: int, gpu: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of a point's stages: flow run, number of cores and GPU."""
    device = {"CUDA_VISIBLE_DEVICES": ",".join(gpu)} if gpu else {}
    return {"PREFECT__FLOW_RUN_ID": str(flow_run.id), "AV_CORES": str(share)} | device


def _run_all(
    params: Params,
    suite: str,
    todo: list[Point],
    runs: list[str],
    folder: Path,
    workers: int,
    pool: str | None,
) -> list[str]:
    """Run the points that do not exist yet, at most `workers` at a time, and store the measurements of each.

    Returns the names of the points that failed, with the reasons.

    The first point runs alone until it trains the last of `runs`; by then it has computed the outputs that all points
    share, and the others take them from the cache. Raises StoppedError if the flow run is cancelled."""
    if pool:
        check_pool("point", pool)
    failed: list[str] = []
    made = threading.Event()
    with Dvc() as dvc:
        there = dvc.experiments()
        for chosen in todo:
            if chosen.name in there:
                _keep(dvc, params, folder, chosen, runs, float("nan"))
        waiting = {chosen.name: chosen for chosen in todo if chosen.name not in there}
        if pool:
            made.set()
        free = [] if pool else [[device] for device in gpus(params.device)]  # one GPU per point
        if free:
            workers = min(workers, len(free))
        used: dict[str, list[str]] = {}  # GPU by point

        def submit(name: str, ready: int) -> PrefectFuture[Any]:
            if pool:
                return run_there.submit(waiting[name], suite, pool, params.device != "cpu", dvc, return_state=False)
            used[name] = free.pop(0) if free else []
            share = max(1, cores() // min(workers, ready))
            return run_here.submit(waiting[name], suite, dvc, share, used[name], made, return_state=False)

        alone = {name: set[str]() for name in waiting}
        for name, state, seconds in run_graph(alone, submit, lambda: workers if made.is_set() else 1):
            if gpu := used.get(name):
                free.append(gpu)
            if state.is_completed():
                # Another machine reports its own time, without the wait for a worker.
                _keep(dvc, params, folder, waiting[name], runs, float(state.message or 0) if pool else seconds)
            else:
                failed.append(f"{name} ({state.message or state.name})")
    return failed


def _keep(dvc: Dvc, params: Params, folder: Path, chosen: Point, runs: list[str], seconds: float) -> None:
    """Write a point's measurements, by run and seed, to points/<point>.csv of the ablation, unless the file exists."""
    file = folder / "points" / f"{chosen.name}.csv"
    if file.exists():
        return
    tables = []
    for run in runs:
        text = dvc.read(params.path("evaluate", job_of(run)) / "metrics.csv", chosen.name)
        tables.append(pd.read_csv(io.StringIO(text)).assign(run=run))
    write_csv(file, pd.concat(tables).assign(point=chosen.name, seconds=seconds))


def _measured(folder: Path, todo: list[Point]) -> pd.DataFrame:
    """Return the measurements of all points with their settings, one row per point, run, seed and metric."""
    texts = {"keep_default_na": False, "na_values": {"seconds": [""], "value": ["", "nan"]}}
    tables = [
        pd.read_csv(file, **texts).assign(**chosen.settings)
        for chosen in todo
        if (file := folder / "points" / f"{chosen.name}.csv").exists()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _log(ablation: Ablation, params: Params, table: pd.DataFrame, folder: Path) -> None:
    """Log the ablation as an MLflow run of stage `ablation`, with a nested run for each run at each point."""
    with start("ablation", ablation.name, params) as parent:
        parent.set_tags({"mlflow.source.name": f"python -m flows.ablations {ablation.name}", "dvc.stage": ""})
        parent.describe("\n\n".join(verdict(ablation, table)))
        parent.log_params({"runs": ", ".join(ablation.runs), "metric": ablation.metric, **ablation.grid})
        for name in ("results.csv", "picture.png", "index.html"):
            if (folder / name).exists():
                parent.log_artifact(folder / name)
        for _, row in table.iterrows():
            settings = {key: row[key] for key in ablation.grid}
            words = " ".join(f"{key} {value(one)}" for key, one in settings.items())
            with parent.child(
                f"{row['run']} {words}", {"dvc.experiment": row["point"], "point_of": ablation.name}
            ) as child:
                child.log_params({"run": row["run"], **settings})
                numbers = {key: row[key] for key in table.columns if key not in (*settings, "run", "point")}
                child.log_metrics({key: number for key, number in numbers.items() if pd.notna(number)})


def _show(ablation: Ablation, table: pd.DataFrame, folder: Path) -> None:
    """Create the flow run's artifacts: the table, and the figure as a data URL."""
    key = f"ablation-{ablation.name.lower().replace('_', '-')}"
    create_markdown_artifact(markdown(ablation, table), key=key, description=f"Ablation {ablation.name}")
    if (picture := folder / "picture.png").exists():
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        create_image_artifact(
            f"data:image/png;base64,{data}", key=f"{key}-picture", description=f"Ablation {ablation.name}"
        )


def ablations() -> dict[str, dict[str, Any]]:
    """Return the parameters of each ablation in prefect.yaml, by name."""
    deployments = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return {entry["name"]: entry["parameters"] for entry in deployments if entry["entrypoint"].endswith(":ablate")}


def _main() -> None:
    known, flow_parameters = ablations(), ablate.parameters.properties
    parser = argparse.ArgumentParser(prog="python -m flows.ablations", description="Run an ablation of prefect.yaml.")
    parser.add_argument("name", help="one of " + ", ".join(known))
    parser.add_argument(
        "parameters",
        nargs="*",
        metavar="KEY=VALUE",
        help="a parameter, such as workers=4, or a key of params with its values: recipes.small.lr=[0.003,0.01]",
    )
    given = parser.parse_args()
    if given.name not in known:
        sys.exit(f"error: prefect.yaml: there is no ablation '{given.name}'; {nearest(given.name, known)}")
    asked = known[given.name]
    for pair in given.parameters:
        key, equals, text = pair.partition("=")
        if not equals or not (key in flow_parameters or key in asked["grid"] or "." in key):
            sys.exit(f"error: {pair}: expected KEY=VALUE; {nearest(key, [*flow_parameters, *asked['grid']])}")
        (asked if key in flow_parameters else asked["grid"])[key] = yaml.safe_load(text)
    print(command.run(ablate, **asked).message)


if __name__ == "__main__":
    _main()
