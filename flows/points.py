"""Points of an ablation: their changes of params, and how they run without touching the workspace.

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
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from avdistill.config.origins import Avsynth
from avdistill.config.schema import Params
from avdistill.config.types import NO_TEACHER
from avdistill.pipeline.errors import UserError, nearest
from avdistill.tracking.shared import tracking_uri
from flows.dvc import Dvc

PREFIX = "ablation-"
LOSSES = {"both": (True, True), "triplet": (True, False), "contrast": (False, True), "none": (False, False)}
# Settings that an ablation may vary, with the labels that tables and figures show.
AXES = {
    "snr_db": "signal-to-noise ratio of the teacher's audio, dB",
    "delta": "δ, lowest temperature of the contrast (Xia Eq. 6)",
    "margin": "margin of the triplet loss (Xia Eq. 3)",
    "weight": "λ, weight of the distillation losses (Xia Eq. 8)",
    "losses": "losses of MNF+CSC",
    "gradients": "gradients of MNF+CSC, as in the paper or in the authors' program",
    "teacher": "features of the audio teacher",
    "train_groups": "number of source videos per class to train on",
    "relevant": "share of clips whose audio belongs to the action",
    "informed": "share of the relevant audio that is of the action, not only of the class",
}


class Point(NamedTuple):
    """One combination of the settings that an ablation varies.

    `name` is the name of its DVC experiment: the settings and a digest of the commit, the uncommitted changes and the
    point's own changes. `changes` are params by `<file>:<key>`, `targets` the stages to bring up to date."""

    name: str
    settings: dict[str, Any]
    changes: dict[str, Any]
    targets: list[str]


def points(
    ablation: str, params: Params, runs: Sequence[str], grid: Mapping[str, Sequence[Any]], seeds: Sequence[int] | None
) -> list[Point]:
    """Return one point for every combination of the values in `grid`, for `runs` with `seeds` (None: each run's own).

    Raises UserError for an unknown run, or for an axis that has no effect on any of the runs."""
    for run in runs:
        if run not in params.runs():
            raise UserError(f"runs: there is no run '{run}'; {nearest(run, params.runs())}")
    state = workspace_digest()
    folder = Path(params.suite.file).parent
    graph = "" if folder == Path() else f"{folder.as_posix()}/dvc.yaml:"
    targets = [f"{graph}evaluate@{job_of(run)}" for run in runs]
    found = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        changed = {f"{params.suite.file}:{k}": v for k, v in changes(params, runs, settings, seeds).items()}
        digest = hashlib.sha256(json.dumps([state, changed, targets], sort_keys=True).encode()).hexdigest()
        words = [f"{axis}-{value}".replace("/", "_") for axis, value in settings.items()]
        found.append(Point("-".join([ablation, *words, digest[:8]]), settings, changed, targets))
    return found


def job_of(run: str) -> str:
    """Return the name of the job, and of its only run, that copies a run. Dots would separate levels of a key."""
    return PREFIX + run.replace(".", "_")


def changes(
    params: Params, runs: Sequence[str], settings: Mapping[str, Any], seeds: Sequence[int] | None
) -> dict[str, Any]:
    """Return a point's changes of params, by key. Raises UserError for a setting without effect on any of the runs."""
    found: dict[str, Any] = {}
    used: set[str] = set()
    for name in runs:
        job, run = params.jobs[params.runs()[name][0]], params.runs()[name][1]
        entry = job.model_dump(mode="json")
        options = dict(run.options)
        for axis, value in settings.items():
            sound = params.features[job.A].input if job.A != NO_TEACHER else ""
            match axis:
                case "train_groups":
                    found[f"recipes.{job.recipe}.train_groups"] = value
                case "relevant" | "informed" if isinstance(params.datasets[job.dataset].origin, Avsynth):
                    found[f"datasets.{job.dataset}.origin.{axis}"] = value
                case "snr_db" if sound.startswith("mix_noise/"):
                    # A new mix: the suite's own must keep its SNR, which figures and tables name.
                    mix, mixed = (PREFIX + key.replace(".", "_") for key in (sound.removeprefix("mix_noise/"), job.A))
                    ours = params.noise_mixes[sound.removeprefix("mix_noise/")].model_dump(mode="json")
                    found[f"noise_mixes.{mix}"] = ours | {"snr_db": value}
                    features = params.features[job.A].model_dump(mode="json")
                    found[f"features.{mixed}"] = features | {"input": f"mix_noise/{mix}"}
                    entry["A"] = mixed
                case "teacher" if "A" in run.teachers:
                    entry["A"] = value
                case "losses" if run.teachers:
                    options["triplet"], options["contrast"] = LOSSES[value]
                case "delta" | "margin" | "weight" | "gradients" if run.teachers:
                    options[axis] = value
                case _:
                    continue
            used.add(axis)
        entry["seeds"] = list(seeds or job.seeds_of(name))
        kept = run.model_dump(mode="json", exclude={"options", "repeats"})
        entry["runs"] = {job_of(name): kept | {"options": options}}
        found[f"jobs.{job_of(name)}"] = entry
    if idle := [axis for axis in settings if axis not in used]:
        raise UserError(f"{idle[0]}: has no effect on the runs {', '.join(runs)} ({AXES[idle[0]]})")
    if params.studies:
        found["studies.ablation"] = {"title": "Ablation", "jobs": [job_of(run) for run in runs]}
    return found


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
    address = {"MLFLOW_TRACKING_URI": tracking_uri()}  # the workspace's, because the checkout is deleted afterwards
    # Stages do not send their logs in the background; they are sent below, before the checkout is deleted.
    dvc.experiment(
        point.name, point.changes, point.targets, log, {**environment, **address, "AV_TRACKING": "off"}, pull
    )
    if os.environ.get("AV_TRACKING") != "off":
        command = [sys.executable, "-m", "avdistill.tracking", "sync", str(Path(suite).with_name("params.yaml"))]
        done = subprocess.run(command, cwd=dvc.root, env=os.environ | address, capture_output=True, text=True)
        log((done.stdout + done.stderr).strip())


def git(*arguments: str) -> str:
    """Return the output of a git command. Raises UserError with git's message if it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise UserError(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout
