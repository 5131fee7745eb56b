"""Declaration and measurement of benchmarks, and storage of their results.

Two implementations are timed alternately in one process, so that other load on the machine affects both; a speed-up is
the median of the ratios of neighbouring times. Each benchmark runs in its own process, so that its threads, memory and
settings are independent of other benchmarks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import benchmarks
from avdistill.data.files import write_json
from avdistill.pipeline.processes import cores, end_with_parent

Kind = Literal["cpu", "gpu"]
Option = Literal["suite", "against"]
KINDS: tuple[Kind, ...] = ("cpu", "gpu")
VERSIONS = ("torch", "torchvision", "numpy", "decord", "av", "dvc", "mlflow", "prefect")


class Setting(NamedTuple):
    """Arguments of a benchmark: `quick` (tiny sizes, only to test it), device, and an empty folder."""

    quick: bool
    device: str
    folder: Path


class Measured(NamedTuple):
    """Result of a benchmark: the value in the table, and the details below it."""

    value: float
    detail: dict[str, Any]


class Benchmark(NamedTuple):
    """A row of the table.

    `unit` is x (a speed-up, higher is better), or %, s, min, GiB or exponent (lower is better). `goals` has an entry
    for each kind of machine that the benchmark runs on: the bound for its value, or None if there is no goal. `needs`
    is the command-line option that the benchmark requires: `suite`, which runs the embedded suite, or `against`, which
    also runs that of an earlier commit. `limit` explains on the page why a value misses its goal, and how that was
    found."""

    name: str
    function: Callable[[Setting], Measured]
    what: str
    against: str
    unit: str
    goals: Mapping[Kind, float | None]
    needs: Option | None
    limit: str = ""

    def keeps(self, value: float, kind: Kind) -> bool | None:
        """Return whether a value meets the goal; None if there is no goal."""
        goal = self.goals.get(kind)
        if goal is None:
            return None
        return value >= goal if self.unit == "x" else value <= goal


_declared: dict[str, Benchmark] = {}


def benchmark(
    what: str, against: str = "", unit: str = "x", needs: Option | None = None, limit: str = "", **goals: float | None
) -> Callable[[Callable[[Setting], Measured]], Callable[[Setting], Measured]]:
    """Declare a function as a benchmark with goals `cpu=` and `gpu=`; the page prints its docstring as the method."""

    def declare(function: Callable[[Setting], Measured]) -> Callable[[Setting], Measured]:
        name = function.__name__
        bounds = {kind: goals[kind] for kind in KINDS if kind in goals}
        _declared[name] = Benchmark(name, function, what, against, unit, bounds, needs, limit)
        return function

    return declare


def declared() -> dict[str, Benchmark]:
    """Return all benchmarks by name, in the order of THEMES and, within a theme, of its file."""
    for theme in THEMES:
        import_module(f"benchmarks.{theme}")
    order = {f"benchmarks.{theme}": position for position, theme in enumerate(THEMES)}
    return dict(sorted(_declared.items(), key=lambda item: order[item[1].function.__module__]))


THEMES = ("training", "data", "features", "retrieval", "pipeline", "scaling")
assert set(THEMES) <= {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}


def alternate(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time functions alternately, `repeats` times each, and return the seconds by name.

    The first call of each is a warm-up and not timed. Every other turn runs in reverse order, so that no function
    always comes second."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            _synchronise()
            began = time.perf_counter()
            ways[name]()
            _synchronise()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def speedup(ours: Callable[[], object], baseline: Callable[[], object], repeats: int) -> Measured:
    """Measure how many times as fast `ours` is as `baseline`: the median of the ratios of neighbouring times."""
    seconds = alternate({"ours": ours, "baseline": baseline}, repeats)
    ratios = [theirs / own for own, theirs in zip(seconds["ours"], seconds["baseline"], strict=True)]
    detail: dict[str, Any] = {f"{name}_s": statistics.median(times) for name, times in seconds.items()}
    return Measured(statistics.median(ratios), detail | {"lowest": min(ratios), "highest": max(ratios)})


def growth(cost: Callable[[int], float], sizes: Sequence[int]) -> Measured:
    """Fit the exponent b of cost = a * size**b by least squares in logarithms; `cost(size)` returns seconds."""
    import numpy as np

    seconds = [cost(size) for size in sizes]
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    return Measured(exponent, {"sizes": list(sizes), "seconds": seconds})


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a function in seconds; its first call is not timed."""
    return statistics.median(alternate({"it": function}, repeats)["it"])


def machine() -> dict[str, Any]:
    """Describe the machine: processor and its vector instructions, usable cores, memory, GPU, package versions."""
    import torch

    packages = {name: version(name) for name in VERSIONS if _installed(name)}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"python": platform.python_version(), **packages},
    }


def run(chosen: Iterable[Benchmark], kind: Kind, quick: bool, log: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Run benchmarks, each in its own process, and return their rows by name for `keep`.

    A benchmark that fails is logged and left out; the others still run."""
    rows: dict[str, dict[str, Any]] = {}
    for one in chosen:
        log(f"{one.name}: {one.what} ...")
        began = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, end_with_parent) as pool:
            try:
                value, detail = pool.submit(_measure, one.name, kind, quick).result()
            except Exception as error:  # noqa: BLE001 - the other benchmarks still run
                log(f"{one.name}: failed: {type(error).__name__}: {error}")
                continue
        rows[one.name] = {
            "value": value,
            "unit": one.unit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "took_s": round(time.perf_counter() - began, 1),
            "detail": detail,
        }
        log(f"{one.name}: {value:.3g} {one.unit} ({rows[one.name]['took_s']} s)")
    return rows


def keep(path: Path, where: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write results and return them.

    Existing rows are kept if they come from the same machine with the same versions."""
    before = read(path)
    kept = before.get("rows", {}) if before.get("machine") == where else {}
    result = {"machine": where, "rows": kept | rows}
    write_json(path, result)
    return result


def read(path: Path) -> dict[str, Any]:
    """Read results that `keep` wrote; empty if the file does not exist."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _measure(name: str, kind: Kind, quick: bool) -> Measured:
    """Run a benchmark in this process, with all cores and a temporary folder."""
    os.environ["AV_TRACKING"] = "off"
    # The trainer requires determinism, for which cuBLAS needs a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(cores())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # as in stage train
    with TemporaryDirectory() as folder:
        return declared()[name].function(Setting(quick, "cuda" if kind == "gpu" else "cpu", Path(folder)))


def _synchronise() -> None:
    """Wait for the GPU if this process uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _processor() -> str:
    """Return the name of the processor, on Linux from /proc/cpuinfo."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
