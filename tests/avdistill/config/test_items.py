"""One table of the items of stages serves graph, journals and digests of code."""

from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.items import ITEMS, dataset_of
from avdistill.config.loading import load


@pytest.mark.parametrize("suite", ["params.yaml", "own/params.yaml", "paper/params.yaml"])
def test_the_dataset_of_an_item(root: Path, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    params = load(suite)
    for stage, section in ITEMS.items():
        for item in getattr(params, section) if section else [None]:
            found = dataset_of(stage, item, params)
            if section in ("datasets", "exports"):
                assert found == item
            elif section in ("", "teachers"):
                assert found is None
            else:
                assert found == getattr(params, section)[item].dataset
    assert dataset_of("ablation", "delta", params) is dataset_of("train", "no such job", params) is None
