"""docs/robustness.md from what the tests of faults recorded: python -m tests.faults.table

Of a fault that was tried in several runs the last one counts.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.record import FOLDER

PAGE = Path(__file__).resolve().parents[2] / "docs" / "robustness.md"
# Headings of the topics, in their order, and what holds of all that is tried under them.
TOPICS = {
    "crash": (
        "Crashes",
        "The embedded suite at tiny settings, from made videos to the report. Afterwards every file is compared with "
        "that of an undisturbed run, byte by byte.",
    ),
    "disk": ("Full disks", "Each stage ends with one line that names the file and the room; what was there stays."),
    "tracker": ("The tracker away", "Training goes on; what MLflow did not get is sent later, once."),
    "together": ("Several at once", "Each ends well, or says in one line who is before it."),
    "params": ("Mistakes in params", "One line that names the key and the nearest valid choice, before any work."),
    "files": (
        "Damaged files",
        "Bits turned over, ends cut off, blocks of zeros, other files in their place: an error that names the file, or "
        "what was there before. Never a wrong result, a hang, or code that runs.",
    ),
    "load": ("Load", "The served student under many requests at once."),
}


def main() -> None:
    """Write the page."""
    lines = [
        "# What was tried, and what was lost",
        "",
        "`make test-faults` tries all of this; `python -m tests.faults.table` makes this page of what it found.",
    ]
    for topic, (title, remark) in TOPICS.items():
        file = FOLDER / f"{topic}.jsonl"
        if not file.exists():
            lines += ["", f"## {title}", "", f"{remark} Not recorded yet."]
            continue
        rows = {row["tried"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
        lines += ["", f"## {title}", "", remark, "", "| tried | times | lost | |", "|---|---:|---|---|"]
        lines += [f"| {row['tried']} | {row['times']} | {row['lost']} | {row['note']} |" for row in rows.values()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
