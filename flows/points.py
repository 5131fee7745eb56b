"""Points of an ablation: their params, and how they run without touching the workspace.

A point trains copies of runs, each in a separate job named `ablation-<run>`, so that no other run is trained. It is a
DVC experiment in a temporary clone of the repository that shares the DVC cache: outputs that points have in common are
computed once, and the workspace stays unchanged. (`dvc exp run --temp` and `--queue` briefly stash and reset the
workspace, which disturbs anyone who works in it.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.data.files import write_text
from avdistill.pipeline.errors import UserError, nearest
from avdistill.tracking.shared import tracking_uri
from flows.dvc import Dvc
from flows.grid import Axis, Keys, has_effect, hint, used
from stages.check import check

PREFIX = "ablation-"


class Point(NamedTuple):
    """One combination of the values that an ablation varies.

    `name` is the name of its DVC experiment: the values and a digest of the commit, the uncommitted changes and the
    point's params. `settings` are the values by label, `params` the content of its params file, `targets` the stages
    to bring up to date."""

    name: str
    settings: dict[str, Any]
    params: dict[str, Any]
    targets: list[str]


def points(
    ablation: str, params: Params, runs: Sequence[str], axes: Mapping[str, Axis], seeds: Sequence[int] | None
) -> list[Point]:
    """Return one point for every combination of the values of `axes`, for `runs` with `seeds` (None: each run's own).

    The params of every point are validated, as stage check does. Raises UserError for an unknown run or key, for an
    invalid value, and for a key that has no effect on any of the runs."""
    check(params.suite.file, params)
    for run in runs:
        if run not in params.runs():
            raise UserError(f"runs: there is no run '{run}'; {nearest(run, params.runs())}")
    state = workspace_digest()
    folder = Path(params.suite.file).parent
    graph = "" if folder == Path() else f"{folder.as_posix()}/dvc.yaml:"
    targets = [f"{graph}evaluate@{job_of(run)}" for run in runs]
    keys, varied, effective = Keys(params, runs), set[str](), set[str]()
    found = []
    for values in itertools.product(*(axis.values for axis in axes.values())):
        settings = dict(zip(axes, values, strict=True))
        changes: dict[str, Any] = {}
        for label, value in settings.items():
            for key, given in axes[label].values[value].items():
                new = dict.fromkeys(keys.matching(key), given)
                if twice := sorted(changes.keys() & new.keys()):
                    raise UserError(f"grid: {key}: sets {twice[0]} a second time; expected each key once")
                changes |= new
        content = changed(params, keys, runs, changes, seeds)
        try:
            effective |= used(validated(content), runs)
        except UserError as error:
            raise UserError(f"grid: {', '.join(f'{k} {v}' for k, v in settings.items())}: {error}") from None
        varied |= changes.keys()
        digest = hashlib.sha256(json.dumps([state, content, targets], sort_keys=True).encode()).hexdigest()
        name = "-".join([ablation, *(f"{label}-{value}" for label, value in settings.items())])
        name = re.sub(r"([^A-Za-z0-9_.-]|\.\.)+", "_", name)[:200]  # valid as the name of a git reference
        found.append(Point(f"{name}-{digest[:8]}", settings, content, targets))
    for key in sorted(varied):
        if not has_effect(key, effective):
            raise UserError(f"grid: {key}: has no effect on the runs {', '.join(runs)}; {hint(key, effective)}")
    return found


def job_of(run: str) -> str:
    """Return the name of the job, and of its only run, that copies a run."""
    return PREFIX + run.replace(".", "_")


def changed(
    params: Params, keys: Keys, runs: Sequence[str], changes: Mapping[str, Any], seeds: Sequence[int] | None
) -> dict[str, Any]:
    """Return the content of the suite's params file with changed keys and with copies of `runs`.

    The report has its baseline only, because its figures and claims may not fit the changes."""
    content = params.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        *path, last = keys.paths[key]
        entry = content
        for part in path:
            entry = entry.setdefault(part, {})
        entry[last] = value
    jobs = content["jobs"]
    for name in runs:
        job = params.runs()[name][0]
        run = {key: value for key, value in jobs[job]["runs"][name].items() if key != "repeats"}
        own_seeds = list(seeds or params.jobs[job].seeds_of(name))
        jobs[job_of(name)] = jobs[job] | {"seeds": own_seeds, "runs": {job_of(name): run}}
    if params.studies:
        content["studies"]["ablation"] = {"title": "Ablation", "jobs": [job_of(run) for run in runs]}
    return content | {"report": {"baseline": params.report.baseline}}


def validated(content: Mapping[str, Any]) -> Params:
    """Load and check params as stage check does. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        write(file, content)
        try:
            params = load(file)
            check(str(file), params)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{file}: ")) from None
    return params


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a params file."""
    write_text(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def workspace_digest() -> str:
    """Return the commit and a digest of the uncommitted changes in tracked files."""
    return f"{git('rev-parse', 'HEAD').strip()} {hashlib.sha256(uncommitted()).hexdigest()}"


def uncommitted() -> bytes:
    """Return the uncommitted changes as a patch, without dvc.lock, which only records results."""
    command = ["git", "diff", "--binary", "HEAD", "--", ".", ":(exclude,glob)**/dvc.lock"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@contextmanager
def checkout(params: Params, dvc: Dvc) -> Iterator[Dvc]:
    """Create a temporary clone of the workspace and yield a DVC runner for it.

    The clone has the current commit, the uncommitted changes, the same DVC cache, and links to the data that git
    ignores. Later changes in the workspace do not affect it."""
    home = Path(".dvc/tmp/points").resolve()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        git("clone", "--quiet", "--shared", ".", made)
        git("-C", made, "checkout", "--quiet", "--detach", git("rev-parse", "HEAD").strip())
        if patch := uncommitted():
            subprocess.run(["git", "-C", made, "apply", "--whitespace=nowarn"], check=True, input=patch)
        if (local := Path(".dvc/config.local")).exists():  # contains remotes and their passwords
            shutil.copy(local, folder / local)
        there = dvc.at(folder)
        there.use_cache(dvc.cache_folder())
        for source in sources(params):
            if source.exists() and not (folder / source).exists():
                (folder / source).parent.mkdir(parents=True, exist_ok=True)
                (folder / source).symlink_to(source.resolve())
        yield there


def sources(params: Params) -> list[Path]:
    """Return the files and folders that a suite names by paths relative to the repository's root, such as datasets."""
    named = [dataset.origin.source for dataset in params.datasets.values()]
    named += [str(value) for dataset in params.datasets.values() if (value := getattr(dataset.origin, "videos", None))]
    named += [teacher.weights for teacher in params.teachers.values() if teacher.weights]
    return [Path(name) for name in named if not Path(name).is_absolute() and "://" not in name]


def run_point(dvc: Dvc, suite: str, point: Point, log: Any, environment: Mapping[str, str], pull: bool = False) -> None:
    """Run a point in the checkout of `dvc` and send its stages' logs to MLflow.

    Raises StageError or StoppedError."""
    file = Path(suite).with_name("params.yaml")
    write(dvc.root / file, point.params)
    dvc.experiment(point.name, point.targets, log, {**environment, **tracking()}, pull)
    sync(dvc, file, log)


def tracking() -> dict[str, str]:
    """Return the environment of stages in a checkout that is deleted afterwards.

    Their runs go to the MLflow of this process, not in the background, but by `sync` before the checkout is deleted."""
    return {"MLFLOW_TRACKING_URI": tracking_uri(), "AV_TRACKING": "off"}


def sync(dvc: Dvc, file: Path, log: Any) -> None:
    """Send the runs of a checkout's stages to MLflow; `file` is the suite's params file there."""
    if os.environ.get("AV_TRACKING") != "off":
        command = [sys.executable, "-m", "avdistill.tracking", "sync", str(file)]
        address = {"MLFLOW_TRACKING_URI": tracking_uri()}
        done = subprocess.run(command, cwd=dvc.root, env=os.environ | address, capture_output=True, text=True)
        log((done.stdout + done.stderr).strip())


def git(*arguments: str) -> str:
    """Return the output of a git command. Raises UserError with git's message if it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise UserError(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout
