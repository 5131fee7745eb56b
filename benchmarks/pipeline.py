"""The pipeline around the work: how a stage starts, and the embedded suite as a whole."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from avdistill.data.files import write_json
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores
from benchmarks.harness import Measured, Setting, alternate, benchmark

ROOT = Path(__file__).resolve().parents[1]
SUITE = Path("out/benchmarks/suite.json")  # what `run_suite` leaves
WORK = ("teachers", "teacher_head", "train", "evaluate")  # stages that train or evaluate; all else is overhead
START = """
import stages.{stage}
from avdistill.pipeline.stage import run
stages.{stage}.main = lambda stage: None
run(["{stage}", "params.yaml"])
"""


@benchmark("start of a stage (imports, params, tracker) by itself", unit="s", cpu=3)
def start_of_a_stage(setting: Setting) -> Measured:
    """Median over all stages of the time from starting Python until a stage with nothing to do has ended: its imports,
    params.yaml read and checked, its tracked run begun and ended. What a stage imports when it needs it is its work.
    The files that it reads have been read before; no process is warm."""
    names = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    names = names[:1] if setting.quick else names
    shutil.copy(ROOT / "params.yaml", setting.folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(stage: str) -> Callable[[], object]:
        command = [sys.executable, "-c", START.format(stage=stage)]
        return lambda: subprocess.run(command, cwd=setting.folder, env=environment, check=True)

    seconds = alternate({name: start(name) for name in names}, 1 if setting.quick else 5)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return Measured(statistics.median(medians.values()), {"by_stage_s": medians})


@benchmark("the embedded suite by `dvc repro`", unit="min", needs="suite", cpu=10)
def suite_time(setting: Setting) -> Measured:
    """Wall time of the first `dvc repro` in a fresh copy of the repository, everything trained and evaluated."""
    found = suite_times()
    return Measured(found["repro_s"] / 60, {})


@benchmark(
    "the embedded suite by `dvc repro`",
    "the same at an earlier commit",
    unit="%",
    needs="against",
    limit="what trains and evaluates takes the share above by itself. It keeps all cores busy, and a training takes no "
    "longer beside another than alone (timed); more than half of it is convolutions of 8 to 32 channels in oneDNN "
    "(torch.profiler), at a third of the speed at which a core multiplies large matrices. The rest is as for the "
    "overhead below.",
    cpu=70,
)
def suite_against_before(setting: Setting) -> Measured:
    """That wall time as a share of the same at a commit of this repository that was named (`--against`), with the
    packages that are installed, one after the other on one machine; beside it the share that the stages that train or
    evaluate now take of the earlier time."""
    found = suite_times()
    detail = {"commit": found["before"], "before_min": found["before_s"] / 60}
    detail["training_and_evaluation_%"] = 100 * working_seconds(found) / found["before_s"]
    return Measured(100 * found["repro_s"] / found["before_s"], detail)


@benchmark(
    "pipeline overhead of the embedded suite",
    "its wall time",
    unit="%",
    needs="suite",
    limit="DVC between its stages, and the making of videos (download). Nearly all that DVC does there is to read and "
    "write the whole of dvc.lock, by a YAML library in Python, after each stage: 97 % of it by cProfile over eleven "
    "stages. Half of what a video takes is in the encoders x264 and AAC (cProfile), on all cores.",
    cpu=25,
)
def suite_overhead(setting: Setting) -> Measured:
    """The share of that wall time that is not spent in stages that train or evaluate (teachers, teacher_head, train,
    evaluate), by the tracked runs: DVC, starts of processes, and all other stages."""
    found = suite_times()
    between = found["repro_s"] - sum(found["stages_s"].values())
    detail = {"by_stage_s": found["stages_s"], "between_stages_s": between}
    return Measured(100 * (1 - working_seconds(found) / found["repro_s"]), detail)


@benchmark("`dvc repro` with nothing to do", unit="s", needs="suite", cpu=3)
def suite_no_op(setting: Setting) -> Measured:
    """Median of several, after the embedded suite has run."""
    times = suite_times()["no_op_s"]
    return Measured(statistics.median(times), {"times_s": times})


@benchmark(
    "the embedded suite by the flow, 2 workers of one thread",
    "`dvc repro`",
    unit="%",
    needs="suite",
    limit="the cores: `dvc repro` trains as many students side by side as there are, so little time of theirs is left, "
    "and with no core ever idle the flow would still take the share above. It pays more processor time, for a DVC "
    "process of its own for each stage.",
    cpu=80,
)
def suite_by_flow(setting: Setting) -> Measured:
    """Wall time of `python -m flows.paper --workers 2` in another fresh copy, as a share of that of `dvc repro`; the
    time that processors were busy in each, and what the share would be if all that the thriftier of the two computes
    left no core idle for a moment."""
    found = suite_times()
    busy = {f"{way}_processor_s": found[f"{way}_busy_s"] for way in ("repro", "flow")}
    least = 100 * min(busy.values()) / cores() / found["repro_s"]
    detail = {"flow_min": found["flow_s"] / 60, **busy, "with_no_core_ever_idle_%": least}
    return Measured(100 * found["flow_s"] / found["repro_s"], detail)


def suite_times() -> dict[str, Any]:
    """What `run_suite` measured."""
    found: dict[str, Any] = json.loads(SUITE.read_text(encoding="utf-8"))
    return found


def working_seconds(found: dict[str, Any]) -> float:
    """Seconds of the stages that train or evaluate."""
    return float(sum(found["stages_s"].get(stage, 0.0) for stage in WORK))


def run_suite(tell: Callable[[str], None], before: str | None = None, file: Path = SUITE) -> None:
    """Run the embedded suite twice, in fresh copies of the repository: by DVC (and then DVC again, with nothing to do)
    and by the flow with two workers; and by DVC as it was at commit `before`. Write the times to `file`.

    Raises UserError if one of them fails, and before anything runs if there is no such commit."""
    here = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for name in ("AV_TRACKING", "AV_CORES", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)

    def run(folder: Path, *command: str) -> tuple[float, float]:
        """Seconds that a command took, and those that all processors of the machine were busy meanwhile."""
        tell(f"suite: {' '.join(command)} ...")
        began, busy = time.perf_counter(), busy_seconds()
        with (folder / "benchmark.log").open("w", encoding="utf-8") as log:
            code = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log).returncode
        if code:
            last = (folder / "benchmark.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise UserError(f"suite: {' '.join(command)} failed: {''.join(last)}")
        return time.perf_counter() - began, busy_seconds() - busy

    with TemporaryDirectory(ignore_cleanup_errors=True) as root:  # a mirror may still have something to say
        by_dvc, by_flow = copy_repository(Path(root) / "dvc"), copy_repository(Path(root) / "flow")
        earlier = clone_repository(Path(root) / "before", before) if before else None
        found: dict[str, Any] = dict(zip(("repro_s", "repro_busy_s"), run(by_dvc, "dvc", "repro"), strict=True))
        found["no_op_s"] = [run(by_dvc, "dvc", "repro")[0] for _ in range(5)]
        run(by_dvc, sys.executable, "-m", "avdistill.tracking", "sync", "params.yaml")
        found["stages_s"] = stage_seconds(by_dvc / "mlflow.db")
        flow = run(by_flow, sys.executable, "-m", "flows.paper", "--workers", "2")
        found |= zip(("flow_s", "flow_busy_s"), flow, strict=True)
        if earlier:
            commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=earlier, text=True).strip()
            found |= {"before": commit, "before_s": run(earlier, "dvc", "repro")[0]}
    write_json(file, found)


def busy_seconds() -> float:
    """Seconds that the processors of this machine have computed since it was started, all together."""
    import psutil  # type: ignore[import-untyped]

    times = psutil.cpu_times()
    return float(times.user + times.system)


def copy_repository(folder: Path) -> Path:
    """The files that git knows or would add, as a repository of its own: DVC wants one."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists() and Path(name).name != "dvc.lock":  # a lock would let DVC look for old outputs
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def clone_repository(folder: Path, commit: str) -> Path:
    """The repository as it was at a commit. Raises UserError if there is none of that name."""
    for command in (["clone", "--quiet", str(ROOT), str(folder)], ["-C", str(folder), "checkout", "--quiet", commit]):
        done = subprocess.run(["git", *command], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"--against {commit}: {done.stderr.strip().splitlines()[0]}")
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def stage_seconds(database: Path) -> dict[str, float]:
    """Seconds by stage, longest first, of all tracked runs but nested ones."""
    query = """
        select stage.value, sum(runs.end_time - runs.start_time) / 1000.0 from runs
        join tags stage on stage.run_uuid = runs.run_uuid and stage.key = 'stage'
        where runs.run_uuid not in (select run_uuid from tags where key = 'mlflow.parentRunId')
        group by stage.value order by 2 desc
    """
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return dict(connection.execute(query).fetchall())
