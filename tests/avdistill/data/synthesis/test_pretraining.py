from __future__ import annotations

import numpy as np

from avdistill.data.datasets import avsynth
from avdistill.data.synthesis import pretraining, sounds


def test_pretraining_material() -> None:
    waveforms, labels, names = pretraining.generic_sounds(20, 0.5, seed=1)
    assert waveforms.shape == (20, 16_000)
    assert waveforms.dtype == np.float32
    assert 0.01 < np.abs(waveforms).max() < 2
    assert len(names) >= 12
    assert labels.tolist() == [n % len(names) for n in range(20)]
    np.testing.assert_array_equal(waveforms[:5], pretraining.generic_sounds(5, 0.5, seed=1)[0])
    clips, labels, names = pretraining.generic_motions(24, seed=1)
    assert clips.shape == (24, 8, 24, 24, 3)
    assert clips.dtype == np.uint8
    assert labels.tolist() == [n % len(names) for n in range(24)]
    np.testing.assert_array_equal(clips[:5], pretraining.generic_motions(5, seed=1)[0])
    assert not set(names) & set(avsynth.ACTIONS)
    images, labels, names = pretraining.generic_images(24, 40, seed=1)
    assert images.shape == (24, 40, 40, 3)
    assert images.dtype == np.uint8
    assert labels.max() == len(names) - 1
    assert not np.array_equal(images, pretraining.generic_images(24, 40, seed=2)[0])
    own = {action.instrument for action in avsynth.ACTIONS.values()} | {sounds.talk, *sounds.IRRELEVANT.values()}
    assert not own & set(sounds.GENERIC.values())
