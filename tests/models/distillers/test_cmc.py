"""What sets CMC apart: its negatives. Its equation is tested in test_banks.py."""

from __future__ import annotations

import pytest
import torch

from tests.models.distillers.batches import CLIPS, Batch, make


@pytest.mark.parametrize("negatives", [3, 16384])
def test_negatives_are_all_other_clips(negatives, drawn):
    method, batch = make("cmc", negatives=negatives), Batch()
    for step in range(3):
        method(*batch.arguments())
        assert (drawn[step].sum(1) == min(negatives, CLIPS - 1)).all()
        assert not drawn[step][torch.arange(12), batch.index].any()


def test_labels_do_not_matter():
    values = []
    for label in (0, 1):
        method, batch = make("cmc"), Batch()
        batch.labels = torch.arange(12) % 5 * label
        method(*batch.arguments())
        values.append(method(*batch.arguments())["cmc"])
    assert torch.equal(*values)


def test_clips_of_one_class_are_told_apart():
    """Unlike CRD, whose contrast does not see them."""
    batches = Batch(), Batch()
    for batch in batches:
        batch.labels[:] = 0
    methods = make("cmc"), make("crd")
    for method in methods:
        method(*batches[0].arguments())
        method.start_epoch(1)
    with_class, without = (m(*batches[1].arguments())[n] for m, n in zip(methods, ("cmc", "crd"), strict=True))
    assert with_class > without
