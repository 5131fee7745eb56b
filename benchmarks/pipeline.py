"""Benchmarks of the pipeline: the start of a stage, and the embedded suite as a whole."""

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
SUITE = Path("out/benchmarks/suite.json")  # written by `run_suite`
WORK = ("teachers", "teacher_head", "train", "evaluate")  # stages that train or evaluate; the rest is overhead
START = """
import stages.{stage}
from avdistill.pipeline.stage import run
stages.{stage}.main = lambda stage: None
run(["{stage}", "params.yaml"])
"""


@benchmark("start of a stage (imports, params, tracker)", unit="s", cpu=3)
def start_of_a_stage(setting: Setting) -> Measured:
    """Median over all stages of the time from the start of Python until a stage with an empty body has ended. It
    includes the stage's imports, reading and checking params.yaml, and starting and ending its tracked run, but not
    imports inside functions. Files are in the page cache; no warm process is used."""
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


@benchmark("start of a stage by the warm process", "a process that imports for itself", unit="x", cpu=4)
def warm_start(setting: Setting) -> Measured:
    """Time of `python -m stages` until a stage that computes with PyTorch has ended with the error that its input is
    missing: it has imported everything, read the params and started its tracked run. Summed over these stages of the
    embedded suite, one process after the other. `saved_s` is the difference, which `dvc repro` saves."""
    from avdistill.config import loading
    from avdistill.pipeline import warm

    shutil.copy(ROOT / "params.yaml", setting.folder)
    params = loading.load(setting.folder / "params.yaml")
    items: dict[str, list[str]] = {
        "teacher_features": list(params.features),
        "teacher_head": list(params.features),
        "train": list(params.jobs),
        "evaluate": list(params.jobs),
    }

    def start(stage: str, owner: str) -> Callable[[], object]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), warm.VARIABLE: owner, "AV_TRACKING": "off"}
        command = [sys.executable, "-m", "stages", stage, "params.yaml", items[stage][0]]

        def run() -> None:
            done = subprocess.run(command, cwd=setting.folder, env=environment, capture_output=True, text=True)
            assert "missing" in done.stderr, done.stderr

        return run

    ways = {"warm": str(os.getpid()), "cold": "off"}
    seconds = dict.fromkeys(ways, 0.0)
    start("train", ways["warm"])()  # starts the warm process
    time.sleep(0 if setting.quick else 20)  # until its imports are done
    for stage in list(items)[: 1 if setting.quick else None]:
        found = alternate({way: start(stage, owner) for way, owner in ways.items()}, 1 if setting.quick else 5)
        for way in ways:
            seconds[way] += statistics.median(found[way]) * len(items[stage])
    count = sum(map(len, items.values()))
    detail = {f"{way}_s": total / count for way, total in seconds.items()}
    saved = seconds["cold"] - seconds["warm"]
    return Measured(seconds["cold"] / seconds["warm"], detail | {"stages": count, "saved_s": saved})


@benchmark("the embedded suite by `dvc repro`", unit="min", needs="suite", cpu=10)
def suite_time(setting: Setting) -> Measured:
    """Wall time of the first `dvc repro` in a fresh copy of the repository, with all training and evaluation."""
    found = suite_times()
    return Measured(found["repro_s"] / 60, {})


@benchmark(
    "the embedded suite by `dvc repro`",
    "the same at an earlier commit",
    unit="%",
    needs="against",
    limit="training and evaluation alone take the share above. They keep all cores busy, and a training run takes no "
    "longer beside another one than alone (measured). More than half of their time is convolutions of 8 to 32 channels "
    "in oneDNN (torch.profiler), at a third of the speed at which a core multiplies large matrices. For the rest see "
    "the overhead below.",
    cpu=70,
)
def suite_against_before(setting: Setting) -> Measured:
    """Wall time of the first `dvc repro`, as a share of the wall time at an earlier commit (`--against`). Both run with
    the installed packages, one after the other on one machine. `training_and_evaluation_%` is the time of the stages
    that train or evaluate now, as a share of the earlier wall time."""
    found = suite_times()
    detail = {"commit": found["before"], "before_min": found["before_s"] / 60}
    detail["training_and_evaluation_%"] = 100 * working_seconds(found) / found["before_s"]
    return Measured(100 * found["repro_s"] / found["before_s"], detail)


@benchmark(
    "pipeline overhead of the embedded suite",
    "its wall time",
    unit="%",
    needs="suite",
    limit="DVC between stages, and the synthesis of videos (stage download). Between stages DVC spends 97 % of its "
    "time reading and writing the whole dvc.lock with a YAML library in Python (cProfile over eleven stages). Half of "
    "the time of a video is spent in the encoders x264 and AAC (cProfile), on all cores.",
    cpu=25,
)
def suite_overhead(setting: Setting) -> Measured:
    """Share of the wall time of the first `dvc repro` that is not spent in stages that train or evaluate (teachers,
    teacher_head, train, evaluate), according to the tracked runs. It consists of DVC, process starts and all other
    stages."""
    found = suite_times()
    between = found["repro_s"] - sum(found["stages_s"].values())
    detail = {"by_stage_s": found["stages_s"], "between_stages_s": between}
    return Measured(100 * (1 - working_seconds(found) / found["repro_s"]), detail)


@benchmark("`dvc repro` with nothing to do", unit="s", needs="suite", cpu=3)
def suite_no_op(setting: Setting) -> Measured:
    """Median of five runs of `dvc repro`, after the embedded suite has run."""
    times = suite_times()["no_op_s"]
    return Measured(statistics.median(times), {"times_s": times})


@benchmark(
    "the embedded suite by the flow, 2 workers of one thread",
    "`dvc repro`",
    unit="%",
    needs="suite",
    limit="the number of cores. `dvc repro` already trains as many students in parallel as there are cores, so even a "
    "flow that left no core idle would take `with_no_core_ever_idle_%`. The flow needs more processor time, because it "
    "starts a DVC process for each stage.",
    cpu=80,
)
def suite_by_flow(setting: Setting) -> Measured:
    """Wall time of `python -m flows.paper --workers 2` in another fresh copy, as a share of that of `dvc repro`.
    `*_processor_s` is the processor time of each. `with_no_core_ever_idle_%` is the lowest possible share: the smaller
    processor time, spread evenly over all cores."""
    found = suite_times()
    busy = {f"{way}_processor_s": found[f"{way}_busy_s"] for way in ("repro", "flow")}
    least = 100 * min(busy.values()) / cores() / found["repro_s"]
    detail = {"flow_min": found["flow_s"] / 60, **busy, "with_no_core_ever_idle_%": least}
    return Measured(100 * found["flow_s"] / found["repro_s"], detail)


def suite_times() -> dict[str, Any]:
    """Read the times that `run_suite` measured."""
    found: dict[str, Any] = json.loads(SUITE.read_text(encoding="utf-8"))
    return found


def working_seconds(found: dict[str, Any]) -> float:
    """Return the total seconds of the stages that train or evaluate."""
    return float(sum(found["stages_s"].get(stage, 0.0) for stage in WORK))


def run_suite(log: Callable[[str], None], before: str | None = None, file: Path = SUITE) -> None:
    """Run the embedded suite in fresh copies of the repository and write the times to `file`.

    It runs with `dvc repro`, which is then repeated with nothing to do; with the flow and two workers; and, if `before`
    is given, with `dvc repro` at that commit. Raises UserError if a run fails, or at once if the commit is unknown."""
    here = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    for name in ("AV_TRACKING", "AV_CORES", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)

    def run(folder: Path, *command: str) -> tuple[float, float]:
        """Run a command; return its wall time and the processor time of the whole machine meanwhile, in seconds."""
        log(f"suite: {' '.join(command)} ...")
        began, busy = time.perf_counter(), busy_seconds()
        with (folder / "benchmark.log").open("w", encoding="utf-8") as output:
            code = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode
        if code:
            last = (folder / "benchmark.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise UserError(f"suite: {' '.join(command)} failed: {''.join(last)}")
        return time.perf_counter() - began, busy_seconds() - busy

    with TemporaryDirectory(ignore_cleanup_errors=True) as root:  # a process that mirrors runs may still write
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
    """Return the processor time of the whole machine since boot, in seconds."""
    import psutil  # type: ignore[import-untyped]

    times = psutil.cpu_times()
    return float(times.user + times.system)


def copy_repository(folder: Path) -> Path:
    """Copy the files that git tracks or would add into a new repository, which DVC requires."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists() and Path(name).name != "dvc.lock":  # with dvc.lock, DVC would look for old outputs
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def clone_repository(folder: Path, commit: str) -> Path:
    """Clone the repository at a commit. Raises UserError if there is no such commit."""
    for command in (["clone", "--quiet", str(ROOT), str(folder)], ["-C", str(folder), "checkout", "--quiet", commit]):
        done = subprocess.run(["git", *command], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"--against {commit}: {done.stderr.strip().splitlines()[0]}")
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def stage_seconds(database: Path) -> dict[str, float]:
    """Return the total seconds of all tracked runs by stage, longest first, without nested runs."""
    query = """
        select stage.value, sum(runs.end_time - runs.start_time) / 1000.0 from runs
        join tags stage on stage.run_uuid = runs.run_uuid and stage.key = 'stage'
        where runs.run_uuid not in (select run_uuid from tags where key = 'mlflow.parentRunId')
        group by stage.value order by 2 desc
    """
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return dict(connection.execute(query).fetchall())
