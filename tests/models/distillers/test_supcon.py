"""Supervised contrast without a teacher against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.distillers import check_options
from models.distillers.ccl import similarities
from models.distillers.supcon import supcon_of_logits, without_diagonal
from tests.models.distillers import reference
from tests.models.distillers.batches import CLASSES, Batch, array, make
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy


def expected(s, labels, contrast, tau):
    """C clip by clip, as the equations stand."""
    x = unit(s) @ unit(s).T / tau
    halves = {True: [], False: []}
    for i, own in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        p = np.exp(x[i, others]) / np.exp(x[i, others]).sum()
        same = labels[others] == own
        if same.any():
            halves[True].append(-np.log(p[same]).mean())
        if not same.all():
            halves[False].append(-np.log(1 - p[~same]).mean())
    if contrast == "supcon":
        return np.mean(halves[True]) if halves[True] else 0.0
    return sum(halves[True] + halves[False]) / len(labels)


OPTIONS = [
    ({}, "supcon", 0.1, 1),
    ({"contrast": "multiclass"}, "multiclass", 0.1, 1),
    ({"contrast": "multiclass", "temperature": 0.5, "weight": 2}, "multiclass", 0.5, 2),
    ({"temperature": 0.3, "weight": 0.5}, "supcon", 0.3, 0.5),
]


@pytest.mark.parametrize(("tau", "expected"), [(0.07, 3.452899), (0.1, 2.520433)])
def test_the_written_down_values(tau, expected):
    """Clips 0 and 3 are of one class, the others alone; over all clips, as in the authors' program, it is a half."""
    batch = Batch(4, teachers="")
    batch.feature, _ = reference.features()
    batch.labels = reference.logits().labels
    found = make("supcon", "", temperature=tau)(*batch.arguments())["contrast"].item()
    assert found == pytest.approx(expected, abs=1e-6)
    assert found / 2 == pytest.approx({0.07: 1.726450, 0.1: 1.260216}[tau], abs=1e-6)


def test_the_written_down_values_clip_by_clip():
    x, labels = reference.features()[0], reference.logits().labels
    logits, same = similarities(x, x, 0.07), (labels[:, None] == labels).double()
    for clip, expected in ((0, 3.698951), (3, 3.206847)):
        row = [without_diagonal(matrix)[clip : clip + 1] for matrix in (logits, same)]
        assert supcon_of_logits(*row).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("options", "contrast", "tau", "weight"), OPTIONS)
@pytest.mark.parametrize("labels", [None, [0, 0, 1, 2, 2, 2], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 0], [3] * 6])
def test_values_and_gradient(options, contrast, tau, weight, labels):
    batch, method = Batch(12 if labels is None else 6, teachers=""), make("supcon", "", **options)
    if labels is not None:
        batch.labels = torch.tensor(labels)
    terms, y = in_double(method, batch), batch.labels.numpy()
    assert set(terms) == {"ce", "contrast"}
    assert terms["ce"].item() == pytest.approx(cross_entropy(array(batch.logits), y), rel=1e-9)
    assert terms["contrast"].item() == pytest.approx(
        weight * expected(array(batch.feature), y, contrast, tau), rel=1e-7
    )
    terms["contrast"].backward()
    numeric = slopes(lambda s: weight * expected(s, y, contrast, tau), array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, numeric, rtol=1e-4, atol=1e-6 * np.abs(numeric).max() + 1e-9)
    assert batch.logits.grad is None


def test_a_class_of_one_clip_has_no_positive():
    """L_out is the mean over the other clips; without any positive it is 0, and the NCE has its second half alone."""
    batch = Batch(5, teachers="")
    batch.labels = torch.arange(5)
    assert make("supcon", "")(*batch.arguments())["contrast"].item() == 0
    nce = make("supcon", "", contrast="multiclass")(*batch.arguments())["contrast"]
    assert nce.item() == pytest.approx(expected(array(batch.feature), np.arange(5), "multiclass", 0.1), rel=1e-5)


@pytest.mark.parametrize("contrast", ["supcon", "multiclass"])
@pytest.mark.parametrize("size", [1, 2])
def test_fewer_than_three_clips_have_no_contrast(contrast, size):
    batch = Batch(size, teachers="")
    batch.labels = torch.arange(size)
    term = make("supcon", "", contrast=contrast)(*batch.arguments())["contrast"]
    term.backward()
    assert term.item() == 0 and not batch.feature.grad.any()


@given(st.integers(2, 9))
@settings(max_examples=10, deadline=None)
def test_without_diagonal(n):
    x = np.arange(n * n).reshape(n, n)
    rows = [np.delete(row, number) for number, row in enumerate(x)]
    assert np.array_equal(without_diagonal(torch.tensor(x)).numpy(), np.stack(rows))


@pytest.mark.parametrize("contrast", ["supcon", "multiclass"])
def test_directions_and_classes_count_lengths_and_names_do_not(contrast):
    batch, method = Batch(teachers=""), make("supcon", "", contrast=contrast)
    before = method(*batch.arguments())["contrast"]
    batch.feature.data *= torch.arange(1.0, 13)[:, None]
    torch.testing.assert_close(method(*batch.arguments())["contrast"], before)
    batch.labels = (batch.labels + 1) % CLASSES
    torch.testing.assert_close(method(*batch.arguments())["contrast"], before)


@pytest.mark.parametrize("contrast", ["supcon", "multiclass"])
def test_descent_brings_clips_of_a_class_together(contrast):
    batch, method = Batch(teachers=""), make("supcon", "", contrast=contrast)
    same = (batch.labels[:, None] == batch.labels) & ~torch.eye(12, dtype=torch.bool)

    def apart():
        x = torch.nn.functional.normalize(batch.feature.detach(), dim=1)
        return ((x @ x.T)[same].mean() - (x @ x.T)[~same].mean()).item()

    before = apart()
    for _ in range(20):
        batch.feature.grad = None
        method(*batch.arguments())["contrast"].backward()
        batch.feature.data -= 0.01 * batch.feature.grad
    assert apart() > before + 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"weight": -1}, "weight must not be negative"),
        ({"contrast": "supcn"}, "contrast: 'supcn'.*'supcon'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        check_options("supcon", options, "")
