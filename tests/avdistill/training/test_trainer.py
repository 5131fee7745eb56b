from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_arrays
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import start
from avdistill.training.task import task_of
from avdistill.training.tensors import save_tensors
from avdistill.training.trainer import Trainer, load_first_weights
from models.students import build_student


def trainer(params: Params, folder: Path, seed: int = 0, init: str = "none") -> Trainer:
    job = params.jobs["uni_modal"].model_copy(update={"init": init})
    params = params.model_copy(update={"jobs": params.jobs | {"uni_modal": job}})
    with start("train", "uni_modal", params) as tracked:
        return Trainer(task_of(params, "uni_modal", seed, "cpu", folder, tracked))


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


def test_seeds_have_the_draws_of_their_teachers_and_first_weights_in_turn(tiny: Params, tmp_path: Path) -> None:
    drawn = {name: tiny.teachers[name].model_copy(update={"draws": 2}) for name in ("audio", "motion")}
    params = tiny.model_copy(update={"teachers": tiny.teachers | drawn})
    job = params.jobs["mnf_csc"].model_copy(update={"init": "motion", "seeds": (4, 5, 6)})
    params = params.model_copy(update={"jobs": params.jobs | {"mnf_csc": job}})
    recipe = params.recipes["small"].model_copy(update={"train_groups": None, "resample": None})
    params = params.model_copy(update={"recipes": params.recipes | {"small": recipe}})
    features = params.path("teacher_features", job.A)
    weights, head = params.path("teachers", "motion"), params.path("teacher_head", job.A)
    arrays, logits = read_arrays(features / "features.npz"), read_arrays(head / "logits.npz")
    write_arrays(features / "draw-1/features.npz", **arrays | {"features": arrays["features"] + 1})
    write_arrays(head / "draw-1/logits.npz", **logits | {"logits": logits["logits"] + 2})
    starts = []
    for draw, folder in enumerate((weights, weights / "draw-1")):
        torch.manual_seed(draw)
        folder.mkdir(parents=True, exist_ok=True)
        starts.append(build_student(recipe.student, 12, recipe.width).state_dict())
        save_tensors(folder / "weights.pt", starts[draw])
    with start("train", "mnf_csc", params) as tracked:
        found = {seed: Trainer(task_of(params, "mnf_csc", seed, "cpu", tmp_path, tracked)) for seed in job.seeds}
    for seed, draw in ((4, 0), (5, 1), (6, 0)):
        assert torch.equal(found[seed].student.state_dict()["stem.0.weight"], starts[draw]["stem.0.weight"])
        known, first = found[seed].teachers["A"], found[4].teachers["A"]
        assert torch.equal(known.feature, first.feature + draw) and torch.equal(known.logits, first.logits + 2 * draw)


def test_missing_first_weights_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights\.pt: missing"):
        load_first_weights(build_student("r2plus1d_10_small", 3, 1 / 64), tmp_path / "weights.pt")


def test_each_seed_trains_on_its_own_groups(tiny: Params, tmp_path: Path) -> None:
    recipe = tiny.recipes["small"].model_copy(update={"train_groups": 1, "resample": True})
    resampled = tiny.model_copy(update={"recipes": tiny.recipes | {"small": recipe}})
    groups = {frozenset(trainer(resampled, tmp_path, seed).clips.rows["group"]) for seed in range(8)}
    assert len(groups) == 2
