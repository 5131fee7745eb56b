"""Benchmarks of retrieval metrics: speed at UCF51's size, memory at VGGSound's."""

from __future__ import annotations

import resource
import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Measured, Setting, benchmark, speedup
from models.metrics import retrieval

RECALL_AT, PRECISION_AT = (1, 5, 10), (100, 500)


def made_up(queries: int, gallery: int, classes: int, dim: int = 512) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Generate queries, their labels, gallery and its labels; features are non-negative and similar within a class."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dim, generator=random)
    found = []
    for count in (queries, gallery):
        labels = torch.randint(classes, (count,), generator=random)
        features = torch.randn(count, dim, generator=random)
        for part, of in zip(
            features.split(4096), labels.split(4096), strict=True
        ):  # in place, because memory is measured
            part.mul_(3).add_(centres[of]).relu_()
        found += [features, labels]
    return found[0], found[1], found[2], found[3]


def loop_over_queries(
    queries: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor
) -> dict[str, float]:
    """Compute R@K and mAP@K as the papers' scripts do.

    For each K, loops over the queries and compares each with the whole gallery. mAP leaves out queries without a
    hit."""
    found = {}
    labels, classes = gallery_labels.numpy(), query_labels.numpy()
    for k in RECALL_AT:
        right = 0
        for query, label in zip(queries, classes, strict=True):
            nearest = F.cosine_similarity(query, gallery, dim=-1).topk(min(k, len(gallery))).indices.numpy()
            right += bool((labels[nearest] == label).any())
        found[f"R@{k}"] = right / len(queries)
    for k in PRECISION_AT:
        precisions = []
        for query, label in zip(queries, classes, strict=True):
            nearest = F.cosine_similarity(query, gallery, dim=-1).topk(min(k, len(gallery))).indices.numpy()
            hits = np.flatnonzero(labels[nearest] == label)
            if len(hits):
                precisions.append(sum((number + 1) / (rank + 1) for number, rank in enumerate(hits)) / len(hits))
        found[f"mAP@{k}/released"] = float(np.mean(precisions))
    return found


@benchmark("retrieval metrics at UCF51's size (1,944 x 4,892 x 512)", "a loop over queries for each metric", cpu=50)
def retrieval_ucf51(setting: Setting) -> Measured:
    """Computes R@1, 5, 10 and mAP@100, 500 in three definitions with `models.metrics.retrieval`. The baseline computes
    R@1, 5, 10 and mAP@100, 500 in the released definition as the papers' scripts do, with one loop over the queries for
    each."""
    sizes = (40, 200, 5) if setting.quick else (1944, 4892, 51)
    data = made_up(*sizes)
    ours, theirs = retrieval(*data, RECALL_AT, PRECISION_AT), loop_over_queries(*data)
    # The baseline's cosines have float32 rounding, so neighbours at almost equal distance may swap ranks.
    apart = {name: abs(ours[name] - value) for name, value in theirs.items()}
    assert max(apart.values()) < 2e-3, apart
    measured = speedup(
        lambda: retrieval(*data, RECALL_AT, PRECISION_AT), lambda: loop_over_queries(*data), 2 if setting.quick else 3
    )
    return Measured(measured.value, measured.detail | {"apart": max(apart.values())})


@benchmark("extra memory of retrieval at VGGSound's size (15,446 x 183,730 x 512)", unit="GiB", cpu=2)
def retrieval_memory_vggsound(setting: Setting) -> Measured:
    """Growth of the peak resident memory of a process while `models.metrics.retrieval` runs, without its input
    features."""
    queries, gallery = (300, 2000) if setting.quick else (15_446, 183_730)
    data = made_up(queries, gallery, 309)
    before = peak_gib()
    retrieval(*data, RECALL_AT, PRECISION_AT)
    return Measured(peak_gib() - before, {"before_gib": before})


def peak_gib() -> float:
    """Return the peak resident memory of this process, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
