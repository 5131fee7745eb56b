"""DVC as a subprocess: the only file that starts it.

python -m flows.dvc ARGUMENTS...      DVC of this environment, with this environment's python for the stages, after
                                      a look whether an earlier one was killed
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from avdistill.pipeline import warm
from avdistill.pipeline.errors import UserError
from flows.processes import end

# What `dvc repro` did: ran the command; brought back outputs of an earlier run; found nothing to do.
State = Literal["ran", "cached", "skipped"]
# Advice that DVC repeats after every stage and experiment, and what it says of outputs that a fresh checkout lacks.
HINTS = re.compile(
    r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config |Use `dvc push`|"
    r"To apply the results of an experiment|\tdvc exp apply|WARNING: No file hash info found|Having any troubles\?"
)

# What it says where another DVC process makes or reads the same outputs.
BUSY = re.compile(r"'(?P<path>[^']+)' is busy, it is being blocked by:\n\s*\(PID (?P<pid>\d+)\): (?P<holder>.*)")

# How dvc.lock ends where all of it was written: with what DVC knows of an output.
WHOLE = re.compile(r"(size: \d+|nfiles: \d+|isexec: true)\n\Z")


class StageError(Exception):
    """A stage ended with an error; the message is the one line that says most."""


class StoppedError(Exception):
    """DVC was ended from here, or was not started because everything is being ended."""


class Dvc:
    """Starts DVC in a repository, from any number of threads. Leaving the `with` block ends whatever still runs.

    Each DVC process leads a session of its own: a Ctrl-C in the terminal reaches only whoever started it, and ending
    its process group ends the stage and the stage's workers too."""

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
        """End all that runs and start nothing more."""
        with self._lock:
            self._stopping.set()
            running = list(self._running)
        end(running, self.grace)

    @property
    def stopping(self) -> bool:
        """Whether everything is being ended."""
        return self._stopping.is_set()

    def at(self, folder: Path) -> Dvc:
        """The same for another checkout: what is started there ends with what is started here."""
        other = copy.copy(self)
        other.root = folder
        return other

    def graph(self, file: str = "dvc.yaml") -> dict[str, set[str]]:
        """Stages of a dvc.yaml, each with those that it depends on, in an order in which they can run.

        Stages of the root's dvc.yaml are named `train@kd`, of others `paper/dvc.yaml:train@kd`.
        Raises UserError if DVC cannot read the file."""
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
        """Stages whose command, dependencies or outputs differ from what dvc.lock has recorded, with the differences as
        `dvc status --json` has them."""
        found: dict[str, list[Any]] = json.loads(self._ask("status", "--json", file))
        return found

    def recorded(self, file: str = "dvc.yaml") -> dict[str, dict[str, Any]]:
        """What dvc.lock has recorded of each stage: command, dependencies, outputs."""
        import yaml  # not needed to start DVC, so not above

        path = self.root / Path(file).with_name("dvc.lock")
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.exists() else {}
        prefix = f"{file}:" if Path(file).parent != Path() else ""
        return {f"{prefix}{stage}": entry for stage, entry in stages.items()}

    def locked(self, file: str = "dvc.yaml") -> dict[str, str]:
        """Stages that dvc.lock has recorded, each with a digest of its command, params, dependencies and outputs."""
        return {
            stage: hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
            for stage, entry in self.recorded(file).items()
        }

    def repro(self, stage: str, log: Callable[[str], None], environment: Mapping[str, str] | None = None) -> State:
        """Reproduce one stage, whose upstream is there; `log` gets each line as it comes.

        Raises StageError, or StoppedError if it was ended from here."""
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
        changes: Mapping[str, object],
        targets: Sequence[str],
        log: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
        pull: bool = False,
    ) -> None:
        """Run a DVC experiment in this checkout: `targets` with `changes` of params, `<params file>:<key>` to value.

        Keys that are not there are added. `pull` brings what earlier runs made from the DVC remote.
        Raises StageError, or StoppedError if it was ended from here."""
        settings = [f"--set-param={key.replace(':', ':++', 1)}={hydra(value)}" for key, value in changes.items()]
        more = ["--pull"] if pull else []
        self._follow("exp", "run", "--name", name, *more, *settings, *targets, log=log, more=environment)

    def experiments(self) -> set[str]:
        """Names of the experiments that began at the commit which is checked out."""
        return set(self._ask("exp", "list", "--name-only").split())

    def fetch_experiments(self, source: str, names: Sequence[str], data: bool = True) -> None:
        """Bring experiments of another checkout, or of a git remote; with `data` their outputs from the DVC remote."""
        self._ask("exp", "pull", *([] if data else ["--no-cache"]), source, *names)

    def push_experiment(self, remote: str, name: str) -> None:
        """Send an experiment to a git remote, its outputs and the run cache to the DVC remote."""
        self._ask("exp", "push", "--run-cache", remote, name)

    def fetch_run_cache(self) -> None:
        """Bring from the DVC remote what is known of earlier runs; their outputs come when they are needed."""
        self._ask("fetch", "--run-cache")

    def cache_folder(self) -> Path:
        """Where DVC keeps the outputs of all runs."""
        return (self.root / self._ask("cache", "dir").strip()).resolve()

    def use_cache(self, folder: Path) -> None:
        """Let this checkout keep its outputs in the cache of another one, and find those there."""
        self._ask("cache", "dir", "--local", str(folder))

    def read(self, path: Path, revision: str) -> str:
        """A text file that a commit or an experiment has made. Raises UserError if it has not."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            self._ask("get", ".", path.as_posix(), "--rev", revision, "--out", str(copy))
            return copy.read_text(encoding="utf-8")

    def _follow(self, *arguments: str, log: Callable[[str], None], more: Mapping[str, str] | None) -> None:
        """Run a DVC command that takes its time; `log` gets each line as it comes. Raises StageError if it fails."""
        lines: list[str] = []
        with self._start(*arguments, errors=subprocess.STDOUT, more=more) as process:
            assert process.stdout is not None
            for line in map(str.rstrip, process.stdout):
                if not line or HINTS.match(line):
                    continue
                log(line)
                lines = [*lines[-20:], line]
        if process.returncode:
            raise StageError(_reason(lines) or f"dvc ended with exit code {process.returncode}")

    def _ask(self, *arguments: str) -> str:
        """What a DVC command prints. Raises UserError with DVC's own words."""
        with self._start(*arguments, errors=subprocess.PIPE) as process:
            answer, errors = process.communicate()
        if process.returncode:
            lines = [line for line in errors.splitlines() if line.strip() and not HINTS.match(line)]
            raise UserError(f"dvc {' '.join(arguments)}: {_reason(lines) or process.returncode}")
        return answer

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
    """Put aside what a killed DVC has left unreadable, so that the next one goes on. Nothing where a DVC runs.

    DVC writes two files in place: dvc.lock, of which half is no YAML or lacks what DVC expects, and the list of who
    reads and writes what, of which half is no JSON; besides, a process on that list may be another one by now. Its
    manual says to delete the list. What dvc.lock said is found again in the run cache."""
    import psutil  # type: ignore[import-untyped]

    folder = str(root.resolve())
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [Path(word).name for word in (process.info["cmdline"] or [])[:3]]
        if "dvc" in words and process.info["cwd"] == folder and process.pid != os.getpid():
            return
    hidden = root / ".dvc" / "tmp"
    (hidden / "rwlock").unlink(missing_ok=True)
    for lock in [root / "dvc.lock", *root.glob("*/dvc.lock")]:
        if lock.exists() and not WHOLE.search(lock.read_text(encoding="utf-8", errors="replace")):
            aside = hidden / f"{lock.parent.name}-{lock.name}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            lock.replace(aside)
            print(
                f"{lock}: half of it is missing, DVC was killed as it wrote it; put aside as {aside}", file=sys.stderr
            )


def executable() -> str:
    """The `dvc` of this environment. Raises UserError if it has none."""
    path = Path(sys.executable).with_name("dvc")
    if not path.exists():
        raise UserError(f"{path}: DVC is not installed in the environment of this python")
    return str(path)


def environment() -> dict[str, str]:
    """This process's environment, with its own python first: DVC runs whichever `python` the PATH has."""
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}


def hydra(value: object) -> str:
    """A value as `dvc exp run --set-param` reads it, in the grammar of Hydra's overrides.

    DVC writes floats below 1e-4 without a point (1e-05), which PyYAML reads as text: none of ours are that small."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(hydra, value)) + "]"
    if isinstance(value, str):
        # A backslash is one of two only before a quote or at the end.
        return "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'") + "'"
    return json.dumps(value)  # null, true, 0.5


def _reason(lines: list[str]) -> str:
    """The line that says most about a failure: a stage's own error, else its last line, else DVC's."""
    if (busy := BUSY.search("\n".join(lines))) is not None:
        return f"{busy['path']}: in use by {busy['holder']} (process {busy['pid']}); try again when it has ended"
    own = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    best = own or ([] if others and others[-1].startswith(">") else others) or lines
    return best[-1].strip().removeprefix("error: ").removeprefix("ERROR: ") if best else ""


if __name__ == "__main__":
    try:
        recover_lock(Path.cwd())
        os.execve(executable(), ["dvc", *sys.argv[1:]], environment())  # noqa: S606 - no shell is wanted
    except UserError as error:
        sys.exit(f"error: {error}")
