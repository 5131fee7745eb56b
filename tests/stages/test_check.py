"""The files that other stages depend on: one for each section and entry, and a change alters those alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdistill.config.loading import load
from avdistill.pipeline.stage import Stage
from avdistill.tracking.journal import start
from stages.check import main
from tests.helpers.whole import whole_suite


def written(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the stage makes of a params file, by path under check/."""
    raw["suite"]["out"] = str(folder / "out")
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    params = load(folder / "params.yaml")
    with start("check", None, params) as run:
        main(Stage("check", None, params, run))
    made = folder / "out/check"
    return {str(path.relative_to(made)): json.loads(path.read_text()) for path in made.rglob("*.json")}


@pytest.fixture
def raw(root: Path) -> dict[str, Any]:
    return whole_suite(root)


def test_each_entry_has_a_file_with_all_its_values(raw: dict[str, Any], tmp_path: Path) -> None:
    found = written(raw, tmp_path)
    assert set(found) >= {f"{section}.json" for section in raw}
    assert {f"jobs/{name}.json" for name in raw["jobs"]} == {name for name in found if name.startswith("jobs/")}
    assert found["recipes/small.json"]["lr"] == raw["recipes"]["small"]["lr"]
    assert found["recipes/small.json"]["momentum"] == 0.9, "a default"
    assert "mirror" not in found["teachers/audio.json"], "what is not set"
    assert found["datasets/avsynth/split.json"] == raw["datasets"]["avsynth"]["split"]


def test_a_change_alters_the_files_of_what_was_changed(raw: dict[str, Any], tmp_path: Path) -> None:
    before = written(raw, tmp_path)
    raw["datasets"]["avsynth"]["split"]["seed"] = 5
    raw["jobs"]["kd"]["seeds"] = [4]
    raw["report"]["cost"] = ["kd"]
    after = written(raw, tmp_path)
    assert {name for name in before if before[name] != after[name]} - {"suite.json"} == {
        "datasets.json",
        "datasets/avsynth.json",
        "datasets/avsynth/split.json",
        "jobs.json",
        "jobs/kd.json",
        "report.json",
        "report/cost.json",
    }


def test_shuffled_alters_the_job_that_has_it(raw: dict[str, Any], tmp_path: Path) -> None:
    before = written(raw, tmp_path)
    run = raw["jobs"]["fitnet"]["runs"]["fitnet-A"]
    assert "shuffled" not in before["jobs/fitnet.json"]["runs"]["fitnet-A"]
    run["shuffled"] = None
    assert written(raw, tmp_path) == before
    run["shuffled"] = "other_class"
    after = written(raw, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"jobs.json", "jobs/fitnet.json"}
    assert after["jobs/fitnet.json"]["runs"]["fitnet-A"]["shuffled"] == "other_class"


def test_what_is_no_longer_there_has_no_file(raw: dict[str, Any], tmp_path: Path) -> None:
    written(raw, tmp_path)
    del raw["noise_mixes"]["avsynth_10db"], raw["features"]["avsynth_audio_10db"], raw["jobs"]["noise_10db"]
    raw["studies"]["noise"]["jobs"].remove("noise_10db")
    for curve in raw["report"]["figures"]["noise"].values():
        del curve["10"]
    del raw["report"]["settings"]["noise_10db"]
    found = written(raw, tmp_path)
    assert "noise_mixes/avsynth_0db.json" in found and "noise_mixes/avsynth_10db.json" not in found
