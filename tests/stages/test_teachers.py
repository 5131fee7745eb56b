"""The draws of a teacher that is trained here: each is the teacher of another seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from avdistill.config.schema import Params
from stages import teachers
from tests.helpers.teaching import stage, suite

NETWORKS = {
    "cnn14": {"width": 1 / 16, "embedding": 8},
    "resnet10": {"width": 1 / 16},
    "r2plus1d_10_small": {"width": 1 / 16},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little material, and one thread: two would wait for each other on a machine that runs other tests, too."""
    monkeypatch.setattr(teachers, "HELD_OUT", 8)
    monkeypatch.setattr(teachers, "SECONDS", 0.4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def params_of(folder: Path, kind: str, **more: Any) -> Params:
    entry = {"kind": kind, "weights": "avsynth", "examples": 32, "epochs": 1, **NETWORKS[kind], **more}
    return suite(folder, teachers={"t": entry})


def run(params: Params) -> Any:
    """Run the stage; return what was logged."""
    execution = stage(params, "teachers", "t")
    teachers.main(execution)
    return execution.run.calls  # type: ignore[attr-defined]


def files(params: Params) -> dict[str, bytes]:
    folder = params.path("teachers", "t")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_draw_is_the_teacher_of_a_later_seed(tmp_path: Path, kind: str) -> None:
    calls = run(drawn := params_of(tmp_path / "drawn", kind, seed=5, draws=2))
    found, expected = files(drawn), {}
    for draw, folder in enumerate(("", "draw-1/")):
        run(alone := params_of(tmp_path / str(draw), kind, seed=5 + draw))
        assert set(files(alone)) == {"weights.pt", "teacher.json"}, "one draw has the files that there were before"
        expected |= {folder + name: content for name, content in files(alone).items()}
    assert found == expected
    assert found["weights.pt"] != found["draw-1/weights.pt"]
    described = [json.loads(found[f"{folder}teacher.json"]) for folder in ("", "draw-1/")]
    assert all({"feature_dim", "loss", "held_out_accuracy"} <= set(each) for each in described)
    logged = [set(args[0]) for name, args, _ in calls if name == "log_metrics"]
    assert logged == [{"loss", "held_out_accuracy"}, {"draw-1/loss", "draw-1/held_out_accuracy"}]


def test_an_interrupted_stage_goes_on_with_the_next_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(whole := params_of(tmp_path / "whole", "resnet10", draws=3))
    again, pretrain, seeds = params_of(tmp_path / "again", "resnet10", draws=3), teachers.pretrain, []

    def interrupted(teacher: Any, device: str) -> Any:
        seeds.append(teacher.seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return pretrain(teacher, device)

    monkeypatch.setattr(teachers, "pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    assert not again.path("teachers", "t").exists()
    run(again)
    assert seeds == [0, 1, 1, 2]
    assert files(again) == files(whole)
