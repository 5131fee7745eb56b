"""Journals: files of the events of a run, one per line, written by its stage."""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import getpass
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.items import ITEMS, dataset_of
from avdistill.pipeline.processes import file_lock
from avdistill.tracking.shared import (
    ROOT,
    is_mirrored,
    is_running,
    journal_folder,
    one_line,
    tracking_uri,
    unreachable_marker,
)

if TYPE_CHECKING:
    from avdistill.config.schema import Params

START_TIME = "%Y%m%d-%H%M%S-%f"  # names of journals begin with it


@dataclass(frozen=True)
class TrackedRun:
    """Handle of an active run. It holds no open file, so it can be pickled and used in worker processes."""

    folder: Path
    id: str
    suite: str
    tags: Mapping[str, object]

    def log_params(self, values: Mapping[str, object]) -> None:
        """Log params; keys of nested mappings are joined by dots. The first value of a param is kept."""
        self._write("params", values=_flat(values))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of a step. NaN and infinity are kept; MLflow shows infinity as the largest double."""
        self._write("metrics", step=step, values={name: float(value) for name, value in values.items()})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a copy of a file, made immediately; the original may be renamed or deleted afterwards."""
        target = self.folder / self.id / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(path, partial)
        partial.replace(target)
        self._write("artifact", folder=folder, name=path.name)

    def log_dataset(self, name: str, path: Path, digest: str, context: str) -> None:
        """Log a dataset read by the run, such as context `training`. MLflow stores 36 characters of `digest`."""
        self._write("dataset", name=name, path=str(path), digest=digest[:36], context=context)

    def log_model(self, name: str, folder: Path, alias: str, description: str, tags: Mapping[str, object]) -> None:
        """Log a folder with a model in MLflow's format as a new version of the registered model `name`.

        Its source is the newest training with the `run` and `seed` of `tags`, or this run if MLflow has none. `alias`
        is set to the new version. The folder is copied immediately."""
        shutil.copytree(folder, self.folder / self.id / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        values = {key: str(value) for key, value in tags.items()}
        self._write("model", name=name, alias=alias, description=description, tags=values)

    def log_system(self, step: int) -> None:
        """Log system metrics under MLflow's names.

        CPU utilisation is the mean since the last call in this process (0 at the first); memory and GPU values are
        current."""
        import psutil  # type: ignore[import-untyped]

        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
        }
        self.log_metrics({f"system/{name}": value for name, value in (values | _gpus()).items()}, step)

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Set tags, replacing earlier values."""
        self._write("tags", values={name: str(value) for name, value in values.items()})

    def describe(self, markdown: str) -> None:
        """Set the description of the run in MLflow."""
        self.set_tags({"mlflow.note.content": markdown})

    @contextmanager
    def child(self, name: str, tags: Mapping[str, object]) -> Iterator[TrackedRun]:
        """Open a nested run with the tags of this one and `tags`; tags `run` and `seed` are its keys in the ledger."""
        name = f"{self.tags['stage']} {name}"  # tells trainings from evaluations in a flat list of runs
        with _journal(self.folder, name, self.suite, {**self.tags, **tags}, self.id) as run:
            yield run

    def _write(self, event: str, **fields: object) -> None:
        # A single write with O_APPEND is atomic, so several workers may log to one run. Without O_CREAT, logging to a
        # run that has ended and been sent is an error.
        file = os.open(self.folder / f"{self.id}.jsonl", os.O_WRONLY | os.O_APPEND)
        try:
            line = _line(event, **fields)
            if os.write(file, line) < len(line):  # as a disk that gets full does it, without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / f"{self.id}.jsonl"))
        finally:
            os.close(file)


@contextmanager
def start(stage: str, item: str | None, params: Params) -> Iterator[TrackedRun]:
    """Open the run of one execution of a stage. It ends as FINISHED, FAILED (exception) or KILLED (interrupt).

    Raises UserError if MLflow cannot work in this checkout."""
    if is_mirrored():
        tracking_uri()  # raises UserError where MLflow cannot work, before the stage does
    file = params.suite.file
    graph = f"{Path(file).parent}/dvc.yaml:" if "/" in file else ""
    tags = {
        "suite": params.suite.name,
        "dataset": dataset_of(stage, item, params),
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
    folder = journal_folder(params)
    folder.mkdir(parents=True, exist_ok=True)
    with _journal(folder, " ".join(filter(None, [stage, item])), params.suite.name, known, None) as run:
        if is_mirrored():
            _start_mirror(folder)
        yield run


def ledger(params: Params, wait: float = 20.0) -> dict[tuple[str | int | None, ...], str]:
    """Return the ids of the newest finished MLflow runs by (stage, item); of nested runs by (stage, run, seed).

    A run has no id until it is sent, so this waits up to `wait` seconds for the mirror to send all ended runs, unless
    MLflow is unreachable."""
    folder = journal_folder(params)
    until = time.monotonic() + (wait if is_mirrored() else 0)
    while (
        time.monotonic() < until
        and not all(map(is_running, folder.glob("*.jsonl")))
        and not unreachable_marker(folder).exists()
    ):
        time.sleep(0.1)
    found: dict[tuple[str | int | None, ...], str] = {}
    for file in sorted(folder.glob("*.sent.json")):  # names start with the start time, so newer runs replace older ones
        sent = json.loads(file.read_text(encoding="utf-8"))
        if sent["status"] == "FINISHED":
            nested = sent["run"] is not None
            key = (sent["stage"], sent["run"], sent["seed"]) if nested else (sent["stage"], sent["item"])
            found[key] = sent["run_id"]
    return found


@contextmanager
def _journal(
    folder: Path, name: str, suite: str, tags: Mapping[str, object], parent: str | None
) -> Iterator[TrackedRun]:
    """Open the journal of a new run; on exit, write its end event with the status."""
    run = TrackedRun(folder, f"{_start_time(folder)}-{uuid.uuid4().hex[:8]}", suite, tags)
    partial = folder / f".{run.id}"
    with partial.open("ab", buffering=0) as file:
        # The lock is released even if the process is killed, so it tells active runs from killed ones.
        with contextlib.suppress(OSError):  # file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            file.write(_line("start", name=name, suite=suite, parent=parent, tags=dict(tags)))
            partial.rename(folder / f"{run.id}.jsonl")
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        try:
            yield run
        except KeyboardInterrupt:
            run._write("end", status="KILLED")
            raise
        except BaseException as error:
            run.set_tags({"error": f"{type(error).__name__}: {one_line(error)}"})
            run._write("end", status="FAILED")
            raise
        else:
            run._write("end", status="FINISHED")


def _start_time(folder: Path) -> str:
    """Return the time for the name of a new journal, later than that of all others: their order is that of starts.

    A clock that was set back would put a run before its parent, and an old run in the place of the newest one."""
    now = datetime.now(UTC).strftime(START_TIME)
    newest = max((file.name[: len(now)] for file in folder.glob("2*.json*")), default="")
    if now > newest:
        return now
    return (datetime.strptime(newest, START_TIME) + timedelta(microseconds=1)).strftime(START_TIME)


def _start_mirror(folder: Path) -> None:
    """Start a detached mirror process unless one is running."""
    with file_lock(folder / "mirror.lock") as free:
        pass
    if free:
        with (folder / "mirror.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "avdistill.tracking", "mirror", str(folder)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _line(event: str, **fields: object) -> bytes:
    return json.dumps({"event": event, "time": time.time_ns() // 1_000_000, **fields}).encode() + b"\n"


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings: {"a": {"b": 1}} -> {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _description(stage: str, item: str | None, params: Params) -> str:
    """Return the docstring of the job's method, or the first paragraph of the stage's, as Markdown.

    The source is parsed, not imported, because the import takes seconds."""
    job = params.jobs.get(item or "") if ITEMS.get(stage) == "jobs" else None
    made_by = {"ablation": "avdistill/reporting/ablation_page.py"}.get(stage, f"stages/{stage}.py")
    path = ROOT / (f"models/distillers/{job.method}.py" if job else made_by)
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text if job else text.partition("\n\n")[0]


def _gpus() -> dict[str, float]:
    """Return utilisation, memory and power of the NVIDIA GPUs; empty without any."""
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
    except (KeyError, OSError):  # a user without a name, as in containers
        return str(os.getuid())


def _commit() -> dict[str, str]:
    """Return tags of the git commit and of uncommitted changes, dvc.lock excluded; empty outside a repository."""
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
