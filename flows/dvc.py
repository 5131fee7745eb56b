"""Run DVC as a subprocess. No other module starts DVC.

    python -m flows.dvc ARGUMENTS...

Runs this environment's DVC, whose stages use this environment's Python, after repairing what a killed DVC has left.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from avdistill.pipeline import warm
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.locks import is_complete
from flows.processes import end

# What `dvc repro` did with a stage: ran its command, restored outputs of an earlier run, or found it up to date.
State = Literal["ran", "cached", "skipped"]
# Advice that DVC repeats after every stage and experiment, and its warnings about outputs missing in a fresh checkout.
HINTS = re.compile(
    r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config |Use `dvc push`|"
    r"To apply the results of an experiment|\tdvc exp apply|WARNING: No file hash info found|Having any troubles\?"
)

# DVC's message if another DVC process writes or reads the same outputs.
BUSY = re.compile(r"'(?P<path>[^']+)' is busy, it is being blocked by:\n\s*\(PID (?P<pid>\d+)\): (?P<holder>.*)")

PATIENCE = 30.0  # s to wait for another DVC that is writing dvc.lock


class StageError(Exception):
    """A stage failed; the message is the most informative line of its output."""


class StoppedError(Exception):
    """DVC was terminated by `Dvc.stop`, or not started because of it."""


class Dvc:
    """Runs DVC in a repository, from any number of threads. Leaving the `with` block terminates what still runs.

    Each DVC process leads its own session, so Ctrl-C in the terminal reaches only this process, and terminating a DVC
    process's group also terminates its stage and the stage's workers."""

    def __init__(self, root: Path | None = None, grace: float = 10.0) -> None:
        self.root = root or Path.cwd()
        self.grace = grace  # seconds between SIGTERM and SIGKILL
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def __enter__(self) -> Dvc:
        recover_lock(self.root)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Terminate all running DVC processes and start no more."""
        with self._lock:
            self._stopping.set()
            running = list(self._running)
        end(running, self.grace)

    @property
    def stopping(self) -> bool:
        """Whether `stop` has been called."""
        return self._stopping.is_set()

    def at(self, folder: Path) -> Dvc:
        """Return a runner for another checkout; both are stopped together."""
        other = copy.copy(self)
        other.root = folder
        return other

    def graph(self, file: str = "dvc.yaml") -> dict[str, set[str]]:
        """Return the stages of a dvc.yaml in execution order, each with the stages that it depends on.

        Names are `train@kd` in the root's dvc.yaml and `paper/dvc.yaml:train@kd` in others. Raises UserError if DVC
        cannot read the file."""
        found: dict[str, set[str]] = {}
        for line in self._ask("dag", "--dot", file).splitlines():
            match re.findall(r'"([^"]+)"', line):
                case [stage]:
                    found.setdefault(stage, set())
                case [upstream, stage]:
                    found.setdefault(stage, set()).add(upstream)
        ordered: dict[str, set[str]] = {}
        while len(ordered) < len(found):  # DVC refuses graphs with cycles
            ordered |= {s: above for s, above in found.items() if s not in ordered and above <= ordered.keys()}
        return ordered

    def status(self, file: str = "dvc.yaml") -> dict[str, list[Any]]:
        """Return the stages whose command, dependencies or outputs differ from dvc.lock.

        The values are the differences as printed by `dvc status --json`."""
        found: dict[str, list[Any]] = json.loads(self._ask("status", "--json", file))
        return found

    def recorded(self, file: str = "dvc.yaml") -> dict[str, dict[str, Any]]:
        """Return the command, dependencies and outputs that dvc.lock records for each stage."""
        import yaml  # imported here because starting DVC does not need it

        path = self.root / Path(file).with_name("dvc.lock")
        until = time.monotonic() + PATIENCE
        while path in incomplete(self.root):
            _wait(path, until)
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
        prefix = f"{file}:" if Path(file).parent != Path() else ""
        return {f"{prefix}{stage}": entry for stage, entry in stages.items()}

    def locked(self, file: str = "dvc.yaml") -> dict[str, str]:
        """Return a digest of command, params, dependencies and outputs for each stage in dvc.lock."""
        return {
            stage: hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
            for stage, entry in self.recorded(file).items()
        }

    def repro(self, stage: str, log: Callable[[str], None], environment: Mapping[str, str] | None = None) -> State:
        """Reproduce one stage, whose upstream stages are up to date, and return what DVC did.

        `log` receives each line of output as it arrives. Raises StageError if the stage fails, StoppedError if it was
        terminated by `stop`."""
        state: State = "skipped"

        def look(line: str) -> None:
            nonlocal state
            log(line)
            if line == f"Running stage '{stage}':":
                state = "ran"
            elif line == f"Stage '{stage}' is cached - skipping run, checking out outputs":
                state = "cached"

        self._follow("repro", "--single-item", stage, log=look, more=environment)
        return state

    def experiment(
        self,
        name: str,
        targets: Sequence[str],
        log: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        pull: bool = False,
    ) -> None:
        """Run a DVC experiment: reproduce `targets` with the uncommitted changes of this checkout.

        `log` receives each line of output as it arrives. `pull` downloads the outputs of earlier runs from the DVC
        remote. Raises StageError if a stage fails, StoppedError if DVC was terminated by `stop`."""
        more = ["--pull"] if pull else []
        # Each experiment has a warm server of its own, which ends with it: its checkout is deleted afterwards.
        own = {**(environment or {}), warm.VARIABLE: ""}
        self._follow("exp", "run", "--name", name, *more, *targets, log=log, more=own)

    def experiments(self) -> set[str]:
        """Return the names of the experiments that are based on the checked-out commit."""
        return set(self._ask("exp", "list", "--name-only").split())

    def fetch_experiments(self, source: str, names: Sequence[str], data: bool = True) -> None:
        """Fetch experiments from a checkout or a git remote; `data` also fetches their outputs from the DVC remote."""
        self._ask("exp", "pull", *([] if data else ["--no-cache"]), source, *names)

    def push_experiment(self, remote: str, name: str) -> None:
        """Push an experiment to a git remote, and its outputs and the run cache to the DVC remote."""
        self._ask("exp", "push", "--run-cache", remote, name)

    def fetch_run_cache(self) -> None:
        """Fetch the records of earlier runs from the DVC remote; their outputs are downloaded when needed."""
        self._ask("fetch", "--run-cache")

    def missing(self, stage: str) -> list[str]:
        """Return the dependencies of a stage that are not in the checkout, as paths relative to it."""
        found = [entry["changed deps"] for entry in self.status(stage).get(stage, []) if "changed deps" in entry]
        return [path for paths in found for path, state in paths.items() if state == "deleted"]

    def pull(self, targets: Sequence[str]) -> None:
        """Fetch outputs, stages' or by path, from the DVC remote and check them out."""
        if targets:
            self._ask("pull", *targets)

    def push(self, target: str) -> None:
        """Push the outputs of a stage or of a dvc.yaml, and the run cache, to the DVC remote."""
        self._ask("push", "--run-cache", target)

    def cache_folder(self) -> Path:
        """Return the folder of DVC's cache, which holds the outputs of all runs."""
        return (self.root / self._ask("cache", "dir").strip()).resolve()

    def use_cache(self, folder: Path) -> None:
        """Make this checkout use the cache of another one."""
        self._ask("cache", "dir", "--local", str(folder))

    def read(self, path: Path, revision: str) -> str:
        """Return a text file as of a commit or an experiment. Raises UserError if it has no such file."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            self._ask("get", ".", path.as_posix(), "--rev", revision, "--out", str(copy))
            return copy.read_text(encoding="utf-8")

    def _follow(self, *arguments: str, log: Callable[[str], None], more: Mapping[str, str] | None) -> None:
        """Run a long DVC command; `log` receives each line as it arrives. Raises StageError if it fails."""
        lines: list[str] = []
        with self._start(*arguments, errors=subprocess.STDOUT, more=more) as process:
            assert process.stdout is not None
            for line in map(str.rstrip, process.stdout):
                if not line or HINTS.match(line):
                    continue
                log(line)
                lines = [*lines[-20:], line]
        if process.returncode:
            raise StageError(_reason(lines) or f"dvc exited with code {process.returncode}")

    def _ask(self, *arguments: str) -> str:
        """Return the output of a DVC command. Raises UserError with DVC's message if it fails.

        DVC writes dvc.lock in place, so a command that was started while another DVC wrote it is started again."""
        until = time.monotonic() + PATIENCE
        while True:
            before = _written(self.root)
            with self._start(*arguments, errors=subprocess.PIPE) as process:
                answer, errors = process.communicate()
            if partial := incomplete(self.root):
                _wait(partial[0], until)
            elif not process.returncode:
                return answer
            elif before == _written(self.root) or time.monotonic() > until:
                lines = [line for line in errors.splitlines() if line.strip() and not HINTS.match(line)]
                raise UserError(f"dvc {' '.join(arguments)}: {_reason(lines) or process.returncode}")

    @contextmanager
    def _start(
        self, *arguments: str, errors: int, more: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        with self._lock:
            if self.stopping:
                raise StoppedError
            process = subprocess.Popen(
                [executable(), "--wait-for-lock", *arguments],
                cwd=self.root,
                env={warm.VARIABLE: str(os.getpid()), **environment(), "PYTHONUNBUFFERED": "1", **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
        try:
            with process:
                try:
                    yield process
                except BaseException:
                    end([process], self.grace)
                    raise
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode and self.stopping:
            raise StoppedError


def recover_lock(root: Path) -> None:
    """Remove lock files that a killed DVC has left incomplete, so that the next one can run.

    DVC writes two files in place, and a kill can leave half of either. The list of the processes that read or write
    outputs (.dvc/tmp/rwlock) is deleted, as DVC's manual advises; its PIDs may also belong to other processes by now.
    An incomplete dvc.lock is moved to .dvc/tmp, and DVC restores its entries from the run cache. Does nothing while
    another DVC runs in `root`."""
    import psutil  # type: ignore[import-untyped]

    folder = str(root.resolve())
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [Path(word).name for word in (process.info["cmdline"] or [])[:3]]
        if "dvc" in words and process.info["cwd"] == folder and process.pid != os.getpid():
            return
    hidden = root / ".dvc" / "tmp"
    (hidden / "rwlock").unlink(missing_ok=True)
    for lock in incomplete(root):
        aside = hidden / f"{lock.parent.name}-{lock.name}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        lock.replace(aside)
        print(f"{lock}: incomplete, because DVC was killed while writing it; moved to {aside}", file=sys.stderr)


def _locks(root: Path) -> list[Path]:
    return [lock for lock in (root / "dvc.lock", *root.glob("*/dvc.lock")) if lock.exists()]


def incomplete(root: Path) -> list[Path]:
    """Return the dvc.lock files that are being written, or that a killed DVC has left incomplete."""
    return [lock for lock in _locks(root) if not is_complete(lock.read_text(encoding="utf-8", errors="replace"))]


def _written(root: Path) -> list[int]:
    """Return when the dvc.lock files were last written."""
    return [lock.stat().st_mtime_ns for lock in _locks(root)]


def _wait(lock: Path, until: float) -> None:
    """Wait a little for whoever writes `lock`. Raises UserError after time `until`."""
    if time.monotonic() > until:
        raise UserError(
            f"{lock}: incomplete; another DVC is writing it or was killed while it did; "
            "if none is running, `python -m flows.dvc status` repairs it"
        )
    time.sleep(0.1)


def short(stage: str) -> str:
    """Strip the file from a stage's name: paper/dvc.yaml:train@kd -> train@kd."""
    return stage.rpartition(":")[2]


def parts(stage: str) -> tuple[str, str | None]:
    """Return name and item of a stage, None without one: paper/dvc.yaml:train@kd -> train, kd."""
    name, _, item = short(stage).partition("@")
    return name, item or None


def name_of(stage: str) -> str:
    """Return the name of a stage without file and item: paper/dvc.yaml:train@kd -> train."""
    return parts(stage)[0]


def allow_no_git(root: Path) -> None:
    """Let DVC work in a copy without git (a ZIP file that was unpacked): set `core.no_scm` for this copy only."""
    local = root / ".dvc" / "config.local"
    if (
        (root / ".dvc").is_dir()
        and not local.exists()
        and not any((up / ".git").exists() for up in (root, *root.parents))
    ):
        local.write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        print(f"{root}: no git repository here, so DVC keeps no versions and runs no experiments", file=sys.stderr)


def executable() -> str:
    """Return the path of this environment's `dvc`. Raises UserError if it is not installed."""
    path = Path(sys.executable).with_name("dvc")
    if not path.exists():
        raise UserError(f"{path}: DVC is not installed in this Python environment; install the project's dependencies")
    return str(path)


def environment() -> dict[str, str]:
    """Return this process's environment with its own Python first on PATH, since DVC runs the first `python` there."""
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}


def _reason(lines: list[str]) -> str:
    """Return the most informative line about a failure: a stage's own error, else its last line, else DVC's."""
    if (busy := BUSY.search("\n".join(lines))) is not None:
        return f"{busy['path']}: in use by {busy['holder']} (process {busy['pid']}); try again when it has ended"
    own = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    best = own or ([] if others and others[-1].startswith(">") else others) or lines
    return best[-1].strip().removeprefix("error: ").removeprefix("ERROR: ") if best else ""


if __name__ == "__main__":
    try:
        recover_lock(Path.cwd())
        allow_no_git(Path.cwd())
        os.execve(executable(), ["dvc", *sys.argv[1:]], environment())  # noqa: S606 - without a shell
    except UserError as error:
        sys.exit(f"error: {error}")
