"""The mirror: one process per suite that sends journals to MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import file_lock
from avdistill.tracking.shared import (
    SQLITE,
    artifact_location,
    is_running,
    journal_folder,
    one_line,
    read_sent,
    tracking_uri,
    unreachable_marker,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from avdistill.config.schema import Params


STALE = 3600.0  # s; temporary files live for milliseconds, so an older one is that of a killed process


class Delivery(NamedTuple):
    """Result of one delivery: number of events sent, and of runs completed in MLflow."""

    events: int
    completed: int


def deliver(folder: Path) -> Delivery:
    """Send all unsent events of a suite's journals to MLflow.

    A journal that fails stays on disk; the others are still sent, then the first error is raised."""
    events = completed = 0
    failed: Exception | None = None
    with file_lock(folder / "send.lock", wait=True):
        _delete_stale(folder)
        # Names start with the start time, so a parent precedes its children.
        pending = [file for file in sorted(folder.glob("*.jsonl")) if _unsent_bytes(file) or not is_running(file)]
        if pending:
            _client().search_experiments(max_results=1)  # fail once if the server is unreachable, not once per journal
        for file in pending:
            try:
                sent = _send(file)
            except Exception as error:  # noqa: BLE001 - one failing journal must not block the others
                failed = failed or error
            else:
                events += sent.events
                completed += sent.completed
    if failed is not None:
        raise failed
    unreachable_marker(folder).unlink(missing_ok=True)
    return Delivery(events, completed)


def mirror(folder: Path, idle: float = 15.0, patience: float = 120.0) -> None:
    """Send events as they are written, until no run is active and no event has arrived for `idle` seconds.

    While MLflow is unreachable, retry with exponential backoff as long as a run is active, then for `patience` more
    seconds; unsent events stay on disk. Return immediately if another mirror of the folder is running."""
    # Loop: a stage may start between the last delivery and the release of the lock, and then starts no mirror itself.
    while any(folder.glob("*.jsonl")):
        with file_lock(folder / "mirror.lock") as mine:
            if not mine or not _follow(folder, idle, patience):
                return


def sync(params: Params) -> Delivery:
    """Send all unsent events of a suite to MLflow; create the SQLite database if missing.

    Raises UserError if MLflow is unreachable; the journals stay on disk."""
    try:
        _client().search_experiments(max_results=1)
        folder = journal_folder(params)
        return deliver(folder) if folder.exists() else Delivery(0, 0)
    except Exception as error:
        raise UserError(
            f"MLflow at {tracking_uri()}: {one_line(error)}; the journals stay on disk, sync later"
        ) from error


def _follow(folder: Path, idle: float, patience: float) -> bool:
    """Deliver until idle. Return False if it gave up on an unreachable MLflow."""
    delay, quiet_since = 0.5, time.monotonic()
    while True:
        problem = None
        try:
            sent = deliver(folder)
        except Exception as error:  # noqa: BLE001 - errors of server, network and database may be transient
            problem, delay = error, min(2 * delay, 30.0)
            unreachable_marker(folder).touch()
        else:
            delay = 0.5
            if sent.events:
                quiet_since = time.monotonic()
        if any(map(is_running, folder.glob("*.jsonl"))):
            quiet_since = time.monotonic()
        quiet = time.monotonic() - quiet_since
        if problem and quiet > patience:
            _note(folder, f"gave up, unsent events stay on disk: {one_line(problem)}")
            return False
        if not problem and quiet > idle:
            return True
        time.sleep(delay)


def _send(file: Path) -> Delivery:
    """Send the unsent events of a journal; delete the journal of a completed run."""
    folder, sent = file.parent, read_sent(file)
    ended = not is_running(file)  # checked before reading, so that all events of an ended run are read below
    with file.open("rb") as stream:
        stream.seek(sent.get("offset", 0))
        data = stream.read()
    data = data[: data.rfind(b"\n") + 1]  # a killed process may leave a partial line
    events = list(_events(folder, file.stem, data))
    run_id = sent.get("run_id")
    if run_id is None:
        if not events or events[0]["event"] != "start":
            _note(folder, f"{file.name}: not a journal, skipped")
            file.rename(file.with_suffix(".unreadable"))
            return Delivery(0, 0)
        sent = _create(folder, file.stem, events[0])
        _replace(file.with_suffix(".sent.json"), sent)  # nested runs need the run id even if sending fails below
        run_id = sent["run_id"]
    if ended and sent["status"] == "RUNNING" and not any(event["event"] == "end" for event in events):
        # The process was killed before it could write its end event.
        events.append({"event": "end", "status": "KILLED", "time": int(file.stat().st_mtime * 1000)})

    _log(folder, file.stem, run_id, sent["experiment_id"], events)
    status = next((event["status"] for event in events if event["event"] == "end"), sent["status"])
    _replace(file.with_suffix(".sent.json"), sent | {"status": status, "offset": sent.get("offset", 0) + len(data)})
    if status == "RUNNING":
        return Delivery(len(events), 0)
    if (folder / file.stem).exists():
        shutil.rmtree(folder / file.stem)  # before the journal, without which nobody would try again
    file.unlink()
    return Delivery(len(events), 1)


def _create(folder: Path, journal: str, begin: dict[str, Any]) -> dict[str, Any]:
    """Find the MLflow run of a journal by its tag, or create it; return the initial <journal>.sent.json."""
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    client, tags, experiment_id = _client(), begin["tags"], _experiment(begin["suite"])
    # An earlier mirror may have been killed after creating the run but before saving its id.
    filter_string = f"tags.journal = '{journal}'"
    found = client.search_runs([experiment_id], filter_string, run_view_type=ViewType.ALL, max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        above = folder / f"{begin['parent']}.jsonl"
        parent = read_sent(above).get("run_id")
        if parent is None and above.exists():
            raise MlflowException(f"{journal}: its parent run could not be sent")  # retried with the parent
        nested = {"mlflow.parentRunId": parent} if parent else {}
        everything = {_key(name): _text(value) for name, value in tags.items()} | {"journal": journal} | nested
        run_id = client.create_run(experiment_id, begin["time"], everything, _text(begin["name"])).info.run_id
    keys = {name: tags.get(name) for name in ("stage", "item", "run", "seed")}
    return {"run_id": run_id, "experiment_id": experiment_id, **keys, "status": "RUNNING"}


def _experiment(suite: str) -> str:
    """Return the id of a suite's experiment; create or restore it if needed."""
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
        return _experiment(suite)  # created meanwhile by the mirror of another checkout
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _log(folder: Path, journal: str, run_id: str, experiment_id: str, events: list[dict[str, Any]]) -> None:
    """Send events to MLflow. Requests that it rejects permanently are logged to mirror.log and skipped."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    def send(call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            call(run_id, *args, **kwargs)
        except MlflowException as error:
            if error.error_code not in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST"}:
                raise
            _note(folder, f"{journal}: MLflow refused {call.__name__}: {one_line(error)}")

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
                    _note(folder, f"{journal}: {path} is missing, skipped")
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
    """Create a logged model, its registered version and the alias; steps done by an earlier mirror are skipped."""
    from mlflow.exceptions import MlflowException

    client, name, tags = _client(), event["name"], event["tags"] | {"journal": journal}
    training = f"tags.stage = 'train' AND tags.run = '{tags['run']}' AND tags.seed = '{tags['seed']}'"
    source = _trained_here(path.parents[1], tags["run"], tags["seed"])
    if source is None:  # on another machine
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


def _trained_here(folder: Path, run: str, seed: str) -> str | None:
    """Return the newest finished training of this checkout; another one may send its own to the same database."""
    for file in sorted(folder.glob("*.sent.json"), reverse=True):
        sent = json.loads(file.read_text(encoding="utf-8"))
        if (sent["stage"], str(sent["run"]), str(sent["seed"]), sent["status"]) == ("train", run, seed, "FINISHED"):
            return str(sent["run_id"])
    return None


@cache
def _client() -> MlflowClient:
    """Return the MLflow client of this process; create the SQLite database if missing."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    # The mirror retries itself, after checking what has arrived. If the response of a create request is lost, MLflow's
    # own retry would create a second run.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow import MlflowClient, set_tracking_uri

    uri = tracking_uri()
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    # Without the lock, two processes opening a missing database would both create its tables.
    database = Path(uri.removeprefix(SQLITE))
    database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(database.with_name(f"{database.name}.lock"), wait=True):
        if not database.exists():
            # Created under another name and renamed: MLflow cannot open a database with only some of its tables, as
            # left by a killed process.
            for leftover in database.parent.glob(f"{database.name}.new*"):
                leftover.unlink()
            new = database.with_name(f"{database.name}.new")
            MlflowClient(f"{SQLITE}{new}").search_experiments(max_results=1)
            new.replace(database)
        # MLflow registers a model by a client of its own. Without this call, that one would open the database of the
        # working folder, and replace special characters in its path.
        set_tracking_uri(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _delete_stale(folder: Path) -> None:
    """Delete the temporary files of killed processes."""
    for file in folder.glob(".*"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > STALE:
                file.unlink()


def _unsent_bytes(file: Path) -> int:
    """Return the number of unsent bytes of a journal."""
    return int(file.stat().st_size - read_sent(file).get("offset", 0))


def _events(folder: Path, journal: str, data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            _note(folder, f"{journal}: damaged line, skipped")


def _key(name: str) -> str:
    """Return a name that MLflow accepts: R@1 -> R_at_1, other invalid characters -> `_`."""
    return re.sub(r"[^/\w.\- :]", "_", name.replace("@", "_at_"))[:250]


def _text(value: object) -> str:
    """Return valid Unicode, as databases require; file names may contain undecodable bytes."""
    return str(value).encode("utf-8", "replace").decode()


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
