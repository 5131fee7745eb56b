"""Run the stages of a suite on the machines of a Prefect work pool; see docs/cluster.md.

The first machine (flow `reproduce`) decides what runs and holds dvc.lock. For each stage, flow `stage` runs on a
worker: it receives the entries in dvc.lock of the stages upstream, fetches what its stage depends on from the DVC
remote, runs it, pushes its outputs, and returns its entry, which the first machine merges into its dvc.lock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline import code, warm
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import ledger
from flows.devices import GPU_STAGES, gpus, held
from flows.dvc import Dvc, StageError, StoppedError, name_of, parts, short
from flows.lock import Entry, digests, merge
from flows.points import git, sources, sync, tracking
from flows.pool import check_pool, run_in_pool

HERE = {"code", "check"}  # stages of seconds that need no data: they run on the first machine
# Videos and what is decoded from them, hundreds of GB: only stages on workers read them.
MEDIA = {"download", "frames", "spectrogram", "mix_noise"}
# Stages that also read what the stages upstream depend on; dvc.yaml leaves that out, as a change reaches them anyway.
READ_FURTHER = {"evaluate"}
WRITE_SECONDS = 30.0  # between writes of dvc.lock, which take seconds if it is long


class Machines:
    """The machines of a work pool, as the flow on the first machine uses them, from several threads."""

    def __init__(self, pool: str, dvc: Dvc, suite: str, params: Params, graph: Mapping[str, Set[str]]) -> None:
        """`graph` is the whole graph of the suite.

        Raises UserError for uncommitted changes, for a pool without deployment, and for data that only this machine
        has."""
        check_pool("stage", pool)
        for path in sources(params):
            if path.exists() and not git("ls-files", "--", path.as_posix()):
                raise UserError(
                    f"pool: {path} is not in git, so other machines do not have it; "
                    f"expected an absolute path in {params.suite.file} that all machines have"
                )
        self.pool, self.dvc, self.suite, self.params, self.graph = pool, dvc, suite, params, graph
        self.unchanged: set[str] = set()  # stages that ran and made the outputs that dvc.lock had before
        self.makers: dict[tuple[str | int | None, ...], str] = {}  # MLflow run by stage and item
        self._entries: dict[str, Entry] = {}
        self._unwritten: dict[str, Entry] = {}
        self._stale: set[str] = set()
        self._lock, self._written = threading.Lock(), time.monotonic()

    def prepare(self) -> None:
        """Read dvc.lock, and push what this machine has made."""
        self._entries = self.dvc.recorded(self.suite)
        self.dvc.push(self.suite)

    def changed(self, status: Mapping[str, list[Any]]) -> set[str]:
        """Return the stages that have to run by `dvc status`: those that differ in more than data left elsewhere."""
        return {stage for stage, found in status.items() if stage not in self._entries or not only_missing(found)}

    def run(self, stage: str, log: Callable[[str], None]) -> str:
        """Run a stage on a worker and return what DVC did there: ran or cached.

        Raises StageError, StoppedError or UserError."""
        above, further = set(self.graph[stage]), list[str]()
        with self._lock:
            if name_of(stage) in READ_FURTHER:
                further = [dep["path"] for one in sorted(above) for dep in self._entries[one].get("deps", [])]
                above.update(*(self.graph[one] for one in above))
            entries = {one: self._entries[one] for one in sorted(above)}
        upstream = {short(one): {key: entry[key] for key in ("cmd", "outs")} for one, entry in entries.items()}
        parameters = {"stage": stage, "suite": self.suite, "upstream": upstream, "further": further}
        gpu = name_of(stage) in GPU_STAGES and self.params.device != "cpu"
        run = run_in_pool("stage", self.pool, stage, parameters, gpu, log, lambda: self.dvc.stopping)
        made = _result(run)
        with self._lock:
            self._take(stage, made["entry"])
            if made["mlflow_run"]:
                self.makers[parts(stage)] = made["mlflow_run"]
        return str(run.state.name if run.state else "ran").lower()

    def _take(self, stage: str, entry: Entry) -> None:
        """Take up a stage's new entry of dvc.lock. If its outputs have changed, entries downstream are stale."""
        old = self._entries.get(stage)
        if old is not None and digests(old) == digests(entry):
            self.unchanged.add(stage)
        else:
            self._stale |= below(self.graph, stage)
        self._entries[stage] = self._unwritten[stage] = entry
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def write(self) -> None:
        """Merge the entries that have come back into dvc.lock."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        path = self.dvc.root / Path(self.suite).with_name("dvc.lock")
        merge(path, {short(one): entry for one, entry in self._unwritten.items()}, set(map(short, self._stale)))
        self._unwritten, self._stale, self._written = {}, set(), time.monotonic()


@flow(name="stage", flow_run_name="{stage}", persist_result=False)
def stage(
    stage: str,
    suite: Annotated[str, Field(pattern=r"(^|/)dvc\.yaml$")],
    upstream: dict[str, Entry],
    further: list[str],
) -> State[Any]:
    """Run one stage of a suite on this machine for another one, in a checkout made by a deployment.

    Args:
        stage: Name of the stage, such as paper/dvc.yaml:train@kd.
        suite: The dvc.yaml of the suite.
        upstream: Command and outputs, as in dvc.lock, of each stage whose outputs the stage reads.
        further: Paths that the stage reads beside its dependencies.
    """
    log = get_run_logger()
    file = Path(suite).with_name("params.yaml")
    try:
        params = load(file)
        with Dvc() as dvc:
            merge(file.with_name("dvc.lock"), upstream)
            dvc.fetch_run_cache()
            outputs = [out["path"] for entry in upstream.values() for out in entry["outs"]]
            dvc.pull(fetched([*dvc.missing(stage), *further], outputs))
            check_code(params, stage)
            environment = {"PREFECT__FLOW_RUN_ID": str(flow_run.id), warm.VARIABLE: "off", **tracking()}
            with held(gpus(params.device) if name_of(stage) in GPU_STAGES else (), lambda: dvc.stopping):
                did = dvc.repro(stage, log.info, environment)
            sync(dvc, file, log.info)
            dvc.push(stage)
            made = {"entry": dvc.recorded(suite)[stage], "mlflow_run": ledger(params, wait=0).get(parts(stage))}
    except (StageError, UserError) as error:
        return Failed(message=str(error))
    except StoppedError:
        return Cancelled(message="stopped with the flow")
    text = yaml.safe_dump(made, sort_keys=False)
    create_markdown_artifact(f"```yaml\n{text}```", description=f"{stage}: its entry of dvc.lock")
    return Completed(name=did.capitalize(), message="outputs pushed to the DVC remote")


def _result(run: FlowRun) -> dict[str, Any]:
    """Return what flow `stage` has written to its artifact."""
    with get_client(sync_client=True) as client:
        chosen = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
        (artifact,) = client.read_artifacts(flow_run_filter=chosen)
    made: dict[str, Any] = yaml.safe_load(str(artifact.data).removeprefix("```yaml\n").removesuffix("```"))
    return made


def fetched(missing: Iterable[str], outputs: Collection[str]) -> list[str]:
    """Return the paths to fetch for a stage's missing dependencies: parts of `outputs`, or those inside a dependency.

    Raises UserError for a dependency that is no output."""
    paths: set[str] = set()
    for dependency in missing:
        path = PurePosixPath(dependency)
        inside = [output for output in outputs if PurePosixPath(output).is_relative_to(path)]
        if any(path.is_relative_to(output) for output in outputs):
            inside = [dependency]
        if not inside:
            raise UserError(f"{dependency}: missing; it is neither in git nor an output of a stage")
        paths.update(inside)
    return sorted(paths)


def only_missing(differences: list[Any]) -> bool:
    """Return whether a stage's differences in `dvc status` are data that are not on this machine, and nothing else."""
    away = {"changed deps": {"deleted"}, "changed outs": {"deleted", "not in cache"}}
    return all(
        isinstance(one, dict) and all(set(paths.values()) <= away.get(kind, set()) for kind, paths in one.items())
        for one in differences
    )


def below(graph: Mapping[str, Set[str]], stage: str) -> set[str]:
    """Return the stages that depend on a stage, directly or not. `graph` is in execution order."""
    found = {stage}
    for other, above in graph.items():
        if above & found:
            found.add(other)
    return found - {stage}


def returned(stages: Iterable[str], asked: Collection[str]) -> list[str]:
    """Return the stages whose outputs travel to the first machine: all but MEDIA, unless a target asks for them."""
    return [stage for stage in stages if name_of(stage) not in MEDIA or stage in asked]


def check_code(params: Params, stage: str) -> None:
    """Check that this machine has the code and packages that the first machine has recorded for a stage.

    Raises UserError that names the first difference."""
    name, item = parts(stage)
    file = code.file_of(params.path("code"), name, item)
    if not file.exists():
        return
    there, here = json.loads(file.read_text(encoding="utf-8")), code.describe(name, item, params)
    for kind in here:
        for key in sorted({*here[kind], *there[kind]}):
            if (mine := here[kind].get(key, "missing")) != (expected := there[kind].get(key, "missing")):
                raise UserError(f"{kind} {key}: {mine} on this machine, {expected} on the first; expected the same")
