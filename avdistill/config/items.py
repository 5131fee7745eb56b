"""Which section of params has the items of a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avdistill.config.schema import Params

# Section of params whose entries are the items of a stage; empty for a stage that runs once per suite.
ITEMS = {
    "check": "",
    "download": "datasets",
    "split": "datasets",
    "frames": "frames",
    "spectrogram": "datasets",
    "mix_noise": "noise_mixes",
    "teachers": "teachers",
    "teacher_features": "features",
    "teacher_head": "features",
    "train": "jobs",
    "evaluate": "jobs",
    "export": "exports",
    "cost": "",
    "figures": "",
    "report": "",
}


def dataset_of(stage: str, item: str | None, params: Params) -> str | None:
    """Return the dataset of a stage's item; None for an item of no single dataset (a teacher, the report)."""
    section = ITEMS.get(stage)
    if not section or item is None:
        return None
    if section in ("datasets", "exports"):
        return item
    entry = getattr(params, section).get(item)
    return getattr(entry, "dataset", None)
