"""What the tests of faults have tried, how often, and what was lost: the lines behind docs/robustness.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "out" / "faults"


def count(default: int) -> int:
    """How often a fault is tried: `default`, or what the environment's FAULTS says, for a quick look."""
    return min(default, int(os.environ.get("FAULTS") or default))


def record(topic: str, tried: str, times: int, lost: str = "none", note: str = "") -> None:
    """Append a line to out/faults/<topic>.jsonl."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"topic": topic, "tried": tried, "times": times, "lost": lost, "note": note})
    with (FOLDER / f"{topic}.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
