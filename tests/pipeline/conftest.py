"""A copy of the repository with a suite of seconds, on which the real tools run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from avdistill.pipeline import warm
from tests.helpers.whole import whole_suite

SPLITS = ("avdistill", "flows", "models", "stages", "mlflow_project")
SPLITS += ("dvc.yaml", "params.yaml", "Makefile", "requirements.lock", ".dvcignore", ".gitignore")


class Checkout:
    """A throw-away copy of the project. `dvc(...)` runs the real DVC in it.

    It has the embedded suite, and those that are named: DVC reads all that are there, whichever it is asked about."""

    def __init__(self, folder: Path, root: Path, suites: tuple[str, ...] = ()) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "videos", "dvc.lock")
        for split in SPLITS + suites:
            if (root / split).is_dir():
                shutil.copytree(root / split, folder / split, symlinks=True, ignore=ignore)
            else:
                shutil.copy(root / split, folder / split)
        # `make` takes this for an environment that is ready, and goes on with the one that the tests run in.
        (folder / ".venv").mkdir()
        (folder / ".venv" / ".ready").touch()
        (folder / ".dvc").mkdir()
        shutil.copy(root / ".dvc" / "config", folder / ".dvc" / "config")
        shutil.copytree(root / ".dvc" / "plots", folder / ".dvc" / "plots")
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_TRACKING_URI": "",
            warm.VARIABLE: str(os.getpid()),  # one server for all that the tests run here
        }
        # Tests that `make` runs must not look like a part of it to the `make` that they run.
        for name in ("AV_TRACKING", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
            self.environment.pop(name, None)
        self.run("git", "init", "-q")
        self.run(
            "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "--allow-empty", "-m", "start"
        )

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the checkout; output is captured."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}")
        return done

    def make(self, *arguments: str) -> str:
        """Run make and return what it printed."""
        return self.run("make", *arguments).stdout

    def dvc(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """Run DVC and return what it printed."""
        return self.run("dvc", *arguments, check=check, **environment).stdout

    def repro(self, *arguments: str) -> str:
        """`dvc repro` as make starts it, and what it printed."""
        return self.run("python", "-m", "flows.dvc", "repro", *arguments).stdout

    def change(self, *keys: str | int, value: Any, file: str = "params.yaml") -> None:
        """Set one value of a params file."""
        raw = yaml.safe_load((self.folder / file).read_text())
        entry = raw
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = value
        (self.folder / file).write_text(yaml.safe_dump(raw, sort_keys=False))


# Jobs of the tiny suite: every kind of teacher, input and dependency once.
JOBS = ("uni_modal", "kd", "mnf_csc", "noise_0db", "kd_noise", "tagging-mnf_csc", "ccl-image", "oracle")
RUNS = {
    "mnf_csc": ("mnf_csc", "mnf_csc-no_contrast", "mnf_csc-no_mnf-no_contrast", "mnf_csc-audio"),
    "kd_noise": ("kd_noise-self",),
    "ccl-image": ("ccl-AI",),
}
FEATURES = ("avsynth_audio", "avsynth_image", "avsynth_audio_0db", "avsynth_oracle")


def keep_jobs(raw: dict[str, Any], jobs: tuple[str, ...], runs: dict[str, tuple[str, ...]]) -> None:
    """Drop all jobs but `jobs`, of which some keep only certain `runs`, and what studies, costs and tables say of
    the others. Tables that have one row left are dropped, too."""
    raw["jobs"] = {name: raw["jobs"][name] for name in jobs}
    for name, job in raw["jobs"].items():
        job["runs"] = {run: entry for run, entry in job["runs"].items() if run in runs.get(name, job["runs"])}
    kept = {run for job in raw["jobs"].values() for run in job["runs"]}
    for study in raw["studies"].values():
        study["jobs"] = [name for name in study["jobs"] if name in jobs]
    raw["studies"] = {name: study for name, study in raw["studies"].items() if study["jobs"]}
    report = raw["report"]
    report["cost"] = [run for run in report["cost"] if run in kept]
    report["claims"] = {
        name: claim
        for name, claim in report.get("claims", {}).items()
        if {*claim["runs"], *claim.get("minus", [])} <= kept
    }
    report["settings"] = {
        name: setting | {"runs": {label: run for label, run in setting["runs"].items() if run in kept}}
        for name, setting in report.get("settings", {}).items()
        if setting["baseline"] in kept and kept & set(setting["runs"].values())
    }
    for table in report["tables"].values():
        table["rows"] = {row: run for row, run in table["rows"].items() if run in kept}
    report["tables"] = {name: table for name, table in report["tables"].items() if len(table["rows"]) > 1}


def tiny_params(raw: dict[str, Any]) -> None:
    """Make a suite with all methods tiny: every stage stays, with a few jobs and little to do."""
    raw["device"] = "cpu"
    for section in ("datasets", "frames"):
        raw[section] = {"avsynth": raw[section]["avsynth"]}
    raw["datasets"]["avsynth"]["origin"] |= {"classes": 3, "groups": 5, "seconds": 2.0, "no_sound": 0.1}
    raw["datasets"]["avsynth"]["split"] |= {"test": 0.3, "val": 0.2}
    raw["noise_mixes"] = {"avsynth_0db": raw["noise_mixes"]["avsynth_0db"]}
    raw["features"] = {name: raw["features"][name] for name in FEATURES}
    raw["teachers"]["audio"] |= {"width": 0.0625, "embedding": 32, "examples": 64, "epochs": 1, "draws": 2}
    raw["teachers"]["image"] |= {"width": 0.0625, "examples": 64, "epochs": 1}
    raw["teachers"]["motion"] |= {"width": 0.0625, "examples": 64, "epochs": 1}
    for recipe, frames in (("small", 4), ("tagging", 64)):
        raw["recipes"][recipe] |= {"epochs": 2, "warmup": 0, "batch": 4, "width": 0.0625, "frames": frames}
    keep_jobs(raw, JOBS, RUNS)
    for job in raw["jobs"].values():
        job["seeds"] = [0, 1]
    report = raw["report"]
    report["figures"] |= {
        "training_curves": {"visual": "mnf_csc", "audio": "mnf_csc-audio"},
        "attention": {"run": "mnf_csc", "clips": 2},
        "gain_per_class": ["kd", "mnf_csc"],
        "retrieval": {"runs": ["uni_modal", "mnf_csc"], "queries": 2, "shown": 3},
        "embedding": ["uni_modal", "mnf_csc"],
        "noise": {
            "with MNF": {"clean": "mnf_csc-no_contrast", "0": "noise_0db-mnf"},
            "without MNF": {"clean": "mnf_csc-no_mnf-no_contrast", "0": "noise_0db-no_mnf"},
        },
    }
    del report["figures"]["large"]


def tiny_checkout(folder: Path, root: Path, *suites: str) -> Checkout:
    """A checkout with the tiny suite as its embedded one."""
    made = Checkout(folder, root, suites)
    raw = whole_suite(root)
    tiny_params(raw)
    (made.folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return made


def paper_checkout(folder: Path, root: Path, change: Callable[[dict[str, Any]], None]) -> Checkout:
    """A checkout with the paper suite, after a change of its params, and with a cache of checkpoints of its own."""
    made = tiny_checkout(folder, root, "paper")
    made.environment |= {"AV_TRACKING": "off", "AV_CACHE": str(made.folder / "cache")}
    path = made.folder / "paper/params.yaml"
    raw = yaml.safe_load(path.read_text())
    change(raw)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return made


def index_of(paper: Checkout, dataset: str) -> pd.DataFrame:
    """The paper suite's table of a dataset's clips, by their ids."""
    path = paper.folder / f"out/paper/split/{dataset}/index.csv"
    return pd.read_csv(path, dtype={"id": str, "group": str}, keep_default_na=False).set_index("id")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Checkout]:
    """One checkout for a module, with the tiny suite, on a machine that grants little: a path with characters that mean
    something in shells, URLs and patterns, a locale without UTF-8, a home folder that cannot be written (but by root),
    temporary files on another disk, files that are the user's alone."""
    made = tiny_checkout(tmp_path_factory.mktemp("checkout") / "50 % of it", root)
    home, temporary = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("temporary")
    home.chmod(0o500)
    with contextlib.suppress(OSError):
        temporary = Path(tempfile.mkdtemp(dir="/dev/shm"))
    made.environment |= {"LC_ALL": "C", "HOME": str(home), "TMPDIR": str(temporary)}
    before = os.umask(0o077)
    yield made
    os.umask(before)
    shutil.rmtree(temporary, ignore_errors=True)
