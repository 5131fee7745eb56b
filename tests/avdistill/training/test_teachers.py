"""Shuffled teachers: all outputs of a clip are those of one training clip of another class, and only in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from avdistill.config.schema import Params
from avdistill.data.index import read_index, write_index
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import start
from avdistill.training.task import task_of
from avdistill.training.teachers import rows_of_other_classes, rows_within_class, shuffled
from avdistill.training.trainer import Trainer
from models.outputs import TeacherBatch
from stages.evaluate import evaluate_one

LABELS = st.lists(st.integers(0, 5), min_size=2, max_size=60)


@settings(max_examples=300, deadline=None)
@given(LABELS, st.integers(0, 2**31 - 1))
def test_every_clip_gets_a_row_of_another_class(classes: list[int], seed: int) -> None:
    assume(len(set(classes)) > 1)
    labels = torch.tensor(classes)
    rows = rows_of_other_classes(labels, seed)
    assert rows.dtype == torch.int64 and rows.shape == labels.shape
    assert not (labels[rows] == labels).any()
    assert torch.equal(rows, rows_of_other_classes(labels, seed))
    if 2 * max(Counter(classes).values()) <= len(classes):
        assert sorted(rows.tolist()) == list(range(len(classes))), "a permutation, where there is one"


def test_one_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="two classes or more"):
        rows_of_other_classes(torch.tensor([3, 3, 3]), 0)


def test_seeds_differ_and_all_other_classes_are_met() -> None:
    """Of 10 classes, each meets all others about as often: the rows tell nothing of a class but that it is not it."""
    labels = torch.arange(1000) % 10
    met = np.zeros((10, 10))
    for seed in range(20):
        rows = rows_of_other_classes(labels, seed)
        np.add.at(met, (labels.numpy(), labels[rows].numpy()), 1)
    others = met[~np.eye(10, dtype=bool)]
    assert not met.diagonal().any()
    assert others.mean() == pytest.approx(2000 / 9)
    assert np.abs(others - others.mean()).max() < 5 * np.sqrt(others.mean())
    assert not torch.equal(rows, rows_of_other_classes(labels, 0))


@settings(max_examples=30, deadline=None)
@given(LABELS, st.integers(0, 9))
def test_all_outputs_of_all_teachers_stay_together(classes: list[int], seed: int) -> None:
    assume(len(set(classes)) > 1)
    number = torch.arange(len(classes))
    tables = {
        letter: TeacherBatch(
            (number + start)[:, None].float(), (number + start)[:, None], number % 3 > 0, ((number + start)[:, None],)
        )
        for letter, start in (("A", 0), ("I", 100))
    }
    rows = rows_of_other_classes(torch.tensor(classes), seed)
    for letter, table in shuffled(tables, torch.tensor(classes), seed, "other_class").items():
        for ours, theirs in zip(
            (*table[:3], *table.blocks), (*tables[letter][:3], *tables[letter].blocks), strict=True
        ):
            assert torch.equal(ours, theirs[rows])


@settings(max_examples=30, deadline=None)
@given(LABELS, st.integers(0, 9))
def test_within_a_class_every_clip_keeps_its_class(classes: list[int], seed: int) -> None:
    labels = torch.tensor(classes)
    rows = rows_within_class(labels, seed)
    assert sorted(rows.tolist()) == list(range(len(classes)))
    assert torch.equal(labels[rows], labels)
    assert torch.equal(rows, rows_within_class(labels, seed))


def test_within_a_class_what_a_clip_gets_is_independent_of_what_it_has() -> None:
    own = [int(rows_within_class(torch.zeros(5, dtype=torch.long), seed)[0]) for seed in range(500)]
    assert min(own.count(row) for row in range(5)) > 70


def trainer(params: Params, folder: Path, shuffle: bool, seed: int = 0) -> Trainer:
    run = params.jobs["mnf_csc"].runs["mnf_csc"].model_copy(update={"shuffled": "other_class" if shuffle else None})
    job = params.jobs["mnf_csc"].model_copy(update={"runs": {"mnf_csc": run}})
    params = params.model_copy(update={"jobs": params.jobs | {"mnf_csc": job}})
    with start("train", "mnf_csc", params) as tracked:
        return Trainer(task_of(params, "mnf_csc", seed, "cpu", folder, tracked))


def test_a_shuffled_run_trains_on_the_outputs_of_other_clips(tiny: Params, tmp_path: Path) -> None:
    plain, ours = (trainer(tiny, tmp_path / str(flag), flag) for flag in (False, True))
    rows = rows_of_other_classes(ours.clips.labels, 0)
    for name in ("feature", "logits", "mask"):
        assert torch.equal(getattr(ours.teachers["A"], name), getattr(plain.teachers["A"], name)[rows])
    for name, value in plain.student.state_dict().items():
        assert torch.equal(value, ours.student.state_dict()[name]), "the same first weights"
    ours.fit(1)
    plain.fit(1)
    assert ours.history[0]["loss_contrast"] != plain.history[0]["loss_contrast"]
    assert not torch.equal(trainer(tiny, tmp_path / "other", True, 1).teachers["A"].feature, ours.teachers["A"].feature)


def test_two_and_two_epochs_of_a_shuffled_run_are_four(tiny: Params, tmp_path: Path) -> None:
    whole = trainer(tiny, tmp_path / "whole", True)
    whole.fit(4)
    trainer(tiny, tmp_path / "halves", True).fit(2)
    resumed = trainer(tiny, tmp_path / "halves", True)
    resumed.fit(4)
    assert resumed.history == whole.history


def test_evaluation_takes_the_clips_own_outputs(tiny: Params, tmp_path: Path) -> None:
    """The scores of a student and its distiller do not depend on how they were trained."""
    found = []
    for flag in (False, True):
        task = trainer(tiny, tmp_path, flag).task
        path = task.student.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        model = trainer(tiny, tmp_path, False)
        state = {"student": model.student.state_dict(), "distiller": model.distiller.state_dict()}
        torch.save({"run": "mnf_csc", "seed": 0, "converged": True, "epoch": 1, **state}, path)
        found.append(evaluate_one(task, False)["scores"])
    assert len(found[0]) and found[0].equals(found[1])


def test_training_clips_of_one_class_name_the_run(tiny: Params, tmp_path: Path) -> None:
    file = tiny.index("avsynth")
    index = read_index(file)
    write_index(
        file, index.assign(split=index["split"].where((index["label"] == 0) | (index["split"] != "train"), "val"))
    )
    with pytest.raises(UserError, match=r"jobs\.mnf_csc\.runs\.mnf_csc: shuffled needs .* two classes") as caught:
        trainer(tiny, tmp_path, True)
    assert "\n" not in str(caught.value)
