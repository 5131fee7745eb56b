"""How a benchmark is declared and measured, and how results are kept.

Two ways are compared within one process, taking turns, so that whatever else the machine does meets both: a speed-up
is the median of the ratios of neighbours. A benchmark has a process of its own, whose threads, memory and settings
no other one changes.
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
    """What a benchmark is run with: `quick` (sizes that only show that it works), device, and an empty folder."""

    quick: bool
    device: str
    folder: Path


class Measured(NamedTuple):
    """The number of the table, and what stands behind it."""

    value: float
    detail: dict[str, Any]


class Benchmark(NamedTuple):
    """A row of the table.

    `unit` is x (a speed-up, more is better), or %, s, min, GiB or exponent (less is better). `goals` has an entry for
    each kind of machine that the benchmark is for: the bound that the value has to keep, None where there is none.
    `needs` is the option without which there is nothing to read: a run of the embedded suite (`suite`), or one of an
    earlier commit, too (`against`). `limit` is what the page says of a value that misses its goal: what keeps it from
    there, and how that was found."""

    name: str
    function: Callable[[Setting], Measured]
    what: str
    against: str
    unit: str
    goals: Mapping[Kind, float | None]
    needs: Option | None
    limit: str = ""

    def keeps(self, value: float, kind: Kind) -> bool | None:
        """Whether a value reaches the goal; None where there is no goal."""
        goal = self.goals.get(kind)
        if goal is None:
            return None
        return value >= goal if self.unit == "x" else value <= goal


_declared: dict[str, Benchmark] = {}


def benchmark(
    what: str, against: str = "", unit: str = "x", needs: Option | None = None, limit: str = "", **goals: float | None
) -> Callable[[Callable[[Setting], Measured]], Callable[[Setting], Measured]]:
    """Declare a function as the benchmark of its name; goals as `cpu=` and `gpu=`. Its docstring says how it works."""

    def declare(function: Callable[[Setting], Measured]) -> Callable[[Setting], Measured]:
        name = function.__name__
        bounds = {kind: goals[kind] for kind in KINDS if kind in goals}
        _declared[name] = Benchmark(name, function, what, against, unit, bounds, needs, limit)
        return function

    return declare


def declared() -> dict[str, Benchmark]:
    """Every benchmark by name, in the order of THEMES and within them of their files."""
    for theme in THEMES:
        import_module(f"benchmarks.{theme}")
    order = {f"benchmarks.{theme}": place for place, theme in enumerate(THEMES)}
    return dict(sorted(_declared.items(), key=lambda item: order[item[1].function.__module__]))


THEMES = ("training", "data", "features", "retrieval", "pipeline", "scaling")
assert set(THEMES) <= {module.name for module in pkgutil.iter_modules(benchmarks.__path__)}


def alternate(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` times each, taking turns; the first call of each is not timed.

    Every other turn goes the other way round, so that no way always comes second."""
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
    """How many times as fast `ours` is as `baseline`: the median of the ratios of neighbours."""
    seconds = alternate({"ours": ours, "baseline": baseline}, repeats)
    ratios = [theirs / own for own, theirs in zip(seconds["ours"], seconds["baseline"], strict=True)]
    detail: dict[str, Any] = {f"{name}_s": statistics.median(times) for name, times in seconds.items()}
    return Measured(statistics.median(ratios), detail | {"lowest": min(ratios), "highest": max(ratios)})


def growth(cost: Callable[[int], float], sizes: Sequence[int]) -> Measured:
    """The exponent b of cost = a * size**b, by least squares in logarithms; `cost` measures one size, in seconds."""
    import numpy as np

    seconds = [cost(size) for size in sizes]
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    return Measured(exponent, {"sizes": list(sizes), "seconds": seconds})


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median time of a function; its first call is not timed."""
    return statistics.median(alternate({"it": function}, repeats)["it"])


def machine() -> dict[str, Any]:
    """What results depend on: processor and its widest vectors, cores that may be used, memory, GPU, and versions."""
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


def run(chosen: Iterable[Benchmark], kind: Kind, quick: bool, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Run benchmarks, each in a process of its own; rows by name, as `keep` takes them.

    One that fails is told and left out, and the others go on."""
    rows: dict[str, dict[str, Any]] = {}
    for one in chosen:
        tell(f"{one.name}: {one.what} ...")
        began = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, end_with_parent) as pool:
            try:
                value, detail = pool.submit(_measure, one.name, kind, quick).result()
            except Exception as error:  # noqa: BLE001 - whatever it is, the other benchmarks can run
                tell(f"{one.name}: failed: {type(error).__name__}: {error}")
                continue
        rows[one.name] = {
            "value": value,
            "unit": one.unit,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "took_s": round(time.perf_counter() - began, 1),
            "detail": detail,
        }
        tell(f"{one.name}: {value:.3g} {one.unit} ({rows[one.name]['took_s']} s)")
    return rows


def keep(path: Path, where: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write results. Rows that are there already stay if they come from the same machine with the same versions.

    Returns what was written."""
    before = read(path)
    kept = before.get("rows", {}) if before.get("machine") == where else {}
    result = {"machine": where, "rows": kept | rows}
    write_json(path, result)
    return result


def read(path: Path) -> dict[str, Any]:
    """What `keep` wrote; empty if there is nothing."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _measure(name: str, kind: Kind, quick: bool) -> Measured:
    """In a benchmark's own process: all cores, and a folder that is gone afterwards."""
    os.environ["AV_TRACKING"] = "off"
    # cuBLAS is deterministic, as the trainer wants it, only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(cores())
    with TemporaryDirectory() as folder:
        return declared()[name].function(Setting(quick, "cuda" if kind == "gpu" else "cpu", Path(folder)))


def _synchronise() -> None:
    """Wait for a GPU, where this process uses one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _processor() -> str:
    """Name of the processor; Linux has it in a file."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
