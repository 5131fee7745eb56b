from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.config.schema import Params, Recipe
from avdistill.data.loader import ClipSet, training_loader
from avdistill.data.packed import StoreWriter
from avdistill.data.resident import ResidentClips
from avdistill.pipeline.errors import UserError
from benchmarks import made_up

CPU = torch.device("cpu")


def noise(folder: Path, shape: tuple[int, ...] = (9, 40, 53), **recipe: object) -> Params:
    settings = {"frames": 6, "size": 16, "batch": 8, "width": 0.125, **recipe}
    return made_up.suite(folder, 24, shape, settings)


def both(params: Params, seed: int = 3) -> tuple[list[tuple[torch.Tensor, ...]], ...]:
    """Two epochs of the loader's batches and of those made on the device."""
    index, store = params.index("noise"), params.path("frames", "noise")
    clips, recipe = ClipSet(index, store, ("train",)), params.recipes["recipe"]
    loader, sampler = training_loader(clips, recipe, seed)
    ours = ResidentClips(clips, recipe, seed, sampler, CPU)
    assert len(ours) == len(loader)
    found: tuple[list[tuple[torch.Tensor, ...]], ...] = ([], [])
    for sampler.epoch in (0, 1):
        for batches, into in zip((ours, loader), found, strict=True):
            into += [tuple(batch) for batch in batches]
    return found


@pytest.mark.parametrize(
    "recipe",
    [
        {},  # smaller and larger crops than the result
        {"size": 64},  # upwards only
        {"scale": (0.9, 1.0), "size": 16},  # downwards only
        {"scale": (1.0, 1.0), "ratio": (53 / 40, 53 / 40), "size": 40},
        {"frames": 12},  # longer than the clips, which repeat
        {"flip": False},
    ],
    ids=str,
)
def test_batches_are_those_of_the_loader_within_a_grey_level(recipe: dict[str, object], tmp_path: Path) -> None:
    ours, theirs = both(noise(tmp_path, **recipe))
    equal = 0.0
    for (clips, *rest), (expected, *others) in zip(ours, theirs, strict=True):
        assert clips.dtype == torch.uint8 and clips.shape == expected.shape and clips.is_contiguous()
        assert (clips.int() - expected.int()).abs().max() <= 1
        equal += float((clips == expected).float().mean()) / len(ours)
        assert all(torch.equal(a, b) for a, b in zip(rest, others, strict=True))
    assert equal > 0.8, "most pixels do not differ at all"


def test_a_crop_of_the_size_that_is_wanted_is_not_changed(tmp_path: Path) -> None:
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "size": 40}
    ours, theirs = both(noise(tmp_path, (9, 40, 40), **whole))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(ours, theirs, strict=True))


def test_a_training_on_them_takes_the_same_course(tmp_path: Path) -> None:
    params, losses = noise(tmp_path), []
    for resides in (False, True):
        recipe = params.recipes["recipe"].model_copy(update={"data_on_device": resides})
        trainer = made_up.trainer(params.model_copy(update={"recipes": {"recipe": recipe}}), "cpu")
        assert isinstance(trainer.loader, ResidentClips) == resides
        losses.append(trainer.train_epoch()["loss"])
    torch.use_deterministic_algorithms(False)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_frames_of_several_sizes_and_sound_are_refused(tmp_path: Path) -> None:
    params = noise(tmp_path / "sizes", None)  # type: ignore[arg-type]
    index = params.index("noise")
    with StoreWriter(params.path("frames", "noise"), "uint8") as store:
        for number in range(24 + made_up.VAL):
            store.put(f"clip{number:06d}", np.zeros((4, 20, 30 if number != 5 else 31, 3), np.uint8))
    clips = ClipSet(index, params.path("frames", "noise"), ("train",))
    with pytest.raises(UserError, match="frames of 20 x 31 in clip 'clip000005', of 20 x 30 in 'clip000000'"):
        ResidentClips(clips, Recipe(), 0, [], CPU)
    heard = noise(tmp_path / "sound", (9, 64), student="resnet10_audio")
    clips = ClipSet(heard.index("noise"), heard.path("spectrogram", "noise"), ("train",))
    with pytest.raises(UserError, match="clip 'clip000000' is sound; expected frames"):
        ResidentClips(clips, Recipe(), 0, [], CPU)


def test_clips_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = noise(tmp_path)
    clips = ClipSet(params.index("noise"), params.path("frames", "noise"), ("train",))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    with pytest.raises(UserError, match=r"the clips take 0\.0 GiB, room is for 0\.0"):
        ResidentClips(clips, Recipe(), 0, [], torch.device("cuda"))
