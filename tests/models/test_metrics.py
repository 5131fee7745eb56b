"""Metrics against torchmetrics, against loops written from the definitions, and against what real features give."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.metrics import neighbours, per_class_accuracy, retrieval, retrieval_by_query, top1

SHARED = Path(os.environ.get("AV_SHARED", Path(__file__).parents[3] / "shared"))
FEATURES = SHARED / "data/features/ucf51_cnn14_emb512.npz"


def sample(seed: int, queries: int = 23, gallery: int = 61, dim: int = 7, classes: int = 5):
    rng = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, dim, generator=rng),
        torch.randint(classes, (queries,), generator=rng),
        torch.randn(gallery, dim, generator=rng),
        torch.randint(classes, (gallery,), generator=rng),
    )


def naive(queries, query_labels, gallery, gallery_labels, k):
    """R@k and the three mAP@k by loops over Python floats; ties in the gallery's order."""
    found, precisions, shares = [], [], []
    for query, label in zip(queries.double().numpy(), query_labels.tolist(), strict=True):
        cosine = []
        for item in gallery.double().numpy():
            norm = np.linalg.norm(query) * np.linalg.norm(item)
            cosine.append(round(float(query @ item / norm), 9) if norm else 0.0)
        order = sorted(range(len(cosine)), key=lambda j: (-cosine[j], j))[:k]
        hits, total = 0, 0.0
        for rank, j in enumerate(order, 1):
            if gallery_labels[j] == label:
                hits += 1
                total += hits / rank
        relevant = int((gallery_labels == label).sum())
        found.append(hits > 0)
        precisions.append(total / hits if hits else None)
        shares.append(total / min(relevant, k, len(cosine)) if relevant else 0.0)
    with_hit = [p for p in precisions if p is not None]
    return {
        f"R@{k}": np.mean(found),
        f"mAP@{k}/released": np.mean(with_hit) if with_hit else math.nan,
        f"mAP@{k}/hits": np.mean([p or 0.0 for p in precisions]),
        f"mAP@{k}/standard": np.mean(shares),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 3, 17, 500])
def test_retrieval_follows_the_definitions(seed, k):
    queries, query_labels, gallery, gallery_labels = sample(seed)
    query_labels[:3] = 5 + torch.arange(3)  # classes that the gallery does not have
    ours = retrieval(queries, query_labels, gallery, gallery_labels, [k], [k])
    assert ours == pytest.approx(naive(queries, query_labels, gallery, gallery_labels, k), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_ties_stand_in_the_gallery_s_order(seed):
    queries, query_labels, gallery, gallery_labels = sample(seed, dim=2)
    gallery = gallery.sign()  # four different directions only
    gallery[7] = 0
    gallery[8] = -0.0
    ours = retrieval(queries, query_labels, gallery, gallery_labels, [2], [2])
    assert ours == pytest.approx(naive(queries, query_labels, gallery, gallery_labels, 2), abs=1e-12)
    same = torch.ones(300, 8)
    for found in neighbours(torch.ones(2, 8), same, 300):
        assert torch.equal(found, torch.arange(300).expand(2, 300))


def test_a_cosine_that_rounds_to_minus_zero_ties_with_zero():
    gallery = torch.tensor([[1.0, -1e-60], [1.0, 0.0], [1.0, 1e-60]], dtype=torch.float64)
    (found,) = neighbours(torch.tensor([[0.0, 1.0]], dtype=torch.float64), gallery, 3)
    assert found.tolist() == [[0, 1, 2]]


def test_chunks_do_not_change_the_result():
    queries, query_labels, gallery, gallery_labels = sample(1)
    whole = retrieval(queries, query_labels, gallery, gallery_labels, chunk=1000)
    assert whole == retrieval(queries, query_labels, gallery, gallery_labels, chunk=1)
    assert whole == retrieval(queries, query_labels, gallery, gallery_labels, chunk=7)


def test_retrieval_agrees_with_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.retrieval")
    queries, query_labels, gallery, gallery_labels = sample(5)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=2)
    shifted = (cosine + 1) / 2  # torchmetrics takes scores of 0 and less for "not found"
    target = gallery_labels == query_labels[:, None]
    ours = retrieval(queries, query_labels, gallery, gallery_labels, [5], [61, 10])
    pairs = list(zip(shifted, target, strict=True))
    full = torch.stack([functional.retrieval_average_precision(p, t) for p, t in pairs]).mean()
    hits = torch.stack([functional.retrieval_average_precision(p, t, top_k=10) for p, t in pairs]).mean()
    recall = torch.stack([functional.retrieval_hit_rate(p, t, top_k=5) for p, t in pairs]).mean()
    assert ours["mAP@61/standard"] == pytest.approx(full.item(), abs=1e-6)
    assert ours["mAP@10/hits"] == pytest.approx(hits.item(), abs=1e-6)
    assert ours["R@5"] == pytest.approx(recall.item(), abs=1e-6)


def test_no_hit_at_all():
    queries, query_labels, gallery, gallery_labels = sample(2)
    ours = retrieval(queries, query_labels + 100, gallery, gallery_labels, [1], [10])
    assert math.isnan(ours["mAP@10/released"])
    assert ours["R@1"] == ours["mAP@10/hits"] == ours["mAP@10/standard"] == 0


def test_values_of_each_query_are_those_of_the_query_alone():
    queries, query_labels, gallery, gallery_labels = sample(3)
    query_labels[4] = 9  # a class that the gallery does not have
    found = retrieval_by_query(queries, query_labels, gallery, gallery_labels, [3], [17])
    for row in range(len(queries)):
        alone = retrieval(queries[row : row + 1], query_labels[row : row + 1], gallery, gallery_labels, [3], [17])
        assert {name: values[row].item() for name, values in found.items()} == pytest.approx(alone, nan_ok=True)
    assert found["mAP@17/released"][4].isnan() and found["mAP@17/hits"][4] == 0


def test_empty_gallery_is_an_error():
    queries, query_labels, gallery, gallery_labels = sample(2)
    with pytest.raises(ValueError, match="gallery"):
        retrieval(queries, query_labels, gallery[:0], gallery_labels[:0])


@pytest.mark.skipif(not FEATURES.exists(), reason="the real features are not here")
def test_real_audio_features():
    data = np.load(FEATURES, allow_pickle=False)
    labels = torch.from_numpy(np.unique(data["label"], return_inverse=True)[1])
    features = torch.from_numpy(data["feature"])
    train, test = (torch.from_numpy(data["subset"] == part) for part in ("training", "validation"))
    found = retrieval(features[test], labels[test], features[train], labels[train], [1], [100])
    assert found["R@1"] == pytest.approx(0.403, abs=5e-4)
    assert found["mAP@100/released"] == pytest.approx(0.374, abs=5e-4)
    assert found["mAP@100/hits"] == pytest.approx(0.346, abs=5e-4)
    assert found["mAP@100/standard"] == pytest.approx(0.157, abs=5e-4)


def test_accuracy():
    probabilities = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0.6, 0.4, 0]])
    labels = torch.tensor([0, 1, 0, 0])
    assert top1(probabilities, labels) == 0.75
    by_class = per_class_accuracy(probabilities, labels)
    assert by_class[:2].tolist() == pytest.approx([2 / 3, 1.0])
    assert by_class[2].isnan()
    assert math.isnan(top1(probabilities[:0], labels[:0]))


def test_what_is_not_finite_is_no_result():
    """NaN logits had counted as class 0, and a NaN row of the gallery had been every query's nearest."""
    labels = torch.tensor([0, 1, 2])
    bad = torch.eye(3)
    bad[1, 2] = torch.nan
    with pytest.raises(ValueError, match="probabilities: row 1 of 3 is not finite"):
        top1(bad, labels)
    for queries, gallery, name in ((bad, torch.eye(3), "queries"), (torch.eye(3), bad, "gallery")):
        with pytest.raises(ValueError, match=f"{name}: row 1 of 3"):
            retrieval(queries, labels, gallery, labels)
    bad[1, 2] = torch.inf
    with pytest.raises(ValueError, match="row 1"):
        top1(bad, labels)
