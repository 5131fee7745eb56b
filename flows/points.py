"""Points of an ablation: what each changes in params, and how it runs apart from the workspace.

A point trains copies of runs, each in a job of its own that is named after it (`ablation-<run>`), so that nothing but
what is asked for is trained. It is a DVC experiment in a throw-away clone of the repository that shares the cache:
whatever two points have in common is made once, and the workspace is not touched while points run.
(`dvc exp run --temp` and `--queue` stash and reset the workspace for a moment, whoever works in it.)
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
# What an ablation may vary, in the words of a reader.
AXES = {
    "snr_db": "signal-to-noise ratio of the teacher's sound, dB",
    "delta": "δ, least temperature of the contrast (Xia Eq. 5)",
    "margin": "margin of the triplet loss (Xia Eq. 3)",
    "weight": "λ, weight of the distillation losses (Xia Eq. 8)",
    "losses": "losses of MNF+CSC",
    "gradients": "what the student learns from: the paper or its program",
    "teacher": "features of the audio teacher",
    "train_groups": "source videos of each class to train on",
    "relevant": "share of clips whose sound belongs to the action",
}


class Point(NamedTuple):
    """One combination of what an ablation varies. `name` is that of its DVC experiment: the settings, and a digest of
    the commit, the uncommitted changes and all that the point changes. `changes` are params by `<file>:<key>`."""

    name: str
    settings: dict[str, Any]
    changes: dict[str, Any]
    targets: list[str]


def points(
    ablation: str, params: Params, runs: Sequence[str], grid: Mapping[str, Sequence[Any]], seeds: Sequence[int] | None
) -> list[Point]:
    """Every combination of the values of a grid, for `runs` with `seeds` (None: each run's own).

    Raises UserError for a run that is not there, or an axis that changes none of the runs."""
    for run in runs:
        if run not in params.runs():
            raise UserError(f"runs: there is no run '{run}'; {nearest(run, params.runs())}")
    state = workspace_digest()
    folder = Path(params.suite.file).parent
    graph = "" if folder == Path() else f"{folder.as_posix()}/dvc.yaml:"
    targets = [f"{graph}evaluate@{cell_of(run)}" for run in runs]
    found = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        changed = {f"{params.suite.file}:{k}": v for k, v in changes(params, runs, settings, seeds).items()}
        digest = hashlib.sha256(json.dumps([state, changed, targets], sort_keys=True).encode()).hexdigest()
        words = [f"{axis}-{value}".replace("/", "_") for axis, value in settings.items()]
        found.append(Point("-".join([ablation, *words, digest[:8]]), settings, changed, targets))
    return found


def cell_of(run: str) -> str:
    """The job, and the run in it, that stand for a run at a point. Dots would be levels of a key."""
    return PREFIX + run.replace(".", "_")


def changes(
    params: Params, runs: Sequence[str], settings: Mapping[str, Any], seeds: Sequence[int] | None
) -> dict[str, Any]:
    """What a point changes in params, by key. Raises UserError for a setting that changes none of the runs."""
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
                case "relevant" if isinstance(params.datasets[job.dataset].origin, Avsynth):
                    found[f"datasets.{job.dataset}.origin.relevant"] = value
                case "snr_db" if sound.startswith("mix_noise/"):
                    # A mix beside the suite's own, of which its figures say how loud it is.
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
        entry["runs"] = {cell_of(name): {"teachers": run.teachers, "options": options}}
        found[f"jobs.{cell_of(name)}"] = entry
    if idle := [axis for axis in settings if axis not in used]:
        raise UserError(f"{idle[0]}: none of the runs {', '.join(runs)} has what it changes ({AXES[idle[0]]})")
    if params.studies:
        found["studies.ablation"] = {"title": "Ablation", "jobs": [cell_of(run) for run in runs]}
    return found


def workspace_digest() -> str:
    """The commit, and a digest of what has changed since in files that git tracks."""
    return f"{git('rev-parse', 'HEAD').strip()} {hashlib.sha256(uncommitted()).hexdigest()}"


def uncommitted() -> bytes:
    """The changes since the commit, as a patch. DVC's record of results is none."""
    command = ["git", "diff", "--binary", "HEAD", "--", ".", ":(exclude,glob)**/dvc.lock"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@contextmanager
def checkout(params: Params, dvc: Dvc) -> Iterator[Dvc]:
    """A throw-away clone of the workspace as it is now: the commit, the changes since, the same DVC cache, and links to
    the data that git ignores. What a user adds meanwhile does not reach it."""
    home = Path(".dvc/tmp/points").resolve()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        git("clone", "--quiet", "--shared", ".", made)
        git("-C", made, "checkout", "--quiet", "--detach", git("rev-parse", "HEAD").strip())
        if patch := uncommitted():
            subprocess.run(["git", "-C", made, "apply", "--whitespace=nowarn"], check=True, input=patch)
        if (local := Path(".dvc/config.local")).exists():  # remotes and their passwords
            shutil.copy(local, folder / local)
        there = dvc.at(folder)
        there.use_cache(dvc.cache_folder())
        for source in sources(params):
            if source.exists() and not (folder / source).exists():
                (folder / source).parent.mkdir(parents=True, exist_ok=True)
                (folder / source).symlink_to(source.resolve())
        yield there


def sources(params: Params) -> list[Path]:
    """Files and folders of the user's own that a suite names, by paths from the repository's root."""
    named = [dataset.origin.source for dataset in params.datasets.values()]
    named += [str(value) for dataset in params.datasets.values() if (value := getattr(dataset.origin, "videos", None))]
    named += [teacher.weights for teacher in params.teachers.values()]
    return [Path(name) for name in named if not Path(name).is_absolute() and "://" not in name]


def run_point(dvc: Dvc, suite: str, point: Point, log: Any, environment: Mapping[str, str], pull: bool = False) -> None:
    """Run a point in the checkout that `dvc` works in, and send what its stages logged to MLflow.

    Raises StageError or StoppedError."""
    address = {"MLFLOW_TRACKING_URI": tracking_uri()}  # of the workspace: the checkout will be gone
    # Without a process that follows: what a point's stages log is sent at its end, before its folder goes.
    dvc.experiment(
        point.name, point.changes, point.targets, log, {**environment, **address, "AV_TRACKING": "off"}, pull
    )
    if os.environ.get("AV_TRACKING") != "off":
        command = [sys.executable, "-m", "avdistill.tracking", "sync", str(Path(suite).with_name("params.yaml"))]
        done = subprocess.run(command, cwd=dvc.root, env=os.environ | address, capture_output=True, text=True)
        log((done.stdout + done.stderr).strip())


def git(*arguments: str) -> str:
    """What a git command prints. Raises UserError with git's own words."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [str(done.returncode)]
        raise UserError(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout
