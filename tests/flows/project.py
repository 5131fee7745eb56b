"""A throw-away repository whose graph has the form of the real one: shared dvc.yaml, foreach, wdir, two suites."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
GRAPH = """
stages:
  check:
    wdir: ${suite.root}
    cmd: python step.py ${suite.file} check ${suite.out}/check
    params: [{"${suite.file}": [suite]}]
    outs: ["${suite.out}/check"]
  train:
    foreach: [kd, mnf_csc]
    do:
      wdir: ${suite.root}
      cmd: python step.py ${suite.file} train@${item} ${suite.out}/train/${item}
      deps: ["${suite.out}/check", "mood/${item}"]
      outs: ["${suite.out}/train/${item}"]
  report:
    wdir: ${suite.root}
    cmd: python step.py ${suite.file} report ${suite.out}/report
    deps: ["${suite.out}/train"]
    outs: ["${suite.out}/report"]
"""
STEP = """
import os, subprocess, sys, time
from pathlib import Path
from avdistill.tracking import journal as tracking
from avdistill.config.loading import load

_, file, stage, out = sys.argv
name, _, item = stage.partition("@")
mood = Path("mood", item).read_text() if item else "well"
with tracking.start(name, item or None, load(file)) as run:
    run.log_params({"mood": mood})
    print(f"{stage} feels {mood}", flush=True)
    if mood == "ill":
        sys.exit("error: params.yaml: too ill to train")
    if mood in ("asleep", "deaf"):
        # A worker, that may not want to be woken, as a thread deep in a library may not.
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if mood == "deaf" else ""
        sleep = f"import signal, time; {deaf}print('worker sleeps', flush=True); time.sleep(120)"
        worker = subprocess.Popen([sys.executable, "-c", sleep])
        Path("pids").write_text(f"{os.getpid()} {worker.pid}")
        time.sleep(120)
    if mood == "waits for the other":
        Path("here-" + item).touch()
        until = time.monotonic() + 90
        while len(list(Path().glob("here-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert time.monotonic() < until
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(f"{stage} {mood}")
"""


def make(folder: Path) -> Path:
    """Write the repository into a new folder."""
    folder.mkdir()
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "step.py").write_text(STEP)
    (folder / ".gitignore").write_text("/out/\n/mlflow.db*\n/mlartifacts/\n/pids\n")
    for suite, root in (("small", "."), ("paper", "..")):
        home = folder if root == "." else folder / suite
        file = "params.yaml" if root == "." else f"{suite}/params.yaml"
        home.mkdir(exist_ok=True)
        params["suite"] = {"name": suite, "title": suite, "root": root, "file": file, "out": f"out/{suite}"}
        (home / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "paper/dvc.yaml").symlink_to("../dvc.yaml")
    (folder / "mood").mkdir()
    for job in ("kd", "mnf_csc"):
        (folder / "mood" / job).write_text("well")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, env=environment(folder))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to use the program from that repository."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "AV_TRACKING": "off",
        "PREFECT_HOME": str(folder.parent / "prefect"),
        "DVC_NO_ANALYTICS": "1",
    }
