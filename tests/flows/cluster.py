"""A cluster on this machine: remotes in folders, a work pool, and workers that share nothing else with the suite."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import yaml

from flows.machines import MEDIA, only_missing
from tests.pipeline.conftest import Checkout

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def remotes(suite: Checkout, folder: Path) -> None:
    """Give a suite a git remote and a DVC remote in a folder, in which workers have folders, too."""
    origin = folder / "origin.git"
    suite.run("git", "clone", "--quiet", "--bare", ".", str(origin))
    suite.run("git", "remote", "add", "origin", origin.as_uri())
    (suite.folder / ".dvc/config.local").write_text(remote(folder))


def remote(folder: Path) -> str:
    """The DVC remote, as a part of DVC's configuration."""
    return f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {folder / 'shared'}\n"


def work_pool(suite: Checkout, url: str) -> None:
    """Make the work pool `cluster` with its deployments."""
    here = {"PREFECT_API_URL": url}
    suite.run(*PREFECT, "work-pool", "create", "cluster", "--type", "process", "--overwrite", **here)
    suite.run(*PREFECT, "deploy", "--prefect-file", "deploy/prefect.yaml", "--name", "cluster", **here)


def worker(suite: Checkout, folder: Path, url: str, **environment: str) -> psutil.Popen:
    """Start a worker that has a folder of its own, with DVC's configuration and a cache. `kill` ends it."""
    for name in ("dvc", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "dvc/config").write_text(f"{remote(folder.parent)}[cache]\n    dir = {folder / 'cache'}\n")
    there = suite.environment | {"DVC_GLOBAL_CONFIG_DIR": str(folder / "dvc"), "TMPDIR": str(folder / "tmp")}
    there |= {"PREFECT_API_URL": url, "PREFECT_WORKER_HEARTBEAT_SECONDS": "8", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    command = [*PREFECT, "worker", "start", "--pool", "cluster", "--type", "process", "--limit", "1"]
    with (folder / "log").open("w") as log:
        started = [*command, "--name", folder.name]
        return psutil.Popen(started, cwd=folder, env=there | environment, stdout=log, stderr=log)


def works_on(process: psutil.Popen, stage: str) -> bool:
    """Return whether a worker's DVC runs a stage."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if {"repro", stage} <= set(child.cmdline()):
                    return True
    return False


def kill(process: psutil.Popen) -> None:
    """Kill a worker and all that it has started, as when its machine is switched off."""
    family = [*process.children(recursive=True), process] if process.is_running() else []
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


def made(folder: Path) -> dict[str, str]:
    """The digest of each file that the suite has made in a checkout, without the page, which says when that was."""
    found = (folder / "out").rglob("*")
    files = [file for file in found if file.is_file() and "/." not in str(file) and file.name != "index.html"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def lock(folder: Path) -> dict[str, object]:
    """The entries of dvc.lock, without what the report is, whose page says when it was made."""
    stages: dict[str, dict[str, object]] = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {name: {**entry, "outs": []} if name == "report" else entry for name, entry in stages.items()}


def check_as_alone(suite: Checkout, alone: Path) -> None:
    """Check that machines of a pool have made what one machine has made in checkout `alone`, and that only media stay
    away."""
    changes = {stage: found for stage, found in json.loads(suite.dvc("status", "--json")).items() if stage != "code"}
    assert all(map(only_missing, changes.values())), changes
    assert not any((suite.folder / "out/avsynth" / stage).exists() for stage in MEDIA)
    suite.dvc("pull")
    assert set(json.loads(suite.dvc("status", "--json"))) == {"code"}, "which DVC always runs"
    assert lock(suite.folder) == lock(alone)
    assert made(suite.folder) == made(alone)
