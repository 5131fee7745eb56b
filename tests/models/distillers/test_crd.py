"""What sets CRD apart: its negatives. Its equation is tested in test_banks.py."""

from __future__ import annotations

import pytest
import torch

from tests.models.distillers.batches import CLASSES, CLIPS, Batch, make
from tests.models.distillers.test_banks import Reference


def epoch_of_labels(method):
    """Shows the method every clip once; returns their labels (N,)."""
    labels = torch.randint(CLASSES, (CLIPS,), generator=torch.Generator().manual_seed(4))
    for start in range(0, CLIPS, 10):
        batch = Batch(size=10, seed=start)
        batch.index = torch.arange(start, start + 10)
        batch.labels = labels[batch.index]
        method(*batch.arguments())
    return labels


@pytest.mark.parametrize("negatives", [3, 16384])
@pytest.mark.parametrize("first", [True, False])
def test_negatives_are_of_other_classes(negatives, first, drawn):
    method = make("crd", negatives=negatives)
    labels = epoch_of_labels(method)
    method.start_epoch(0 if first else 1)
    batch = Batch()
    batch.labels = labels[batch.index]
    method(*batch.arguments())
    for row, label in zip(drawn[-1], batch.labels, strict=True):
        others = labels != label
        assert not row[~others].any()
        assert row.sum() == min(negatives, others.sum())


def test_classes_are_noted_when_clips_are_seen(drawn):
    method, batch = make("crd"), Batch()
    method(*batch.arguments())
    assert (drawn[0].sum(1) == CLIPS - 1).all()  # no class is known yet
    method(*batch.arguments())
    same = (batch.labels[:, None] == batch.labels).sum(1)
    assert torch.equal(drawn[1].sum(1), CLIPS - same)


def test_a_row_s_own_number_of_negatives_weighs_its_noise(drawn):
    """K in K/N is what was drawn: classes of different sizes leave different numbers."""
    method = make("crd")
    reference = Reference(method)
    for step in range(2):
        batch = Batch()
        batch.labels = torch.tensor([0] * 7 + [1] * 4 + [2])
        loss = method(*batch.arguments())["crd"].item()
        assert loss == pytest.approx(0.8 * reference.step(batch, drawn[step]), rel=1e-5)
    assert sorted(set(drawn[1].sum(1).tolist())) == [CLIPS - 7, CLIPS - 4, CLIPS - 1]


def test_a_training_set_of_one_class_keeps_the_positives():
    method = make("crd")
    for _ in range(2):
        for start in range(0, CLIPS, 10):
            batch = Batch(size=10, seed=start)
            batch.index, batch.labels = torch.arange(start, start + 10), torch.zeros(10, dtype=torch.long)
            loss = method(*batch.arguments())["crd"]
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert batch.feature.grad.isfinite().all()
