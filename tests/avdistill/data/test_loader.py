from __future__ import annotations

import numpy as np
import pytest
import torch

from avdistill.config.schema import Params, Recipe
from avdistill.data import loader
from avdistill.data.files import read_arrays, write_arrays
from avdistill.data.index import read_index, write_index
from avdistill.data.loader import (
    ClipSet,
    EpochSampler,
    centre_crop,
    random_crop,
    take_window,
    to_input,
    training_loader,
)
from avdistill.pipeline.errors import UserError


def clip_set(params: Params, *splits: str, groups: int | None = None, sample: int | None = None) -> ClipSet:
    index, store = params.index("avsynth"), params.path("frames", "avsynth")
    return ClipSet(index, store, splits, groups, sample)


def test_batches_do_not_depend_on_the_number_of_workers(tiny: Params) -> None:
    clips, recipe = clip_set(tiny, "train"), tiny.recipes["small"]
    seen = {}
    for workers in (0, 1, 3):
        batches, sampler = training_loader(clips, recipe.model_copy(update={"loader_workers": workers}), seed=5)
        seen[workers] = []
        for sampler.epoch in (0, 1):
            seen[workers].append([tuple(batch) for batch in batches])
    for workers in (1, 3):
        for epoch, reference in zip(seen[workers], seen[0], strict=True):
            for batch, expected in zip(epoch, reference, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    first, second = (torch.cat([b[2] for b in epoch]) for epoch in seen[0])
    assert not torch.equal(first, second), "every epoch has an order of its own"


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_that_a_method_could_draw(tiny: Params, workers: int) -> None:
    """Else what is drawn in an epoch would depend on whether its workers were started in it, as after a resume."""
    recipe = tiny.recipes["small"].model_copy(update={"loader_workers": workers})
    batches, _ = training_loader(clip_set(tiny, "train"), recipe, seed=5)
    windows = loader.EvaluationWindows(clip_set(tiny, "test"), recipe)
    before = torch.get_rng_state()
    for _ in range(2):
        assert list(batches) and list(windows)
        assert torch.equal(torch.get_rng_state(), before)
    loader.end_workers(batches)
    loader.end_workers(windows.loader)


def test_windows_of_evaluation_do_not_depend_on_workers_or_batches(tiny: Params) -> None:
    clips, recipe = clip_set(tiny, "test"), tiny.recipes["small"].model_copy(update={"frames": 2, "stride": 1})
    found = []
    for workers, batch in ((0, 1000), (0, 3), (1, 3), (1, 3)):
        read = loader.EvaluationWindows(clips, recipe.model_copy(update={"loader_workers": workers}), batch)
        for _ in range(2):
            pairs = list(read)
            assert all(len(windows) == len(rows) == batch for windows, rows in pairs[:-1])
            found.append([torch.cat(parts) for parts in zip(*pairs, strict=True)])
        loader.end_workers(read.loader)
    windows, rows = found[0]
    assert rows.tolist() == sorted(rows.tolist()) and windows.shape[1:] == (2, recipe.size, recipe.size, 3)
    assert all(torch.equal(each[0], windows) and torch.equal(each[1], rows) for each in found)
    first = centre_crop(take_window(clips.store[clips.ids[0]], 1, 2), recipe.size)
    assert torch.equal(windows[1], torch.from_numpy(np.array(first)))


def test_the_order_covers_every_clip_once_and_drops_the_incomplete_batch() -> None:
    sampler = EpochSampler(size=10, batch=4, seed=0)
    batches = list(sampler)
    assert [len(batch) for batch in batches] == [4, 4] and len(sampler) == 2
    assert len({row for batch in batches for _, row in batch}) == 8
    assert [len(batch) for batch in EpochSampler(size=3, batch=4, seed=0)] == [3]


def test_windows_are_consecutive_frames_and_short_clips_repeat() -> None:
    data = np.arange(5)
    assert take_window(data, 1, 3).tolist() == [1, 2, 3]
    assert take_window(data, 0, 8).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_random_crop_stays_inside_and_is_the_same_for_all_frames() -> None:
    recipe = Recipe(size=16, flip=True)
    frame = np.random.default_rng(0).integers(1, 256, (1, 30, 40, 3), dtype=np.uint8)
    window = np.repeat(frame, 3, axis=0)
    for seed in range(50):
        crop = random_crop(window, recipe, np.random.default_rng(seed))
        assert crop.shape == (3, 16, 16, 3) and crop.dtype == np.uint8
        assert np.array_equal(crop[0], crop[1]) and np.array_equal(crop[0], crop[2])
        assert crop.min() >= 1, "a pixel from outside would be 0"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [(0.3, 0.8), (1.0, 1.0)])
def test_a_flip_mirrors_the_crop_and_leaves_the_window_as_it_was(scale: tuple[float, float]) -> None:
    window = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    window.flags.writeable = False  # as a view of a store is
    mirrored = set()
    for seed in range(20):
        plain, ours = (
            random_crop(window, Recipe(size=16, scale=scale, ratio=(1, 1), flip=flip), np.random.default_rng(seed))
            for flip in (False, True)
        )
        mirrored.add(not np.array_equal(ours, plain))
        assert np.array_equal(ours, plain[:, :, ::-1] if not np.array_equal(ours, plain) else plain)
    assert mirrored == {False, True}


def test_the_area_of_random_crops_is_drawn_from_scale() -> None:
    # Each pixel holds its own column, so the spread of a crop tells its width.
    window = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, None, :, None], (1, 200, 200, 3))
    recipe = Recipe(size=100, scale=(0.25, 0.25), ratio=(1, 1), flip=False)
    for seed in range(20):
        crop = random_crop(window, recipe, np.random.default_rng(seed))
        assert abs(int(crop.max()) - int(crop.min()) - 99) <= 1


def test_the_centre_crop_is_the_largest_square() -> None:
    window = np.zeros((1, 20, 40, 3), np.uint8)
    window[:, :, 10:30] = 200
    assert (centre_crop(window, 20) == 200).all()
    assert (centre_crop(window, 10) >= 199).all()


def test_test_windows_cover_a_clip_at_the_stride(tiny: Params) -> None:
    clips, recipe = clip_set(tiny, "test"), tiny.recipes["small"].model_copy(update={"frames": 2, "stride": 2})
    rows = torch.cat([rows for _, rows in loader.EvaluationWindows(clips, recipe, batch=4)])
    lengths = [len(clips.store[name]) for name in clips.ids]
    assert torch.bincount(rows).tolist() == [length // 2 for length in lengths]


def test_input_is_normalised(tiny: Params) -> None:
    clips = torch.full((2, 3, 4, 5, 3), 255, dtype=torch.uint8)
    frames = to_input(clips, "imagenet")
    assert frames.shape == (2, 3, 3, 4, 5)
    expected = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert np.allclose(frames[0, :, 0, 0, 0].numpy(), expected, atol=1e-5)
    assert to_input(torch.zeros(2, 7, 64), "imagenet").shape == (2, 1, 7, 64)


def test_fewer_groups_keep_whole_groups_of_each_class(tiny: Params) -> None:
    clips = clip_set(tiny, "train", groups=1)
    assert clips.rows.groupby("class")["group"].nunique().tolist() == [1, 1, 1]
    assert len(clips) < len(clip_set(tiny, "train"))


def test_sampled_groups_depend_on_the_seed_and_are_those_of_all_classes(tiny: Params) -> None:
    found = set()
    for seed in range(8):
        clips = clip_set(tiny, "train", groups=1, sample=seed)
        assert clips.ids == clip_set(tiny, "train", groups=1, sample=seed).ids
        assert clips.rows["class"].nunique() == 3
        found.add(frozenset(clips.rows["group"]))
    assert all(len(groups) == 1 for groups in found), "the classes share their scenes"
    assert len(found) == clip_set(tiny, "train").rows["group"].nunique()


def test_training_is_told_the_given_labels(tiny: Params) -> None:
    file = tiny.index("avsynth")
    index = read_index(file)
    write_index(file, index.assign(given=(index["label"] + (index["split"] == "train").astype(int)) % 3))
    clips = clip_set(tiny, "train")
    batches, _ = training_loader(clips, tiny.recipes["small"], seed=0)
    for _, labels, rows in batches:
        assert torch.equal(labels, (clips.labels[rows] + 1) % 3)


def test_a_teacher_without_a_row_for_a_clip_is_an_error(tiny: Params) -> None:

    clips = clip_set(tiny, "train")
    features, head = tiny.path("teacher_features", "avsynth_audio"), tiny.path("teacher_head", "avsynth_audio")
    table = loader.teacher_table(features, head, clips)
    assert len(table.feature) == len(clips) and table.mask.dtype == torch.bool
    arrays = read_arrays(features / "features.npz")
    write_arrays(features / "features.npz", **{name: values[:5] for name, values in arrays.items()})
    with pytest.raises(UserError, match="no row for clip"):
        loader.teacher_table(features, head, clips)


def test_an_empty_part_is_an_error(tiny: Params) -> None:
    with pytest.raises(UserError, match="no usable clip in split nowhere"):
        clip_set(tiny, "nowhere")
