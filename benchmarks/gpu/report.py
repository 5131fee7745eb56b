"""Findings of a part of the run, written as they come."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from avdistill.data.files import write_json
from benchmarks import harness


class Report:
    """The JSON file `<folder>/<part>.json`, written anew with each finding; `seconds` are those that the part has."""

    def __init__(self, folder: Path, part: str, seconds: float) -> None:
        self.folder, self.part, self.until = folder, part, time.monotonic() + seconds
        self.found: dict[str, dict[str, Any]] = {}
        self.about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": harness.machine()}

    def left(self) -> float:
        """Return the seconds that are left to the part."""
        return self.until - time.monotonic()

    def add(self, name: str, **values: Any) -> None:
        """Keep a finding, and print it on one line."""
        self.found[name] = values
        write_json(self.folder / f"{self.part}.json", {**self.about, "found": self.found})
        print(f"{self.part}: {name}: {json.dumps(values, default=str)}"[:300], file=sys.stderr, flush=True)

    def attempt(self, name: str, function: Callable[[], dict[str, Any]], need: float = 3.0) -> None:
        """Add what `function` returns; or `error` if it raises, or `skipped` if fewer than `need` seconds are left."""
        if self.left() < need:
            self.add(name, skipped="no time left")
            return
        try:
            self.add(name, **function())
        except Exception as error:  # noqa: BLE001 - the next one can still be measured
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            self.add(name, error=text, where=f"{Path(where.filename).name}:{where.lineno}")


def read(folder: Path, part: str) -> dict[str, Any]:
    """Read what a part has found; empty if it has not run."""
    file = folder / f"{part}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found
