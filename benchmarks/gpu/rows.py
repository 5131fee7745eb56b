"""The GPU column of docs/benchmarks.md, by the harness of `python -m benchmarks`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import harness
from benchmarks.gpu.report import Report

# In the order of their value, for a run that is ended; those that need packages of videos come last.
FIRST = ("step_r2plus1d_10", "waiting_for_data", "frames_in", "step_r2plus1d_18", "cnn14_features")


def run(report: Report, folder: Path, device: str, dry: bool) -> None:
    """Run the benchmarks with a goal for GPUs; in a dry run only the quickest."""
    known = harness.declared()
    names = [name for name, one in known.items() if "gpu" in one.goals and not one.needs]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    for name in ["cnn14_features"] if dry else names:
        if report.left() < 5:
            report.add(name, skipped="no time left")
            continue
        rows = harness.run([known[name]], "cpu" if dry else "gpu", dry, lambda line: print(line, file=sys.stderr))
        if not rows:
            report.add(name, error="failed; its output has the reason")
            continue
        harness.keep(report.folder / "gpu.json", report.about["machine"], rows)  # type: ignore[arg-type]
        report.add(name, value=rows[name]["value"], unit=rows[name]["unit"])
