"""The suite `findings/` in place of the embedded one: it has every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def whole_suite(root: Path) -> dict[str, Any]:
    """Return the params of `findings/` under the name and paths of the embedded suite.

    It has the seeds 0 to 2, and one draw of each teacher."""
    raw: dict[str, Any] = yaml.safe_load((root / "findings" / "params.yaml").read_text(encoding="utf-8"))
    embedded = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for job in raw["jobs"].values():
        job["seeds"] = [0, 1, 2]
    for teacher in raw["teachers"].values():
        teacher.pop("draws", None)
    return raw | {"suite": embedded["suite"], "exports": embedded["exports"]}
