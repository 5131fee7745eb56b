"""Metrics of classification and retrieval: plain functions of tensors.

Three definitions of mAP@K are in use, and differ widely on one and the same ranking. With rel_k = 1 where the k-th
neighbour has the query's class, P_k the share of such among the first k, and h = sum_{k<=K} rel_k, a query has

    AP@K = sum_{k<=K} rel_k P_k / d,    d = h (`released`, `hits`) or min(relevant items in the gallery, K) (`standard`)

`released`, as the papers' programs compute it, leaves queries without a hit (h = 0) out of the mean; in the other two
they count as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def top1(probabilities: Tensor, labels: Tensor) -> float:
    """Share of rows (N, C) whose largest entry is at the label (N,); NaN where N is 0. Of equals the first counts.

    Raises ValueError if an entry is not finite."""
    return correct(probabilities, labels).mean().item()


def correct(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each row (N, C) whose largest entry is at the label (N,), else 0, as float64 (N,).

    Of equal entries the first counts. Raises ValueError if an entry is not finite."""
    check_finite(probabilities, "probabilities")
    return (probabilities.argmax(1) == labels).double()


def check_finite(rows: Tensor, what: str) -> None:
    """Raise ValueError, naming the first row (N, …) that has an entry which is not finite."""
    bad = ~rows.flatten(1).isfinite().all(1)
    if bad.any():
        raise ValueError(f"{what}: row {int(bad.nonzero()[0])} of {len(rows)} is not finite ({int(bad.sum())} in all)")


def per_class_accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Share of each class's rows (N, C) whose largest entry is at the label (N,): (C,), NaN for absent classes."""
    classes = probabilities.shape[1]
    right = correct(probabilities, labels)
    total = torch.bincount(labels, minlength=classes)
    return torch.bincount(labels, weights=right, minlength=classes) / total


def neighbours(queries: Tensor, gallery: Tensor, k: int, chunk: int = 128) -> Iterator[Tensor]:
    """Gallery numbers of each query's k nearest by cosine, nearest first: (chunk, k) for one chunk of queries a time.

    `queries` (N, D), `gallery` (M, D); k is capped at M. Ties stand in the gallery's order, whatever the chunk: cosines
    are computed in float64 and rounded to float32, so that equal vectors are equally near wherever they stand."""
    size = len(gallery)
    gallery = unit(gallery).T
    order = torch.arange(size - 1, -1, -1, device=gallery.device)
    for part in queries.split(chunk):
        cosine = (unit(part) @ gallery).float().add_(0.0)  # which makes -0 a 0
        # topk does not keep the order of ties, so rank by a whole number that has none: the float's bits, which are
        # in the order of its value (once those of negative ones are flipped), then the place in the gallery.
        bits = cosine.view(torch.int32)
        bits ^= (bits >> 31) & 0x7FFFFFFF
        rank = bits.long().mul_(size).add_(order)
        yield rank.topk(min(k, size), dim=1).indices


def unit(vectors: Tensor) -> Tensor:
    """Rows (N, D) scaled to length 1, in float64; rows of zeros stay. Memory: no more than the result."""
    vectors = vectors.to(torch.float64, copy=True)
    return vectors.div_(vectors.norm(dim=1, keepdim=True).clamp_min_(1e-12))


def retrieval(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    ks_recall: Sequence[int] = (1, 5, 10),
    ks_map: Sequence[int] = (100, 500),
    chunk: int = 128,
) -> dict[str, float]:
    """Return the means over queries of what `retrieval_by_query` returns, by the same names: all 0..1.

    `released` leaves out queries without a hit, and is NaN where no query has one."""
    found = retrieval_by_query(queries, query_labels, gallery, gallery_labels, ks_recall, ks_map, chunk)
    return {name: values.nanmean().item() for name, values in found.items()}


def retrieval_by_query(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    ks_recall: Sequence[int] = (1, 5, 10),
    ks_map: Sequence[int] = (100, 500),
    chunk: int = 128,
) -> dict[str, Tensor]:
    """Retrieval by cosine of `queries` (N, D) in `gallery` (M, D), labels (N,) and (M,), N and M at least 1.

    Returns float64 (N,) each: `R@K`, 1 for a query with an item of its class among the first K, else 0; and the AP@K
    `mAP@K/released`, `mAP@K/hits` and `mAP@K/standard` (see above). `released` is NaN for a query without a hit. Where
    K exceeds M, K is M (the key keeps the K asked for). Memory: (chunk x M) + (N x K) numbers. Raises ValueError if N
    or M is 0, or a vector is not finite."""
    if len(queries) == 0 or len(gallery) == 0:
        raise ValueError(f"retrieval needs queries and a gallery, found {len(queries)} and {len(gallery)} items")
    check_finite(queries, "queries")
    check_finite(gallery, "gallery")
    deepest = max([*ks_recall, *ks_map])
    parts = query_labels.split(chunk)
    near = neighbours(queries, gallery, deepest, chunk)
    hit = torch.cat([gallery_labels[found] == part[:, None] for found, part in zip(near, parts, strict=True)])
    relevant = torch.bincount(gallery_labels, minlength=int(query_labels.max()) + 1)[query_labels]
    result = {f"R@{k}": hit[:, :k].any(1).double() for k in ks_recall}
    places = torch.arange(1, hit.shape[1] + 1, dtype=torch.float64, device=hit.device)
    gained = hit * hit.cumsum(1) / places
    for k in ks_map:
        total, hits = gained[:, :k].sum(1), hit[:, :k].sum(1)
        by_hits = total / hits.clamp(min=1)
        result[f"mAP@{k}/released"] = by_hits.where(hits > 0, torch.nan)
        result[f"mAP@{k}/hits"] = by_hits
        result[f"mAP@{k}/standard"] = total / relevant.clamp(min=1, max=k)
    return result
