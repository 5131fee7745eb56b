"""Benchmarks of scaling: training, index and evaluation with the number of clips, the pipeline with that of runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.harness import Measured, Setting, benchmark, growth, median_seconds

THIN = {"width": 0.125, "frames": 8, "stride": 8, "size": 24, "scale": (0.8, 1.0), "ratio": (0.9, 1.1), "batch": 16}


@benchmark("an epoch of training against clips", "linear growth", unit="exponent", cpu=1.1)
def training_against_clips(setting: Setting) -> Measured:
    """Times `Trainer.train_epoch` of the embedded suite's thin student with MNF+CSC, one thread, synthetic clips."""
    import torch

    from benchmarks import made_up

    torch.set_num_threads(1)

    def epoch(clips: int) -> float:
        params = made_up.suite(setting.folder / str(clips), clips, (12, 40, 53), THIN)
        return median_seconds(made_up.trainer(params, setting.device).train_epoch, 1 if setting.quick else 3)

    return growth(epoch, (32, 64) if setting.quick else (128, 256, 512, 1024, 2048))


@benchmark("pipeline overhead against runs (10 to 200)", unit="exponent", cpu=None)
def pipeline_against_runs(setting: Setting) -> Measured:
    """Times the first `dvc repro` of a graph with two stages per run (train, evaluate) and a common report, whose
    commands only write a file. `no_op_seconds` are the times of a second `dvc repro`, with nothing to do."""
    idle: list[float] = []

    def repro(runs: int) -> float:
        folder = stub_graph(setting.folder / str(runs), runs)
        first = dvc_seconds(folder)
        idle.append(dvc_seconds(folder))
        return first

    measured = growth(repro, (2, 4) if setting.quick else (10, 50, 100, 200))
    return Measured(measured.value, measured.detail | {"no_op_seconds": idle})


@benchmark("index against clips (1e3 to 2e5)", "linear growth", unit="exponent", cpu=1.1)
def index_against_clips(setting: Setting) -> Measured:
    """Times writing and reading the index of clips with `avdistill.data.index`."""
    from avdistill.data.index import read_index, write_index
    from benchmarks import made_up

    def index(clips: int) -> float:
        table, path = made_up.clip_index(clips), setting.folder / "index.csv"

        def there_and_back() -> None:
            write_index(path, table)
            assert len(read_index(path)) == clips

        return median_seconds(there_and_back, 1 if setting.quick else 3)

    return growth(index, clip_counts(setting.quick))


@benchmark(
    "evaluation against clips (1e3 to 2e5)", "queries x gallery, which grows quadratically", unit="exponent", cpu=2.1
)
def evaluation_against_clips(setting: Setting) -> Measured:
    """Times accuracy, accuracy per class and retrieval metrics, with a tenth of the clips as queries and the others as
    gallery, 512-dimensional features and 309 classes."""
    import torch

    from benchmarks.retrieval import made_up as made_up_features
    from models.metrics import per_class_accuracy, retrieval, top1

    def evaluate(clips: int) -> float:
        data = made_up_features(clips // 10, clips - clips // 10, 309)
        probabilities = torch.rand(clips // 10, 309, generator=torch.Generator().manual_seed(0))
        began = time.perf_counter()
        top1(probabilities, data[1])
        per_class_accuracy(probabilities, data[1])
        retrieval(*data)
        return time.perf_counter() - began

    evaluate(1000)
    return growth(evaluate, clip_counts(setting.quick))


def clip_counts(quick: bool) -> Sequence[int]:
    """Return the numbers of clips to measure."""
    return (100, 300) if quick else (1_000, 10_000, 50_000, 100_000, 200_000)


def stub_graph(folder: Path, runs: int) -> Path:
    """Create a DVC project with stub stages: train and evaluate for each run, and a report that depends on all."""
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump({"runs": {f"run{n:03d}": {"seed": n} for n in range(runs)}}))
    stub = "mkdir -p out/{0} && echo ${{item.seed}} > out/{0}/${{key}}"
    stages = {
        "train": {
            "foreach": "${runs}",
            "do": {
                "cmd": stub.format("train"),
                "params": ["runs.${key}"],
                "outs": ["out/train/${key}"],
            },
        },
        "evaluate": {
            "foreach": "${runs}",
            "do": {
                "cmd": stub.format("evaluate"),
                "deps": ["out/train/${key}"],
                "outs": ["out/evaluate/${key}"],
            },
        },
        "report": {"cmd": "ls out/evaluate > report", "deps": ["out/evaluate"], "outs": ["report"]},
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    dvc(folder, "init", "--no-scm", "--quiet")
    return folder


def dvc_seconds(folder: Path) -> float:
    """Return the seconds that `dvc repro` takes."""
    began = time.perf_counter()
    dvc(folder, "repro", "--quiet")
    return time.perf_counter() - began


def dvc(folder: Path, *arguments: str) -> None:
    """Run this environment's DVC, with telemetry off."""
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, check=True)
