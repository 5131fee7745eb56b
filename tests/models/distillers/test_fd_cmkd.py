"""FD-CMKD against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.distillers import build, check_options
from models.distillers.fd_cmkd import bands, high_loss, low_loss
from tests.models.distillers import reference
from tests.models.distillers.batches import Batch, array, make
from tests.models.distillers.numeric import in_double, slopes, unit
from tests.models.distillers.test_kd import cross_entropy


def split(x):
    """Low and high frequencies, by the sums that define a Fourier series."""
    dim, parts = x.shape[1], [np.zeros_like(x), np.zeros_like(x)]
    place = np.arange(dim)
    for k in range(1, dim // 2 + 1):
        twice = 1 if 2 * k == dim else 2
        for wave in (np.cos(2 * np.pi * k * place / dim), np.sin(2 * np.pi * k * place / dim)):
            parts[k > dim // 4] += twice / dim * (x @ wave)[:, None] * wave
    return parts


def psi(v):
    return np.sign(v) * np.log(1 + np.abs(v))


def losses(s, t):
    (s_low, s_high), (t_low, t_high) = split(s), split(t)
    return ((unit(s_low) - unit(t_low)) ** 2).mean(), ((psi(unit(s_high)) - psi(unit(t_high))) ** 2).mean()


def heads(weights, name, x, labels):
    """The sum over both bands of the cross-entropy of a linear layer after a ReLU."""
    logits = [
        np.maximum(band, 0) @ weights[f"{name}.{b}.weight"].T + weights[f"{name}.{b}.bias"]
        for b, band in enumerate(split(x))
    ]
    return sum(cross_entropy(z, labels) for z in logits)


def test_the_written_down_values():
    s, t = reference.features()
    (s_low, s_high), (t_low, t_high) = bands(s), bands(t)
    low = low_loss(s_low, t_low).item()
    assert low == pytest.approx(0.255691, abs=1e-6)
    cosine = torch.nn.functional.cosine_similarity(s_low, t_low)
    assert low == pytest.approx((2 * (1 - cosine) / 8).mean().item(), rel=1e-9)
    assert high_loss(s_high, t_high).item() == pytest.approx(0.138473, abs=1e-6)
    assert low_loss(s_high, t_high).item() == pytest.approx(0.199773, abs=1e-6), "psi is the identity"


@pytest.mark.parametrize("dim", [4, 5, 6, 7, 8, 9, 16, 31, 512])
def test_bands_are_those_of_the_fourier_series_and_leave_out_the_mean(dim):
    x = torch.rand(3, dim, dtype=torch.double)
    low, high = bands(x)
    for ours, theirs in zip((low, high), split(array(x)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
        assert ours.mean(1).abs().max() < 1e-12
    torch.testing.assert_close(low + high, x - x.mean(1, keepdim=True), atol=1e-12, rtol=0)


def test_level_and_length_of_a_feature_do_not_count():
    s, t = reference.features()
    for loss, band in ((low_loss, 0), (high_loss, 1)):
        before = loss(bands(s)[band], bands(t)[band])
        torch.testing.assert_close(loss(bands(7 * s + 3)[band], bands(0.2 * t - 5)[band]), before, atol=1e-9, rtol=1e-9)
        assert loss(bands(t)[band], bands(t)[band]) == 0


def test_strict_and_loose_hardly_differ_at_the_usual_width():
    """At D = 512 the entries of a unit vector are near 0.04, where psi is nearly the identity."""
    random = torch.Generator().manual_seed(0)
    s, t = (bands(torch.randn(64, 512, generator=random).double()) for _ in range(2))
    assert high_loss(s[1], t[1]).item() / low_loss(s[1], t[1]).item() == pytest.approx(0.93, abs=0.02)
    assert low_loss(s[0], t[0]).item() == pytest.approx(0.004, abs=2e-4)


@pytest.mark.parametrize("options", [{}, {"low_weight": 3, "high_weight": 0.5}, {"align": "student"}, {"heads": False}])
def test_values(options):
    batch, method = Batch(), make("fd_cmkd", **options)
    weights = {name: array(value) for name, value in method.state_dict().items()}
    terms = method(*batch.arguments())
    s, t, labels = array(batch.feature), array(batch.teachers["A"].feature), batch.labels.numpy()
    low, high = losses(s, t)
    expected = {
        "ce": cross_entropy(array(batch.logits), labels),
        "low": options.get("low_weight", 1) * low,
        "high": options.get("high_weight", 1) * high,
        "align": heads(weights, "phi", s, labels) + ("align" not in options) * heads(weights, "phi", t, labels),
    }
    if "heads" not in options:
        expected["heads"] = heads(weights, "psi", s, labels)
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("term", ["low", "high", "align", "heads"])
def test_gradient(term):
    batch, method = Batch(5), make("fd_cmkd")
    in_double(method, batch)[term].backward()
    weights = {name: array(value) for name, value in method.state_dict().items()}
    t, labels = array(batch.teachers["A"].feature), batch.labels.numpy()
    value = {
        "low": lambda s: losses(s, t)[0],
        "high": lambda s: losses(s, t)[1],
        "align": lambda s: heads(weights, "phi", s, labels),
        "heads": lambda s: heads(weights, "psi", s, labels),
    }[term]
    expected = slopes(value, array(batch.feature))
    np.testing.assert_allclose(batch.feature.grad, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert batch.logits.grad is None


def test_shared_classifiers_learn_from_both_sides():
    """In the alignment of the student alone, the teacher's half of the gradient is missing."""
    gradients = {}
    for align in ("shared", "student"):
        batch, method = Batch(), make("fd_cmkd", align=align)
        method(*batch.arguments())["align"].backward()
        assert batch.teachers["A"].feature.grad is None
        assert all(p.grad is None for p in method.psi.parameters())
        gradients[align] = [layer.weight.grad for layer in method.phi]
        features = (batch.feature, batch.teachers["A"].feature)[: 2 if align == "shared" else 1]
        for b, layer in enumerate(make("fd_cmkd").phi):
            both = [
                torch.nn.functional.cross_entropy(layer(bands(x.detach())[b].relu()), batch.labels) for x in features
            ]
            sum(both).backward()
            torch.testing.assert_close(gradients[align][b], layer.weight.grad)
    assert not torch.allclose(gradients["shared"][0], gradients["student"][0])


def test_the_control_without_a_teacher_does_not_depend_on_it():
    options = {"low_weight": 0, "high_weight": 0, "align": "student"}
    values = []
    for factor in (1, 3):
        batch, method = Batch(), make("fd_cmkd", **options)
        batch.teachers["A"].feature.data = batch.teachers["A"].feature.flip(0) ** factor
        values.append(total_and_gradient(method, batch))
    assert torch.equal(values[0][0], values[1][0]) and torch.equal(values[0][1], values[1][1])


def total_and_gradient(method, batch):
    loss = sum(method(*batch.arguments()).values())
    loss.backward()
    return loss.detach(), batch.feature.grad


def test_permute_shuffles_the_teacher_s_channels_and_nothing_else():
    plain, control, batch = make("fd_cmkd"), make("fd_cmkd", permute=True), Batch()
    order = control.order
    assert sorted(order.tolist()) == list(range(16)) and order.tolist() != list(range(16))
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in plain.state_dict().items())
    found = control(*batch.arguments())
    teacher = batch.teachers["A"]
    batch.teachers["A"] = teacher._replace(feature=teacher.feature.detach()[:, order])
    expected = plain(*batch.arguments())
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(make("fd_cmkd", permute=True, seed=1).order, order), "each training has its own"
    resumed = make("fd_cmkd", permute=True, seed=1)
    resumed.load_state_dict(control.state_dict())
    assert torch.equal(resumed.order, order)


def test_the_projector_maps_the_teacher_to_the_student_s_width_and_learns():
    batch, method = Batch(dim=7), make("fd_cmkd", dim=7, projector="linear")
    sum(method(*batch.arguments()).values()).backward()
    assert method.project.weight.shape == (16, 7) and method.project.weight.grad.abs().sum() > 0
    assert batch.teachers["A"].feature.grad is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low_weight": -1}, "low_weight"),
        ({"high_weight": -1}, "high_weight"),
        ({"permute": True, "projector": "linear"}, "permute"),
        ({"align": "both"}, "align: 'both'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("fd_cmkd", options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dim", "teacher", "words"), [(8, 7, "7 channels and the student 8.*expected linear"), (3, 3, "four channels")]
)
def test_widths_that_do_not_fit(dim, teacher, words):
    with pytest.raises(ValueError, match=words) as error:
        build(
            "fd_cmkd", student_dim=dim, stage_dims=(4,) * 4, teacher_dims={"A": teacher}, classes=3, clips=9, options={}
        )
    assert "\n" not in str(error.value)
