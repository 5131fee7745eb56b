"""The linear layer on a teacher's features, what it is fitted on, and that what is distilled is out of fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_arrays
from avdistill.data.folds import folds_of
from avdistill.data.index import read_index, write_index
from avdistill.data.loader import ClipSet
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import start
from avdistill.training.heads import fit_linear, out_of_fold
from avdistill.training.task import task_of
from avdistill.training.teachers import teacher_tables, training_clips
from models.outputs import TeacherBatch
from stages import teacher_head
from tests.helpers.teaching import stage


def noise(clips: int = 120, width: int = 60, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Features that know nothing of the labels, in groups of three clips."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(clips, width, generator=random)
    labels = torch.randint(classes, (clips,), generator=random)
    return features, labels, np.array([f"g{number // 3}" for number in range(clips)])


def test_the_layer_is_that_of_an_independent_solver() -> None:
    features, labels, _ = noise()
    features[:, 0] += labels
    weight, bias = fit_linear(features, labels, 4, 0.05)
    mean, std = features.mean(0), features.std(0)
    theirs = LogisticRegression(C=1 / (0.05 * len(labels)), tol=1e-8, max_iter=5000)
    theirs.fit(((features - mean) / std).numpy(), labels.numpy())
    ours = (features @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(ours, theirs.predict_proba(((features - mean) / std).numpy()), atol=2e-3)


def test_in_sample_a_layer_knows_the_labels_of_noise_and_out_of_fold_it_does_not() -> None:
    features, labels, groups = noise()
    weight, bias = fit_linear(features, labels, 4, 1e-3)
    in_sample = ((features @ weight.T + bias).argmax(1) == labels).float().mean()
    logits = out_of_fold(features, labels, groups, 4, 1e-3, 5)
    unseen = (logits.argmax(1) == labels).float().mean()
    assert in_sample > 0.9 and unseen < 0.45


def test_no_clip_is_judged_by_a_layer_that_saw_its_group() -> None:
    features, labels, groups = noise(30)
    before = out_of_fold(features, labels, groups, 4, 1e-2, 5)
    own = groups == groups[4]
    changed = features.clone()
    labels_changed = labels.clone()
    labels_changed[torch.from_numpy(own)] = (labels[torch.from_numpy(own)] + 1) % 4
    after = out_of_fold(changed, labels_changed, groups, 4, 1e-2, 5)
    fold = folds_of(groups, 5)
    same = fold == fold[4]
    torch.testing.assert_close(after[torch.from_numpy(same)], before[torch.from_numpy(same)], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[torch.from_numpy(~same)], before[torch.from_numpy(~same)], atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(2, 6))
def test_groups_stay_whole_and_folds_are_as_many_as_asked(names: list[str], folds: int) -> None:
    groups = np.array(names)
    found = folds_of(groups, folds)
    assert all(len(set(found[groups == name])) == 1 for name in set(names))
    assert set(found) == set(range(min(folds, len(set(names)))))


def test_the_real_ucf51_audio_features(shared_data: Path) -> None:
    """In sample 80 % of the clips are right, and 47 % of the test clips; out of fold looks like the latter.

    Out of fold on 12 classes, in a quarter of the time: 87 % in sample there."""
    with np.load(shared_data / "features/ucf51_cnn14_emb512.npz") as stored:
        subset, names = stored["subset"].astype(str), stored["video"].astype(str)
        classes, numbers = np.unique(stored["label"].astype(str), return_inverse=True)
        features, labels = torch.from_numpy(stored["feature"]), torch.from_numpy(numbers)
    assert len(classes) == 51
    train, test = (torch.from_numpy(subset == name) for name in ("training", "validation"))

    def accuracies(chosen: torch.Tensor) -> list[float]:
        weight, bias = fit_linear(features[train & chosen], labels[train & chosen], int(labels[chosen].max()) + 1, 1e-2)
        right = (features @ weight.T + bias).argmax(1) == labels
        return [float(right[rows & chosen].float().mean()) for rows in (train, test)]

    assert accuracies(labels < 51) == pytest.approx([0.80, 0.47], abs=0.01)
    few = train & (labels < 12)
    groups = np.array([name.rpartition("_c")[0] for name in names[few]])
    unseen = out_of_fold(features[few], labels[few], groups, 12, 1e-2, 5).argmax(1) == labels[few]
    in_sample, of_test = accuracies(labels < 12)
    out_of_group = float(unseen.float().mean())
    assert out_of_group == pytest.approx(of_test, abs=0.06) and in_sample > of_test + 0.2
    assert in_sample > 0.85 and out_of_group < in_sample - 0.2


def training_on(tiny: Params, groups: int | None) -> Params:
    """The suite with students that train on some groups of each class, sampled for each seed, or on all."""
    change = {"train_groups": groups, "resample": True if groups else None}
    recipes = {name: recipe.model_copy(update=change) for name, recipe in tiny.recipes.items()}
    return tiny.model_copy(update={"recipes": recipes})


def tables_of(params: Params, seed: int, folder: Path) -> tuple[TeacherBatch, ClipSet]:
    """The audio teacher's table for the training clips of a seed."""
    with start("train", "kd", params) as tracked:
        task = task_of(params, "kd", seed, "cpu", folder, tracked)
    clips = training_clips(task)
    return teacher_tables(task, clips, torch.device("cpu"))["A"], clips


def relabel(params: Params, changed: set[str]) -> None:
    """Give some training clips the label of the next class."""
    file = params.index("avsynth")
    index = read_index(file)
    label = index["label"].where(~index["id"].isin(changed), (index["label"] + 1) % (index["label"].max() + 1))
    write_index(file, index.assign(given=label))


def test_a_head_sees_no_label_but_those_that_the_student_is_given(tiny: Params, tmp_path: Path) -> None:
    """A head that was fitted on more clips would hand the labels of those on to the student."""
    params = training_on(tiny, 1)
    relabel(params, set())
    before, clips = tables_of(params, 0, tmp_path)
    index = read_index(params.index("avsynth"))
    others = set(index.loc[index["split"] == "train", "id"]) - set(clips.ids)
    assert others and len(clips)
    relabel(params, others)
    after, _ = tables_of(params, 0, tmp_path)
    assert torch.equal(before.logits, after.logits) and torch.equal(before.feature, after.feature)
    relabel(params, set(clips.ids[:3]))
    changed, _ = tables_of(params, 0, tmp_path)
    assert not torch.equal(before.logits, changed.logits)


def test_students_that_train_on_all_clips_have_the_head_of_the_stage(tiny: Params, tmp_path: Path) -> None:
    params = training_on(tiny, None)
    teacher_head.main(stage(params, "teacher_head", params.jobs["kd"].A))
    of_the_stage, _ = tables_of(params, 0, tmp_path)
    groups = read_index(params.index("avsynth")).groupby("label")["group"].nunique().max()
    same_clips, _ = tables_of(training_on(tiny, int(groups)), 0, tmp_path)
    torch.testing.assert_close(of_the_stage.logits[of_the_stage.mask], same_clips.logits[same_clips.mask])


def test_a_teacher_that_knows_no_training_clip_names_the_run(tiny: Params, tmp_path: Path) -> None:
    params = training_on(tiny, 1)
    path = params.path("teacher_features", params.jobs["kd"].A) / "features.npz"
    stored = read_arrays(path, ("*",))
    write_arrays(path, **(stored | {"mask": np.zeros_like(stored["mask"])}))
    with pytest.raises(UserError, match=r"jobs\.kd\.runs\.kd: .* knows none of the training clips of seed 0"):
        tables_of(params, 0, tmp_path)
