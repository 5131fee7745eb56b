from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import start
from avdistill.training.tensors import save_tensors
from avdistill.training.trainer import Task, Trainer, load_first_weights
from models.students import build_student


def trainer(params: Params, folder: Path, seed: int = 0, init: str = "none") -> Trainer:
    job = params.jobs["uni_modal"].model_copy(update={"init": init})
    params = params.model_copy(update={"jobs": params.jobs | {"uni_modal": job}})
    with start("train", "uni_modal", params) as tracked:
        return Trainer(Task(params, "uni_modal", "uni_modal", seed, "cpu", folder, tracked))


def test_students_start_from_all_weights_but_the_last_layer(tiny: Params, tmp_path: Path) -> None:
    recipe = tiny.recipes["small"]
    torch.manual_seed(7)
    trained = build_student(recipe.student, 12, recipe.width)
    path = tiny.path("teachers", "motion") / "weights.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, trained.state_dict())
    fresh, ours = (trainer(tiny, tmp_path, init=init).student.state_dict() for init in ("none", "motion"))
    for name, value in trained.state_dict().items():
        expected = fresh[name] if name.startswith("fc.") else value
        assert torch.equal(ours[name], expected), name


def test_missing_first_weights_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.pt: missing"):
        load_first_weights(build_student("r2plus1d_10_small", 3, 1 / 64), tmp_path / "weights.pt")


def test_each_seed_trains_on_its_own_groups(tiny: Params, tmp_path: Path) -> None:
    recipe = tiny.recipes["small"].model_copy(update={"train_groups": 1, "resample": True})
    resampled = tiny.model_copy(update={"recipes": tiny.recipes | {"small": recipe}})
    groups = {frozenset(trainer(resampled, tmp_path, seed).clips.rows["group"]) for seed in range(8)}
    assert len(groups) == 2
