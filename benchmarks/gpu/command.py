"""The command line of `python -m benchmarks gpu`: its parts in order, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import zipfile
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from avdistill.data.files import write_text
from avdistill.pipeline.errors import UserError, nearest
from benchmarks import harness, table
from benchmarks.gpu import page
from benchmarks.gpu.report import Report

# The most seconds of each part; together below ten minutes with what surrounds them.
PARTS = {"smoke": 110, "rows": 160, "throughput": 190, "training": 110}
SECONDS = 575
RESULTS, DOCS = Path("benchmarks/results"), Path("docs")


def main(arguments: list[str]) -> None:
    """Run the parts that the command line names. Raises UserError for a bad option, or if a part failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description="Measure a machine with a GPU, then write docs/gpu.md and the GPU column of docs/benchmarks.md.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all) or page")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit of the whole run (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder for results and pages in place of the repository's")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of the packages that this Python lacks")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, only to test; needs --out")
    given = parser.parse_args(arguments)
    for part in given.parts:
        if part not in (*PARTS, "page"):
            raise UserError(f"gpu {part}: there is no such part; {nearest(part, [*PARTS, 'page'])}")
    if given.dry and not given.out:
        raise UserError("--dry: requires --out, so that no measured value is overwritten")
    began = time.monotonic()
    parts = [part for part in PARTS if part in (given.parts or PARTS)]
    results, docs = (given.out, given.out) if given.out else (RESULTS, DOCS)
    failed = []
    with TemporaryDirectory() as site:
        if parts and given.wheels:
            install(given.wheels, Path(site))
        if parts and not given.dry:
            _need_gpu()
        for part in parts:
            left = given.seconds - (time.monotonic() - began)
            seconds = min(left, PARTS[part]) if len(parts) > 1 and not given.dry else left
            if seconds < 10 or not _limited(part, results / "gpu", seconds, given.dry):
                failed.append(part)
            _write_pages(results, docs)
    _write_pages(results, docs)
    if failed:
        raise UserError(f"not finished: {', '.join(failed)}; what they found is in {results / 'gpu'}")


def install(wheels: Path, site: Path) -> None:
    """Unpack wheels to `site`, where this process and those that it starts look first for packages.

    Raises UserError if there is none. Wheels are zip archives of what lies in site-packages."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise UserError(f"--wheels {wheels}: no wheel (*.whl) there")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


def run_part(part: str, folder: Path, seconds: float, dry: bool) -> None:
    """Run a part in this process."""
    os.environ["AV_TRACKING"] = "off"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in stage train
    report = Report(folder, part, seconds)
    with TemporaryDirectory() as work:
        import_module(f"benchmarks.gpu.{part}").run(report, Path(work), "cpu" if dry else "cuda", dry)


def _limited(part: str, folder: Path, seconds: float, dry: bool) -> bool:
    """Run a part in a process that is ended after `seconds`; return whether it ended by itself, without an error."""
    # What a part does not begin any more so close to its end it may still have to finish.
    arguments = (part, folder, 0.92 * seconds, dry)
    process = multiprocessing.get_context("spawn").Process(target=run_part, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        print(f"{part}: ended after {seconds:.0f} s", file=sys.stderr)
        process.terminate()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
    return process.exitcode == 0


def _need_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError("gpu: PyTorch sees no GPU on this machine; --dry runs the same program on the CPU")


def _write_pages(results: Path, docs: Path) -> None:
    """Write both pages from the results there are."""
    text = (DOCS / "gpu.md").read_text(encoding="utf-8")
    write_text(docs / "gpu.md", page.replaced(text, results / "gpu"))
    kinds = {kind: harness.read(results / f"{kind}.json") for kind in harness.KINDS}
    if kinds["gpu"]:
        write_text(docs / "benchmarks.md", table.page(harness.declared(), kinds))
