"""The measured part of docs/gpu.md, from the results of `python -m benchmarks gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from avdistill.config.types import Precision
from benchmarks.gpu.report import read
from benchmarks.gpu.smoke import every_job
from benchmarks.gpu.throughput import BATCHES

BEGIN, END = "<!-- begin: python -m benchmarks gpu -->", "<!-- end -->"
NOTHING = "not measured"
PRECISIONS: tuple[str, ...] = get_args(Precision)


def replaced(text: str, folder: Path) -> str:
    """Return the page `text` with the part between its two marks made anew from the results in `folder`."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{measured(folder)}\n{END}{after}"


def measured(folder: Path) -> str:
    """Return the tables of all parts; what was not measured is marked so."""
    parts = {part: read(folder, part) for part in ("smoke", "throughput", "training")}
    found = {part: result.get("found", {}) for part, result in parts.items()}
    lines = ["### Is it right?", "", _card(parts["smoke"]), "", *_smoke(found["smoke"])]
    lines += ["", "### How fast is a step?", "", _card(parts["throughput"]), "", *_throughput(found["throughput"])]
    lines += ["", "### What does a training cost?", "", _card(parts["training"]), "", *_training(found["training"])]
    return "\n".join(lines)


def _card(result: dict[str, Any]) -> str:
    """Name the card, the versions and the date of a part."""
    if not result:
        return f"Card and date: {NOTHING}."
    machine, versions = result["machine"], result["machine"]["versions"]
    card = machine["gpu"] or f"no GPU (dry run on {machine['processor']})"
    return (
        f"{card}, {machine['cores']} cores, Python {versions['python']}, PyTorch {versions['torch']}, {result['date']}."
    )


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _smoke(found: dict[str, Any]) -> list[str]:
    """One row per method and set of teachers: how far its losses are from the CPU's, in each precision."""
    names = [*every_job(), *(name for name in found if name not in every_job() and "ok" not in found[name])]
    names += [name for name in found if name not in names]
    rows = []
    for name in names:
        row = found.get(name, {})
        if set(row) == {"ok"}:
            cells = ["yes" if row["ok"] else "**no**"] + [""] * (len(PRECISIONS) - 1)
        else:
            cells = [_apart(row, precision) for precision in PRECISIONS]
        rows.append([name, *cells])
    said = "Largest relative difference of the losses of two steps from those of the CPU in float32. Each runs twice; "
    said += "other bits the second time are marked, and steps that wait for the device."
    return [said, "", *_table(["method", *PRECISIONS], rows)]


def _apart(row: dict[str, Any], precision: str) -> str:
    if "error" in row:
        return f"**{row['error']}**"
    if precision not in row:
        return NOTHING
    found = row[precision]
    marks = " **other bits**" * (not found["same_bits"])
    marks += f" **waits: {', '.join(found['waits'])}**" * bool(found["waits"])
    return f"{found['apart']:.0e}{marks}"


def _throughput(found: dict[str, Any]) -> list[str]:
    """Rows by precision and batch, then what the card can do, the profiles and the methods."""
    rows = []
    for precision in PRECISIONS:
        for batch in BATCHES:
            ways = [found.get(f"{precision}, batch {batch}, {way}", {}) for way in ("eager", "compiled")]
            rows.append([precision, str(batch), *(cell for way in ways for cell in _step(way))])
    head = ["precision", "batch", *(f"{way}: {what}" for way in ("eager", "compiled") for what in _STEP)]
    lines = _table(head, rows)
    top = found.get("ceilings", {})
    told = ", ".join(f"{name.removesuffix('_tflops')} {top[name]:.0f}" for name in top if name.endswith("_tflops"))
    copied = f"{top['copy_tb_per_s']:.1f} TB/s" if "copy_tb_per_s" in top else NOTHING
    lines += ["", f"Large products in TFLOP/s: {told or NOTHING}. A large copy: {copied}.", ""]
    profiles = {name: row for name, row in found.items() if name.startswith("profile") and "ms_by_kind" in row}
    for name, row in profiles.items():
        kinds = ", ".join(f"{kind} {ms:.1f}" for kind, ms in row["ms_by_kind"].items())
        lines += [
            f"Milliseconds of a step of {row['step_ms']:.1f} ({name.removeprefix('profile, ')}): {kinds}; the device "
            f"waits {row['idle_percent']:.0f} % of the time; {row['kernels']:.0f} kernels."
        ]
    lines += [] if profiles else [f"Profile of a step: {NOTHING}."]
    methods = [(name.removeprefix("method "), row) for name, row in found.items() if name.startswith("method ")]
    told = ", ".join(f"{name} {row['ms']:.1f}" for name, row in methods if "ms" in row)
    return [*lines, "", f"Milliseconds of a step by method (bfloat16, batch {BATCHES[0]}, eager): {told or NOTHING}."]


_STEP = ("clips/s", "% of peak", "GiB")


def _step(row: dict[str, Any]) -> list[str]:
    if "ms" not in row:
        return [str(row.get("error") or NOTHING), "", ""]
    rest = [f"{row[name]:.1f}" if name in row else "" for name in ("percent_of_peak", "peak_gib")]
    return [f"{row['clips_per_s']:.0f}", *rest]


def _training(found: dict[str, Any]) -> list[str]:
    """The epochs of the training, and what follows for UCF51."""
    row = found.get("training", {})
    if "epochs" not in row:
        return [f"MNF+CSC on UCF51, 200 epochs: {row.get('error') or NOTHING}."]
    columns = ["seconds", *(name for name in row["epochs"][0] if name in _EPOCH)]
    rows = [[str(n + 1), *(f"{each[name]:.3g}" for name in columns)] for n, each in enumerate(row["epochs"])]
    lines = _table(["epoch", *(_EPOCH[name] for name in columns)], rows)
    lines += ["", f"200 epochs of MNF+CSC on UCF51 (4,892 clips) at this rate: {row['hours_of_ucf51']:.1f} hours."]
    if "clips_per_s" in found.get("evaluation", {}):
        lines += [f"Evaluation: {found['evaluation']['clips_per_s']:.0f} clips/s."]
    return lines


_EPOCH = {
    "seconds": "s",
    "loss": "loss",
    "val_accuracy": "accuracy (val)",
    "clips_per_second": "clips/s",
    "waiting_share": "share of time waiting for data",
    "flop_utilisation": "share of the peak FLOP/s",
}
