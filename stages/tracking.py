"""Runs as MLflow shows them: written to journals on disk, brought to MLflow by a process of its own.

A suite is a hundred short processes, and importing MLflow takes each of them seconds. So a stage only appends lines
to a *journal*, and one *mirror* a suite, started by the first stage that finds none, sends them on and ends by itself:

    <suite.out>/.tracking/<journal>.jsonl       the events of a run, one a line; locked as long as the run goes on
    <suite.out>/.tracking/<journal>/            copies of its artifacts
    <suite.out>/.tracking/<journal>.sent.json   its run in MLflow and how far it is sent; alone remains at the end
    <suite.out>/.tracking/mirror.log            what the mirror had to say
    <suite.out>/.tracking/away                  there as long as MLflow cannot be reached

With the tracking server away nothing waits and nothing is lost: `python -m stages.tracking sync PARAMS...` sends the
rest. Sending again makes no doubles: a run is found by its tag `journal`, a model and its version, too, and everything
else that MLflow stores under it is keyed by content (a metric by name, step, time and value).

Environment: MLFLOW_TRACKING_URI (default: the SQLite database mlflow.db in the repository's root);
AV_TRACKING=off writes journals only. Passwords come from MLflow's own variables, such as MLFLOW_TRACKING_PASSWORD, and
are never written anywhere; one in the URI is left out wherever the URI is shown.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import UserError, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from stages.params import Params

ROOT = Path(__file__).resolve().parents[1]
SQLITE = "sqlite:///"
# The section of params that a stage's item names; its entry says to which dataset the item belongs.
SECTIONS = {
    "frames": "frames",
    "mix_noise": "noise_mixes",
    "teacher_features": "features",
    "teacher_head": "features",
    "train": "cells",
    "evaluate": "cells",
}


@dataclass(frozen=True)
class Run:
    """A run that is going on. It is only a name, so it can be sent to worker processes and used there."""

    folder: Path
    id: str
    suite: str
    tags: Mapping[str, object]

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log params; nested mappings become names with dots. A param's first value stays."""
        self._write("params", values=_flat(values))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of a step. NaN and infinities are kept; MLflow shows an infinity as the largest double."""
        self._write("metrics", step=step, values={name: float(value) for name, value in values.items()})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a file. It is copied at once: its original may be renamed or deleted afterwards."""
        target = self.folder / self.id / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(path, partial)
        partial.replace(target)
        self._write("artifact", folder=folder, name=path.name)

    def log_dataset(self, name: str, path: Path, digest: str, context: str) -> None:
        """Log a dataset that the run read. MLflow keeps 36 characters of `digest`; `context` says what it was for."""
        self._write("dataset", name=name, path=str(path), digest=digest[:36], context=context)

    def log_model(self, name: str, folder: Path, alias: str, description: str, tags: Mapping[str, object]) -> None:
        """Log a folder that holds a model in MLflow's format, as a new version of the registered model `name`.

        Its source is the newest training of the `run` and `seed` among `tags`, or this run where MLflow has no such
        training. `alias` points to it from then on. The folder is copied at once, as files are."""
        shutil.copytree(folder, self.folder / self.id / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        values = {key: str(value) for key, value in tags.items()}
        self._write("model", name=name, alias=alias, description=description, tags=values)

    def log_system(self, step: int) -> None:
        """Log how busy the machine is, by the names of MLflow's own system metrics: the processors since the last call
        in this process (0 at the first), memory and GPUs now."""
        import psutil  # type: ignore[import-untyped]

        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
        self.log_metrics({f"system/{name}": value for name, value in (values | _gpus()).items()}, step)

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Set tags; later values replace earlier ones."""
        self._write("tags", values={name: str(value) for name, value in values.items()})

    def describe(self, markdown: str) -> None:
        """Set the description that MLflow shows on top of the run's page."""
        self.set_tags({"mlflow.note.content": markdown})

    @contextmanager
    def child(self, name: str, tags: Mapping[str, object]) -> Iterator[Run]:
        """A nested run with the tags of this one and its own; `run` and `seed` among them put it in the ledger."""
        name = f"{self.tags['stage']} {name}"  # a flat list of runs has trainings and evaluations
        with _journal(self.folder, name, self.suite, {**self.tags, **tags}, self.id) as run:
            yield run

    def _write(self, event: str, **fields: object) -> None:
        # One write at the end of the file is atomic, so workers may log to one run. No O_CREAT: logging to a run
        # that has ended and was sent is an error.
        file = os.open(self.folder / f"{self.id}.jsonl", os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, _line(event, **fields))
        finally:
            os.close(file)


@contextmanager
def start(stage: str, item: str | None, params: Params) -> Iterator[Run]:
    """The run of one execution of a stage. It ends as FINISHED, FAILED (an exception) or KILLED (interrupted)."""
    file = params.suite.file
    graph = f"{Path(file).parent}/dvc.yaml:" if "/" in file else ""
    tags = {
        "suite": params.suite.name,
        "dataset": _dataset(stage, item, params),
        "stage": stage,
        "item": item,
        "dvc.stage": f"{graph}{stage}@{item}" if item else f"{graph}{stage}",
        "prefect.flow_run_id": os.environ.get("PREFECT__FLOW_RUN_ID"),
        "mlflow.source.name": f"python -m stages {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "mlflow.note.content": _description(stage, item, params),
        **_commit(),
    }
    known = {name: value for name, value in tags.items() if value is not None}
    folder = _folder(params)
    folder.mkdir(parents=True, exist_ok=True)
    with _journal(folder, " ".join(filter(None, [stage, item])), params.suite.name, known, None) as run:
        if _mirrored():
            _start_mirror(folder)
        yield run


def ledger(params: Params, wait: float = 20.0) -> dict[tuple[str | int | None, ...], str]:
    """Ids of the newest finished MLflow runs, by (stage, item) and, of nested runs, by (stage, run, seed).

    What is not sent has no id yet, so it waits up to `wait` seconds for the mirror to send what has ended, unless
    MLflow cannot be reached."""
    folder = _folder(params)
    until = time.monotonic() + (wait if _mirrored() else 0)
    while time.monotonic() < until and not all(map(_goes_on, folder.glob("*.jsonl"))) and not _away(folder).exists():
        time.sleep(0.1)
    found: dict[tuple[str | int | None, ...], str] = {}
    for file in sorted(folder.glob("*.sent.json")):  # names begin with the time of the start
        sent = json.loads(file.read_text(encoding="utf-8"))
        if sent["status"] == "FINISHED":
            nested = sent["run"] is not None
            key = (sent["stage"], sent["run"], sent["seed"]) if nested else (sent["stage"], sent["item"])
            found[key] = sent["run_id"]
    return found


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database in the repository's root. Paths of SQLite databases are absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{ROOT / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


def artifact_location() -> str | None:
    """URI of the folder mlartifacts beside a SQLite database; None leaves the place to the tracking server."""
    uri = tracking_uri()
    return Path(uri.removeprefix(SQLITE)).with_name("mlartifacts").as_uri() if uri.startswith(SQLITE) else None


class Delivery(NamedTuple):
    """What one round of sending did: lines of journals sent, runs that are complete in MLflow now."""

    events: int
    completed: int


def deliver(folder: Path) -> Delivery:
    """Send all that journals of a suite hold and MLflow has not. Raises whatever keeps it from being sent; then the
    rest stays on disk."""
    events = completed = 0
    failed: Exception | None = None
    with _lock(folder / "send.lock", wait=True):
        # Names begin with the time of the start: a parent comes before its children.
        news = [file for file in sorted(folder.glob("*.jsonl")) if _size_left(file) or not _goes_on(file)]
        if news:
            _client().search_experiments(max_results=1)  # one look whether the server is there, not one a journal
        for file in news:
            try:
                sent = _send(file)
            except Exception as error:  # noqa: BLE001 - one journal that cannot be sent must not hold back the others
                failed = failed or error
            else:
                events += sent.events
                completed += sent.completed
    if failed is not None:
        raise failed
    _away(folder).unlink(missing_ok=True)
    return Delivery(events, completed)


def mirror(folder: Path, idle: float = 15.0, patience: float = 120.0) -> None:
    """Send what journals get as they get it, until no run has gone on and nothing has come for `idle` seconds.

    While MLflow cannot be reached it tries again at growing intervals: as long as a run goes on, then for `patience`
    seconds more. What it could not send stays on disk. A second mirror of the same folder ends at once."""
    os.nice(10)  # trainings come first
    # The second look is for a stage that came between the last round and the end of the lock, and started no mirror.
    while any(folder.glob("*.jsonl")):
        with _lock(folder / "mirror.lock") as mine:
            if not mine or not _follow(folder, idle, patience):
                return


def sync(params: Params) -> Delivery:
    """Send all that is left of a suite's journals; also creates the database where there is none.

    Raises UserError if MLflow cannot be reached; then all stays on disk."""
    try:
        _client().search_experiments(max_results=1)
        folder = _folder(params)
        return deliver(folder) if folder.exists() else Delivery(0, 0)
    except Exception as error:
        raise UserError(f"MLflow at {tracking_uri()}: {_one_line(error)}; nothing is lost, sync later") from error


def _follow(folder: Path, idle: float, patience: float) -> bool:
    """Rounds of sending until nothing comes any more. False: gave up."""
    delay, quiet_since = 0.5, time.monotonic()
    while True:
        problem = None
        try:
            sent = deliver(folder)
        except Exception as error:  # noqa: BLE001 - the server's, the network's, the database's: all may pass
            problem, delay = error, min(2 * delay, 30.0)
            _away(folder).touch()
        else:
            delay = 0.5
            if sent.events:
                quiet_since = time.monotonic()
        if any(map(_goes_on, folder.glob("*.jsonl"))):
            quiet_since = time.monotonic()
        quiet = time.monotonic() - quiet_since
        if problem and quiet > patience:
            _note(folder, f"gave up, the rest stays on disk: {_one_line(problem)}")
            return False
        if not problem and quiet > idle:
            return True
        time.sleep(delay)


def _send(file: Path) -> Delivery:
    """Send what a journal has gained, and clean up behind a run that is complete."""
    folder, sent = file.parent, _sent(file)
    ended = not _goes_on(file)  # asked first: whatever an ended run has written is then in what is read below
    with file.open("rb") as stream:
        stream.seek(sent.get("offset", 0))
        data = stream.read()
    data = data[: data.rfind(b"\n") + 1]  # a process that was killed may leave half a line
    events = list(_events(folder, file.stem, data))
    run_id = sent.get("run_id")
    if run_id is None:
        if not events or events[0]["event"] != "start":
            _note(folder, f"{file.name}: not a journal; left out")
            file.rename(file.with_suffix(".unreadable"))
            return Delivery(0, 0)
        sent = _create(folder, file.stem, events[0])
        _replace(file.with_suffix(".sent.json"), sent)  # its children need it, whatever becomes of the rest
        run_id = sent["run_id"]
    if ended and sent["status"] == "RUNNING" and not any(event["event"] == "end" for event in events):
        # Its process is gone and had no time to say so.
        events.append({"event": "end", "status": "KILLED", "time": int(file.stat().st_mtime * 1000)})

    _log(folder, file.stem, run_id, sent["experiment_id"], events)
    status = next((event["status"] for event in events if event["event"] == "end"), sent["status"])
    _replace(file.with_suffix(".sent.json"), sent | {"status": status, "offset": sent.get("offset", 0) + len(data)})
    if status == "RUNNING":
        return Delivery(len(events), 0)
    shutil.rmtree(folder / file.stem, ignore_errors=True)
    file.unlink()
    return Delivery(len(events), 1)


def _create(folder: Path, journal: str, begin: dict[str, Any]) -> dict[str, Any]:
    """The MLflow run of a journal, new or found by its tag, as the first state of <journal>.sent.json."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    client, tags, experiment_id = _client(), begin["tags"], _experiment(begin["suite"])
    # An earlier mirror may have been killed after it had created the run and before it could write that down.
    filter_string = f"tags.journal = '{journal}'"
    found = client.search_runs([experiment_id], filter_string, run_view_type=ViewType.ALL, max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        above = folder / f"{begin['parent']}.jsonl"
        parent = _sent(above).get("run_id")
        if parent is None and above.exists():
            raise MlflowException(f"{journal}: its parent could not be sent")  # both are next time
        nested = {"mlflow.parentRunId": parent} if parent else {}
        everything = {_key(name): _text(value) for name, value in tags.items()} | {"journal": journal} | nested
        run_id = client.create_run(experiment_id, begin["time"], everything, _text(begin["name"])).info.run_id
    keys = {name: tags.get(name) for name in ("stage", "item", "run", "seed")}
    return {"run_id": run_id, "experiment_id": experiment_id, **keys, "status": "RUNNING"}


def _experiment(suite: str) -> str:
    """Id of a suite's experiment, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    client = _client()
    experiment = client.get_experiment_by_name(suite)
    if experiment is None:
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(suite, artifact_location(), kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return _experiment(suite)  # another checkout's mirror was faster
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _log(folder: Path, journal: str, run_id: str, experiment_id: str, events: list[dict[str, Any]]) -> None:
    """Bring events to MLflow. What it refuses for good is noted in mirror.log and left out."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    def send(call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            call(run_id, *args, **kwargs)
        except MlflowException as error:
            if error.error_code not in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}:
                raise
            _note(folder, f"{journal}: MLflow refused {call.__name__}: {_one_line(error)}")

    client = _client()
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: list[Metric] = []
    for event in events:
        match event["event"]:
            case "params":
                params = {_key(name): _text(value) for name, value in event["values"].items()} | params
            case "tags":
                tags |= {_key(name): _text(value) for name, value in event["values"].items()}
            case "metrics":
                at, step = event["time"], event["step"]
                metrics += [Metric(_key(name), value, at, step) for name, value in event["values"].items()]
    for some in _chunks(list(params.items()), 100):  # MLflow's limits for one request
        send(client.log_batch, params=[Param(*pair) for pair in some])
    for some in _chunks(list(tags.items()), 100):
        send(client.log_batch, tags=[RunTag(*pair) for pair in some])
    for some in _chunks(metrics, 1000):
        send(client.log_batch, metrics=some)
    for event in events:
        match event["event"]:
            case "artifact":
                path = folder / journal / event["folder"] / event["name"]
                if path.exists():
                    send(client.log_artifact, str(path), event["folder"] or None)
                else:
                    _note(folder, f"{journal}: {path} is gone; left out")
            case "dataset":
                source = json.dumps({"uri": event["path"]})
                dataset = Dataset(_text(event["name"]), _text(event["digest"]), "local", _text(source))
                context = InputTag("mlflow.data.context", _text(event["context"]))
                send(client.log_inputs, datasets=[DatasetInput(dataset, [context])])
            case "model":
                send(_register, experiment_id, journal, folder / journal / event["name"], event)
            case "end":
                send(client.set_terminated, event["status"], event["time"])


def _register(run_id: str, experiment_id: str, journal: str, path: Path, event: dict[str, Any]) -> None:
    """A logged model, the version of a registered model that it is, and the alias. Each step looks first whether an
    earlier mirror has done it."""
    from mlflow.exceptions import MlflowException

    client, name, tags = _client(), event["name"], event["tags"] | {"journal": journal}
    training = f"tags.stage = 'train' AND tags.run = '{tags['run']}' AND tags.seed = '{tags['seed']}'"
    newest = client.search_runs(
        [experiment_id],
        f"{training} AND attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    source = newest[0].info.run_id if newest else run_id
    note = client.get_run(source).data.tags.get("mlflow.note.content", "")
    logged = client.search_logged_models([experiment_id], f"tags.journal = '{journal}'")
    model = logged[0] if logged else client.create_logged_model(experiment_id, name, source, tags)
    if model.status != "READY":
        client.log_model_artifacts(model.model_id, str(path))
        client.finalize_logged_model(model.model_id, "READY")
    try:
        client.create_registered_model(name, description=event["description"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((known for known in versions if known.tags.get("journal") == journal), None)
    if version is None:
        uri = f"models:/{model.model_id}"
        version = client.create_model_version(name, uri, source, tags, None, note, model_id=model.model_id)
    if all(int(known.version) <= int(version.version) for known in versions):
        client.set_registered_model_alias(name, event["alias"], version.version)


@cache
def _client() -> MlflowClient:
    """The one client of this process; creates a SQLite database that is not there."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    # Sending again is up to the mirror, which looks first what has arrived. A request whose answer got lost has done
    # its work, and MLflow's own second try would make a second run.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow import MlflowClient

    uri = tracking_uri()
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    # Two processes that open a database that is not there yet would both create its tables.
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with _lock(database.with_name(f"{database.name}.lock"), wait=True):
        if not database.exists():
            # Under another name until it is whole: with half of its tables, which a process that is killed may leave,
            # MLflow would never open it.
            for left in database.parent.glob(f"{database.name}.new*"):
                left.unlink()
            new = database.with_name(f"{database.name}.new")
            MlflowClient(f"{SQLITE}{new}").search_experiments(max_results=1)
            new.replace(database)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def _journal(folder: Path, name: str, suite: str, tags: Mapping[str, object], parent: str | None) -> Iterator[Run]:
    """Open the journal of a new run, and end it as the block ends."""
    run = Run(folder, f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{uuid.uuid4().hex[:8]}", suite, tags)
    partial = folder / f".{run.id}"
    with partial.open("ab", buffering=0) as file:
        # The lock goes with the process, however that ends: it tells a run that goes on from one that was killed.
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        file.write(_line("start", name=name, suite=suite, parent=parent, tags=dict(tags)))
        partial.rename(folder / f"{run.id}.jsonl")
        try:
            yield run
        except KeyboardInterrupt:
            run._write("end", status="KILLED")
            raise
        except BaseException as error:
            run.set_tags({"error": f"{type(error).__name__}: {_one_line(error)}"})
            run._write("end", status="FAILED")
            raise
        else:
            run._write("end", status="FINISHED")


def _mirrored() -> bool:
    return os.environ.get("AV_TRACKING") != "off"


def _start_mirror(folder: Path) -> None:
    """Start a mirror, detached from this process, if none is running."""
    with _lock(folder / "mirror.lock") as none_runs:
        pass
    if none_runs:
        with (folder / "mirror.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "stages.tracking", "mirror", str(folder)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _goes_on(file: Path) -> bool:
    """Whether the process that writes a journal still holds it."""
    try:
        with file.open("rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file. Yields whether it was to be had; with `wait` it always is, in the end."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


def _folder(params: Params) -> Path:
    return (Path(params.suite.out) / ".tracking").resolve()


def _away(folder: Path) -> Path:
    return folder / "away"


def _sent(file: Path) -> dict[str, Any]:
    """What <journal>.sent.json says; nothing if there is none."""
    try:
        state: dict[str, Any] = json.loads(file.with_suffix(".sent.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def _size_left(file: Path) -> int:
    """Bytes of a journal that are not sent."""
    return int(file.stat().st_size - _sent(file).get("offset", 0))


def _events(folder: Path, journal: str, data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            _note(folder, f"{journal}: a line is damaged; left out")


def _line(event: str, **fields: object) -> bytes:
    return json.dumps({"event": event, "time": time.time_ns() // 1_000_000, **fields}).encode() + b"\n"


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _key(name: str) -> str:
    """A name that MLflow accepts: R@1 -> R_at_1, and `_` for other characters that it does not."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))[:250]


def _text(value: object) -> str:
    """Text that every database accepts: file names may hold bytes that are no characters."""
    return str(value).encode("utf-8", "replace").decode()


def _one_line(error: BaseException) -> str:
    return redact(" ".join(str(error).split()))[:500]


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _replace(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


def _note(folder: Path, text: str) -> None:
    with (folder / "mirror.log").open("a", encoding="utf-8") as log:
        log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


def _dataset(stage: str, item: str | None, params: Params) -> str | None:
    """The dataset that an item belongs to; None for what belongs to none (a teacher) or to all (the report)."""
    if item is None:
        return None
    entry = getattr(params, SECTIONS[stage]).get(item) if stage in SECTIONS else None
    if entry is not None:
        return str(entry.dataset)
    return item if item in params.datasets and stage != "teachers" else None


def _description(stage: str, item: str | None, params: Params) -> str:
    """What a run does, as Markdown, from a docstring: the method of its cell with the equation, or what its stage
    makes. Read without importing the module, which would take seconds."""
    cell = params.cells.get(item or "") if SECTIONS.get(stage) == "cells" else None
    path = ROOT / f"models/distillers/{cell.method}.py" if cell else ROOT / f"stages/{stage}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text if cell else text.partition("\n\n")[0]


def _gpus() -> dict[str, float]:
    """Use, memory and power of the machine's NVIDIA GPUs; nothing where there is none."""
    names = {
        "utilization.gpu": "utilization_percentage",
        "memory.used": "memory_usage_megabytes",
        "power.draw": "power_usage_watts",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values: dict[str, float] = {}
    for number, line in enumerate(found.stdout.splitlines() if found.returncode == 0 else []):
        for name, value in zip(names.values(), line.split(","), strict=False):
            with contextlib.suppress(ValueError):  # [N/A]
                values[f"gpu_{number}_{name}"] = float(value)
    return values


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _commit() -> dict[str, str]:
    """The commit, and whether there are changes beside it (DVC's record of results does not count)."""
    status = ["status", "--porcelain=v2", "--branch", "--", ".", ":(exclude,glob)**/dvc.lock"]
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", *status], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = found.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":
        return {}
    dirty = any(not line.startswith("#") for line in lines)
    return {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}


def _main(arguments: list[str]) -> None:
    from stages import params as params_module

    match arguments:
        case ["mirror", folder]:
            os.nice(10)  # the stages have the machine first
            mirror(Path(folder))
        case ["sync", first, *others]:
            failed = False
            for file in [first, *others]:
                try:
                    sent = sync(params_module.load(file))
                    done = f"{sent.events} events sent, {sent.completed} runs completed"
                    print(f"{file}: {done} in {redact(tracking_uri())}")
                except UserError as error:
                    print(f"error: {error}", file=sys.stderr)
                    failed = True
            sys.exit(failed)
        case _:
            sys.exit("usage: python -m stages.tracking sync PARAMS... | mirror FOLDER")


if __name__ == "__main__":
    _main(sys.argv[1:])
