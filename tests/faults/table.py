"""docs/robustness.md from what the tests of faults recorded: python -m tests.faults.table

If a fault was tested in several runs, the last one counts.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.record import FOLDER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
# Title and summary of each topic, in the order of the page.
TOPICS = {
    "crash": (
        "Crashes",
        "The embedded suite runs at tiny settings, from generated videos to the report. Afterwards every "
        "file is compared, byte by byte, with that of an undisturbed run.",
    ),
    "operations": (
        "Every operation on files",
        "Each open, write, rename, unlink, mkdir of a stage fails once (ENOSPC and EIO in turn) and ends the process "
        "once, half of a write being done; then the stage runs again, and every file is that of an undisturbed run. Of "
        "several operations in a row on one file the first, the middle and the last are tried, and of these at most 24 "
        "per stage, at equal distances; `make test-faults ALL=1` tries all.",
    ),
    "disk": (
        "Full disks",
        "Each stage ends with one line that names the file and the free space. Existing outputs stay.",
    ),
    "tracker": (
        "Tracker unreachable",
        "Training continues. What MLflow did not receive is sent later, exactly once.",
    ),
    "together": (
        "Several processes at once",
        "Each process finishes, or ends with one line that names the process that holds the lock.",
    ),
    "params": (
        "Mistakes in params",
        "The command ends before any work, with one line that names the key and the nearest valid choice.",
    ),
    "files": (
        "Damaged files",
        "Flipped bits, truncated files, blocks of zeros, files swapped with others. The result is an "
        "error that names the file, or the same output as before: never a wrong result, a hang, or code "
        "that runs.",
    ),
    "load": (
        "Load",
        "The served student gets many requests at once.",
    ),
}


def main() -> None:
    """Write the page."""
    lines = [
        "# Faults that were tested, and the data loss",
        "",
        "This page shows which faults the pipeline survives, how often each was tested, and which data was lost.",
        "",
        "```sh",
        "make test-faults                       # run the tests of faults and write this page",
        "python -m tests.faults.table           # write this page from their records",
        "```",
    ]
    for topic, (title, remark) in TOPICS.items():
        file = FOLDER / f"{topic}.jsonl"
        if not file.exists():
            lines += ["", f"## {title}", "", f"{remark} Not recorded yet."]
            continue
        rows = {row["tried"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
        lines += ["", f"## {title}", "", remark, "", "| tried | times | data loss | |", "|---|---:|---|---|"]
        lines += [f"| {row['tried']} | {row['times']} | {row['lost']} | {row['note']} |" for row in rows.values()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
