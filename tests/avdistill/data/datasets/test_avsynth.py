from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from avdistill.config.origins import Avsynth
from avdistill.data import datasets, media
from avdistill.data.datasets import avsynth
from avdistill.data.synthesis import scenes, sounds
from avdistill.pipeline.errors import UserError


def origin(**changes: object) -> Avsynth:
    return Avsynth.model_validate({"kind": "avsynth", "source": "x", "seconds": 1.0} | changes)


SMALL = {"classes": 2, "groups": 3, "clips_per_group": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("avsynth")
    avsynth.download(origin(**SMALL), folder)
    return folder


def test_what_download_makes(made: Path) -> None:
    table = datasets.clips(made)
    assert len(table) == 12
    assert table["id"].is_unique
    assert table["file"][0] == "swinging/swinging_g001_c01.mp4"
    assert set(table["class"]) == {"swinging", "bouncing"}
    assert set(table["group"]) == {"g001", "g002", "g003"}
    assert set(table["action"]) == set(table["class"])
    assert set(table["relevant"]) <= {"yes", "no"}
    assert set(table["correlation"]) <= {"strong", "weak"}
    assert table["music_db"].between(-25, -5).all()
    clips = datasets.locate(table, avsynth.videos(origin(), made))
    found = media.probe(clips[0].path)
    assert (found.width, found.height, found.fps, found.frames, found.audio) == (56, 42, 12, 12, "yes")
    assert found.seconds == pytest.approx(1, abs=0.01)


def test_any_number_of_processes_makes_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AV_CORES", "1")
    avsynth.download(origin(**SMALL), tmp_path)
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert len(files) == 13
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((made / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_an_interrupted_download_goes_on(tmp_path: Path) -> None:
    avsynth.download(origin(**SMALL), tmp_path)
    files = sorted((tmp_path / "videos").rglob("*.mp4"))
    before = [file.stat().st_mtime_ns for file in files]
    bytes_ = files[3].read_bytes()
    files[3].unlink()
    avsynth.download(origin(**SMALL), tmp_path)
    assert files[3].read_bytes() == bytes_
    assert [file.stat().st_mtime_ns == at for file, at in zip(files, before, strict=True)].count(False) == 1


def test_clips_do_not_depend_on_how_many_there_are() -> None:
    few, many = origin(classes=2, groups=3, clips_per_group=1), origin(classes=10, groups=5, clips_per_group=2)
    same = {clip.name: clip for clip in avsynth.plan(many)}
    for clip in avsynth.plan(few):
        if same[clip.name].sound == clip.sound:  # whether a class is strong depends on the number of classes
            pair = avsynth.make(few, clip), avsynth.make(many, same[clip.name])
            assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True) if a is not None and b is not None)


def test_the_seed_changes_everything() -> None:
    one, two = (avsynth.make(origin(seed=seed, no_sound=0), avsynth.plan(origin(no_sound=0))[0]) for seed in (0, 1))
    assert not np.array_equal(one[0], two[0])
    assert one[1] is not None
    assert two[1] is not None
    assert not np.array_equal(one[1], two[1])


@pytest.mark.parametrize("classes", [2, 9, 10])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.7, 1.0])
def test_the_share_of_strong_classes(classes: int, share: float) -> None:
    assert sum(avsynth.strong(origin(classes=classes, strong=share))) == int(classes * share + 1e-9)


def test_the_shares_of_sounds() -> None:
    drawn = Counter(clip.sound for clip in avsynth.plan(origin(classes=10, groups=40, clips_per_group=5, no_sound=0.1)))
    total = sum(drawn.values())
    absent, relevant = drawn["none"] + drawn["silence"], drawn["own"] + drawn["talk"]
    assert absent / total == pytest.approx(0.1, abs=0.02)
    assert relevant / (total - absent) == pytest.approx(0.8, abs=0.02)
    assert min(drawn["none"], drawn["silence"]) > 0.3 * absent
    assert min(drawn[name] for name in sounds.IRRELEVANT) > 0.15 * (total - absent - relevant)


def test_irrelevant_sound_is_drawn_without_looking_at_the_class() -> None:
    clips = avsynth.plan(origin(relevant=0, no_sound=0, classes=10, groups=40, clips_per_group=5))
    assert {clip.sound for clip in clips} == set(sounds.IRRELEVANT)
    counts = np.zeros((10, 4))
    for clip in clips:
        counts[clip.action, list(sounds.IRRELEVANT).index(clip.sound)] += 1
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 51  # chi squared, 27 degrees of freedom: p = 0.003


def test_clips_without_sound(tmp_path: Path) -> None:
    small = origin(**SMALL, no_sound=1)
    avsynth.download(small, tmp_path)
    table = datasets.clips(tmp_path)
    found = {media.probe(clip.path).audio for clip in datasets.locate(table, avsynth.videos(small, tmp_path))}
    assert found == {"silent", "no"}
    assert set(table["relevant"]) == {"no"}


def test_scenes_are_shared_by_a_group_and_by_it_alone() -> None:
    plain = origin(clutter=0, classes=10, groups=3)
    corner = {}
    for clip in avsynth.plan(plain):
        if clip.number == 0 and clip.action in (5, 7):  # pulsing, spinning: the corner stays free
            colour = avsynth.make(plain, clip)[0][0, 0, 0].astype(float)
            corner[clip.action, clip.group] = colour / colour.sum()  # brightness is the clip's own
    for group in range(3):
        np.testing.assert_allclose(corner[5, group], corner[7, group], atol=0.02)
    assert np.abs(corner[5, 0] - corner[5, 1]).max() > 0.02


def test_the_ground_is_typical_of_the_class_as_often_as_asked() -> None:
    homes = [action.ground for action in avsynth.ACTIONS.values()]
    assert set(homes) == set(scenes.GROUNDS)
    assert len(set(homes)) == len(homes)

    def at_home(typical: float) -> float:
        """Share of clips whose lowest pixels are nearer to the colour of their class's ground than to any other's."""
        asked = origin(clutter=0, typical=typical, classes=10, groups=3, clips_per_group=2, seconds=0.5)
        colours = np.array(list(scenes.GROUNDS.values()))
        right = []
        for clip in avsynth.plan(asked):
            seen = avsynth.make(asked, clip)[0][0, -1].mean(0) / 255
            nearest = np.linalg.norm(colours / colours.sum(1, keepdims=True) - seen / seen.sum(), axis=1).argmin()
            right.append(list(scenes.GROUNDS)[nearest] == homes[clip.action])
        return float(np.mean(right))

    assert at_home(1) > 0.7  # an actor may lie over it, and shades vary
    assert at_home(0) < 0.3


def test_motions_differ_and_may_be_mirrored() -> None:
    phase = 0.3 + 0.05 * np.arange(40)
    paths = {}
    for name, action in avsynth.ACTIONS.items():
        made_ = [action.motion(np.random.default_rng(seed), phase) for seed in range(20)]
        for path in made_:
            assert path.offset.shape == (40, 2)
            assert path.turn.shape == path.scale.shape == (40,)
            assert np.abs(path.offset).max() < 1.7
            assert path.scale.min() > 0.4
        paths[name] = np.concatenate([made_[0].offset, made_[0].turn[:, None], made_[0].scale[:, None]], axis=1)
    for one, two in combinations(paths, 2):
        assert np.abs(paths[one] - paths[two]).max() > 0.2, (one, two)
    # Falling accelerates downwards (y grows), rising goes up.
    for name, sign in (("falling", 1), ("rising", -1)):
        steps = np.diff(paths[name][:, 1])
        assert (np.sign(steps) == sign).mean() > 0.9


@pytest.mark.parametrize("name", [*avsynth.ACTIONS, "talk", *sounds.IRRELEVANT, *sounds.GENERIC])
def test_every_instrument_sounds(name: str) -> None:
    instruments = {"talk": sounds.talk, **sounds.IRRELEVANT, **sounds.GENERIC}
    instruments |= {name: action.instrument for name, action in avsynth.ACTIONS.items()}
    for samples in (16_000, 24_321):
        sound = instruments[name](np.random.default_rng(3), samples, 0.6)
        assert sound.shape == (samples,)
        assert np.isfinite(sound).all()
        assert np.sqrt(np.mean(sound**2)) > 1e-3


def test_a_class_has_variants_that_its_label_does_not_tell_apart() -> None:
    asked = origin(classes=3, variants=2, groups=4, clips_per_group=1)
    names = avsynth.classes(asked)
    assert names == ["swinging_or_bouncing", "circling_or_zigzagging", "falling_or_pulsing"]
    clips = avsynth.plan(asked)
    assert Counter(clip.label for clip in clips) == dict.fromkeys(names, 8)
    assert all(list(avsynth.ACTIONS)[clip.action] in clip.label for clip in clips)


@pytest.mark.parametrize(("informed", "share"), [(1.0, 1.0), (0.5, 0.75), (0.0, 0.5)])
def test_what_the_sound_knows_beyond_the_class(informed: float, share: float) -> None:
    asked = origin(classes=5, variants=2, groups=200, clips_per_group=1, informed=informed, strong=1, no_sound=0)
    names = list(avsynth.ACTIONS)
    heard = [clip for clip in avsynth.plan(asked) if clip.heard]
    assert all(clip.heard in clip.label for clip in heard)
    assert np.mean([clip.heard == names[clip.action] for clip in heard]) == pytest.approx(share, abs=0.03)
    assert len(heard) / 2000 == pytest.approx(0.8, abs=0.03)


def test_the_sound_is_that_of_the_action_that_is_heard() -> None:
    asked = origin(classes=5, variants=2, groups=3, informed=0, strong=1, relevant=1, no_sound=0)
    clip = next(clip for clip in avsynth.plan(asked) if clip.source != clip.action)
    frames, sound = avsynth.make(asked, clip)
    same, own = avsynth.make(asked, replace(clip, source=clip.action))
    assert sound is not None
    assert own is not None
    assert np.array_equal(frames, same)
    assert not np.array_equal(sound, own)


def test_check_names_the_key() -> None:
    with pytest.raises(UserError, match="variants: 5 classes of 3 need 15 actions; expected at most 10"):
        avsynth.check(origin(classes=5, variants=3))
    with pytest.raises(UserError, match="music_db"):
        avsynth.check(origin(music_db=(0.0, -20.0)))
    avsynth.check(origin())
