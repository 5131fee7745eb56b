"""C2KD with a frozen encoder against its equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from models.distillers import build, check_options
from models.distillers.c2kd import fitted_head, rank_agreement, selected_kl
from models.distillers.logits import kl_by_row, without_label
from models.outputs import TeacherBatch
from tests.models.distillers import reference
from tests.models.distillers.batches import STAGES, Batch, array, hard_batches, make, total
from tests.models.distillers.numeric import in_double, slopes
from tests.models.distillers.test_kd import cross_entropy, kl


def proxy(weights, name, x, slope=0.1):
    u, v, c = (weights[f"{name}.{key}"] for key in ("u.weight", "v.weight", "v.bias"))
    gain, shift = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
    h = x @ u.T
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * gain + shift
    return np.where(h > 0, h, slope * h) @ v.T + c


def tau_b(a, b):
    found = np.array([kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)])
    return np.where(np.isnan(found), 0, found)


def ofsd(teacher, student, labels, gate, nontarget):
    value = 0.0
    for t, s, y, chosen in zip(teacher, student, labels, gate, strict=True):
        if nontarget == "removed":
            t, s = np.delete(t, y), np.delete(s, y)
        else:
            t, s = t * (np.arange(len(t)) != y), s * (np.arange(len(s)) != y)
        value += chosen * (kl(s[None], t[None], 1) + kl(t[None], s[None], 1))
    return value / len(labels)


def test_the_written_down_values():
    x = reference.logits()
    agreement = rank_agreement(x.teacher_proxy, x.student_proxy)
    torch.testing.assert_close(agreement, torch.tensor([-0.4, 0.2, -1, -1], dtype=torch.double))
    gate = (agreement > 0).double()
    for p, q, expected in (
        (x.student, x.student_proxy, 0.414073),
        (x.student_proxy, x.student, 0.579605),
        (x.teacher, x.teacher_proxy, 0.948460),
        (x.teacher_proxy, x.teacher, 1.635918),
    ):
        assert kl_by_row(p, q).mean().item() == pytest.approx(expected, abs=1e-6)
    t, s = (without_label(p, x.labels) for p in (x.teacher_proxy, x.student_proxy))
    assert (gate * kl_by_row(t, s)).mean().item() == pytest.approx(0.030262, abs=1e-6)
    assert (gate * kl_by_row(s, t)).mean().item() == pytest.approx(0.039693, abs=1e-6)
    for nontarget, expected in (("removed", 0.030262 + 0.039693), ("zeroed", 0.095238 + 0.120078)):
        found = selected_kl(x.teacher_proxy, x.student_proxy, x.labels, gate, nontarget)
        assert found.item() == pytest.approx(expected, abs=2e-6)


def test_rank_agreement_is_kendall_s_tau_b():
    random = torch.Generator().manual_seed(4)
    for classes in (2, 3, 11, 309):
        a, b = (torch.randn(6, classes, generator=random) for _ in range(2))
        np.testing.assert_allclose(rank_agreement(a, b), tau_b(array(a), array(b)), atol=1e-6)
        a, b = (torch.randint(3, (6, classes), generator=random).float() for _ in range(2))  # many ties
        np.testing.assert_allclose(rank_agreement(a, b), tau_b(array(a), array(b)), atol=1e-6)
    assert rank_agreement(torch.ones(2, 5), torch.randn(2, 5)).tolist() == [0, 0]


def test_order_alone_counts_for_the_gate():
    x = reference.logits()
    before = rank_agreement(x.teacher_proxy, x.student_proxy)
    for change in (lambda p: p + 9, torch.exp, lambda p: p**3, lambda p: 0.01 * p):
        assert torch.equal(rank_agreement(change(x.teacher_proxy), x.student_proxy), before)
    assert torch.equal(rank_agreement(-x.teacher_proxy, x.student_proxy), -before)


def test_the_label_s_logit_counts_for_the_gate_but_not_for_the_loss():
    x, one = reference.logits(), torch.ones(4, dtype=torch.double)
    moved = x.student_proxy + 9 * torch.nn.functional.one_hot(x.labels, 5)
    before, after = (selected_kl(x.teacher_proxy, p, x.labels, one, "removed") for p in (x.student_proxy, moved))
    assert torch.equal(before, after)
    assert not torch.equal(*(rank_agreement(x.teacher_proxy, p) for p in (x.student_proxy, moved)))
    assert selected_kl(x.teacher_proxy, moved, x.labels, 0 * one, "removed") == 0


@pytest.mark.parametrize("tap", ["stage", "feature"])
@pytest.mark.parametrize("agreement", ["proxies", "predictions"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": 3, "student_weight": 0.5, "teacher_weight": 2},
        {"threshold": -0.3, "slope": 0, "nontarget": "zeroed"},
    ],
)
def test_values(options, agreement, tap):
    batch, method = Batch(dim=10), make("c2kd", dim=10, tap=tap, agreement=agreement, **options)
    weights = {name: array(value) for name, value in method.state_dict().items()}
    terms = method(*batch.arguments())
    teacher, labels, z = batch.teachers["A"], batch.labels.numpy(), array(batch.logits)
    x, slope = array(batch.stages[2] if tap == "stage" else batch.feature), options.get("slope", 0.1)
    p_s, p_t = proxy(weights, "student_proxy", x, slope), proxy(weights, "teacher_proxy", array(teacher.feature), slope)
    tau = tau_b(p_t, p_s) if agreement == "proxies" else tau_b(array(teacher.logits), z)
    gate = tau > options.get("threshold", 0)
    assert 0 < gate.sum() < 12, "both kinds of clip"
    expected = {
        "ce": cross_entropy(z, labels),
        "student_proxy": options.get("student_weight", 1) * (kl(p_s, z, 1) + kl(z, p_s, 1)),
        "teacher_proxy": options.get("teacher_weight", 1) * kl(p_t, array(teacher.logits), 1),
        "ofsd": options.get("weight", 1) * ofsd(p_t, p_s, labels, gate, options.get("nontarget", "removed")),
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name
    measured = {
        "chosen": gate.mean(),
        "agreement": tau.mean(),
        "student_proxy_accuracy": (p_s.argmax(1) == labels).mean(),
        "teacher_proxy_accuracy": (p_t.argmax(1) == labels).mean(),
    }
    assert {name: float(value) for name, value in method.measured.items()} == pytest.approx(measured, abs=1e-6)


def head_of(method):
    return array(method.head.weight), array(method.head.bias)


@pytest.mark.parametrize("agreement", ["proxies", "predictions"])
def test_values_with_a_head_that_trains(agreement):
    batch, method = Batch(dim=16), make("c2kd", dim=16, teacher="head", agreement=agreement, teacher_weight=2)
    weights, (weight, bias) = {name: array(value) for name, value in method.state_dict().items()}, head_of(method)
    teacher, labels, z_s = batch.teachers["A"], batch.labels.numpy(), array(batch.logits)
    z_t = array(teacher.feature) @ weight.T + bias
    p_s = proxy(weights, "student_proxy", array(batch.stages[2]))
    p_t = proxy(weights, "teacher_proxy", array(teacher.feature))
    gate = (tau_b(p_t, p_s) if agreement == "proxies" else tau_b(z_t, z_s)) > 0
    assert 0 < gate.sum() < 12, "both kinds of clip"
    expected = {
        "ce": cross_entropy(z_s, labels),
        "teacher_ce": cross_entropy(z_t, labels),
        "student_proxy": kl(p_s, z_s, 1) + kl(z_s, p_s, 1),
        "teacher_proxy": 2 * (kl(p_t, z_t, 1) + kl(z_t, p_t, 1)),
        "ofsd": ofsd(p_t, p_s, labels, gate, "removed"),
    }
    terms = method(*batch.arguments())
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert method.measured["head_accuracy"].item() == pytest.approx((z_t.argmax(1) == labels).mean())
    # Twelve clips with 16 channels: a head that starts from their logits gives them again.
    fixed = make("c2kd", dim=16, agreement=agreement, teacher_weight=2)(*batch.arguments())
    assert fixed["ce"] == terms["ce"] and fixed["student_proxy"] == terms["student_proxy"]
    method.check_teachers(batch.teachers)
    both = method(*batch.arguments())["teacher_proxy"].item()
    assert both == pytest.approx(fixed["teacher_proxy"].item() + 2 * kl(array(teacher.logits), p_t, 1), rel=1e-3)


def test_written_down_values_of_a_head_that_gives_the_teacher_s_logits():
    """A head that is the identity on a feature of 5 channels: CE(z^t, y) of the shared example."""
    x, batch = reference.logits(), Batch(4, dim=5)
    batch.teachers["A"] = batch.teachers["A"]._replace(feature=x.teacher.float())
    batch.labels = x.labels
    method = make("c2kd", dim=5, teacher="head")
    method.head.weight.data, method.head.bias.data = torch.eye(5), torch.zeros(5)
    found = method(*batch.arguments())["teacher_ce"].item()
    assert found == pytest.approx(cross_entropy(array(x.teacher), x.labels.numpy()), abs=1e-6)
    assert found == pytest.approx(3.644314, abs=1e-6)


def test_the_head_starts_from_the_stored_one():
    rng = torch.Generator().manual_seed(5)
    feature, weight, bias = (torch.randn(shape, generator=rng) for shape in ((60, 8), (5, 8), (5,)))
    feature[:, 2] = 3.0  # a channel that says nothing
    table = TeacherBatch(feature, feature @ weight.T + bias, torch.arange(60) > 4)
    feature[:5] = torch.nan  # clips without sound
    method = make("c2kd", dim=8, teacher="head")
    method.check_teachers({"A": table})
    rest = [0, 1, 3, 4, 5, 6, 7]
    torch.testing.assert_close(method.head.weight[:, rest], weight[:, rest], atol=1e-5, rtol=1e-5)
    assert method.head.weight[:, 2].abs().max() < 1e-12
    torch.testing.assert_close(method.head.bias, bias + 3 * weight[:, 2], atol=1e-5, rtol=1e-5)
    before = [value.clone() for value in method.head.parameters()]
    method.check_teachers({"A": table._replace(mask=torch.zeros(60, dtype=torch.bool))})
    assert all(map(torch.equal, before, method.head.parameters())), "a teacher that knows no clip"


def test_from_logits_out_of_fold_the_head_starts_as_their_least_squares_fit():
    rng = np.random.default_rng(6)
    feature, fold = rng.normal(size=(90, 6)), np.arange(90) % 3
    heads = rng.normal(size=(5, 6)) + 0.1 * rng.normal(size=(3, 5, 6))
    logits = np.einsum("ncd,nd->nc", heads[fold], feature)
    weight, bias = fitted_head(torch.from_numpy(feature), torch.from_numpy(logits))
    expected = np.linalg.lstsq(np.hstack([feature, np.ones((90, 1))]), logits, rcond=None)[0]
    np.testing.assert_allclose(np.hstack([weight, bias[:, None]]), expected.T, atol=1e-10)
    few, _ = fitted_head(torch.from_numpy(feature[:4]), torch.from_numpy(logits[:4]))
    span = np.linalg.svd(feature[:4] - feature[:4].mean(0))[2][:3]
    np.testing.assert_allclose(few, few.numpy() @ span.T @ span, atol=1e-10)


def test_gradient_of_a_head_that_trains():
    """The head learns from the labels and from KL(sg p_T || z^t); KL(sg z^t || p_T) stops at the proxy."""
    batch, method = Batch(6, dim=7), make("c2kd", dim=7, teacher="head", teacher_weight=0.5)
    terms = in_double(method, batch)
    (terms["teacher_ce"] + terms["teacher_proxy"]).backward()
    weights, t = {name: array(value) for name, value in method.state_dict().items()}, array(batch.teachers["A"].feature)
    p_t, bias, labels = proxy(weights, "teacher_proxy", t), weights["head.bias"], batch.labels.numpy()

    def loss(weight):
        z_t = t @ weight.T + bias
        return cross_entropy(z_t, labels) + 0.5 * kl(z_t, p_t, 1)

    expected = slopes(loss, weights["head.weight"])
    np.testing.assert_allclose(method.head.weight.grad, expected, rtol=1e-4, atol=1e-7)
    assert batch.teachers["A"].feature.grad is None


def test_gradient_of_the_proxy_reaches_the_tapped_stage():
    """KL(p_S || z^s) stops at the proxy, so the stage's gradient is that of KL(z^s || p_S) alone."""
    batch, method = Batch(6), make("c2kd")
    in_double(method, batch)["student_proxy"].backward()
    weights, z = {name: array(value) for name, value in method.state_dict().items()}, array(batch.logits)
    x = array(batch.stages[2])
    expected = slopes(lambda s: kl(proxy(weights, "student_proxy", s), z, 1), x)
    np.testing.assert_allclose(batch.stages[2].grad, expected, rtol=1e-4, atol=1e-7)
    p_s = proxy(weights, "student_proxy", x)
    expected = slopes(lambda logits: kl(logits, p_s, 1), z)
    np.testing.assert_allclose(batch.logits.grad, expected, rtol=1e-4, atol=1e-7)


def test_gradient_of_the_selected_kl():
    """Each direction trains one proxy: the other side is detached."""
    x, gate = reference.logits(), torch.tensor([1.0, 0, 1, 1], dtype=torch.double)
    t, s = x.teacher_proxy.requires_grad_(), x.student_proxy.requires_grad_()
    selected_kl(t, s, x.labels, gate, "removed").backward()

    def one_way(teacher, student):
        rows = zip(teacher, student, x.labels.numpy(), gate.numpy(), strict=True)
        return sum(c * kl(np.delete(b, y)[None], np.delete(a, y)[None], 1) for a, b, y, c in rows) / 4

    np.testing.assert_allclose(s.grad, slopes(lambda p: one_way(array(t), p), array(s)), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(t.grad, slopes(lambda p: one_way(array(s), p), array(t)), rtol=1e-4, atol=1e-8)


def test_who_learns_from_what():
    """OFSD never reaches the student's classifier; only proxies and student learn."""
    for term, classifier, stage, proxies in (
        ("ce", True, False, set()),
        ("student_proxy", True, True, {"student_proxy"}),
        ("teacher_proxy", False, False, {"teacher_proxy"}),
        ("ofsd", False, True, {"student_proxy", "teacher_proxy"}),
    ):
        batch, method = Batch(), make("c2kd", threshold=-1.0)
        method(*batch.arguments())[term].backward()
        assert (batch.logits.grad is not None) is classifier, term
        assert (batch.stages[2].grad is not None) is stage, term
        assert {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None} == proxies
        assert batch.feature.grad is None and batch.map.grad is None
        teacher = batch.teachers["A"]
        assert teacher.feature.grad is None and teacher.logits.grad is None


def test_who_learns_from_what_with_a_head():
    """No term joins the student's and the teacher's classifier."""
    for term, learning in (
        ("ce", set()),
        ("student_proxy", {"student_proxy"}),
        ("teacher_proxy", {"teacher_proxy", "head"}),
        ("teacher_ce", {"head"}),
        ("ofsd", {"student_proxy", "teacher_proxy"}),
    ):
        batch, method = Batch(), make("c2kd", threshold=-1.0, teacher="head")
        method(*batch.arguments())[term].backward()
        assert (batch.logits.grad is not None) is (term in ("ce", "student_proxy")), term
        assert {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None} == learning


def test_with_no_clip_chosen_the_selected_kl_is_exactly_zero():
    method, batch = make("c2kd", threshold=1.0), Batch()
    assert method(*batch.arguments())["ofsd"] == 0 and method.measured["chosen"] == 0


@pytest.mark.parametrize(("teacher", "measured"), [("fixed", 4), ("head", 5)])
def test_one_clip_with_sound_is_exactly_zero_and_is_measured_as_none(teacher, measured):
    method = make("c2kd", teacher=teacher)
    terms = method(*hard_batches()["one with sound"].arguments())
    assert all(value == 0 for term, value in terms.items() if term != "ce")
    assert len(method.measured) == measured and not any(method.measured.values())
    total(terms).backward()


def test_widths_are_those_of_the_taps():
    assert make("c2kd").student_proxy.u.weight.shape == (STAGES[2], STAGES[2])
    assert make("c2kd", tap="feature", dim=9).student_proxy.u.weight.shape == (16, 16)
    assert make("c2kd", dim=9).teacher_proxy.u.weight.shape == (9, 9)
    assert make("c2kd").student_proxy.u.bias is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight": -1}, "^weight"),
        ({"student_weight": -1}, "student_weight"),
        ({"teacher_weight": -1}, "teacher_weight"),
        ({"threshold": 1.5}, "threshold"),
        ({"slope": -0.1}, "slope"),
        ({"nontarget": "remove"}, "'removed'"),
        ({"teacher": "heads"}, "'head'"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options("c2kd", options)
    assert "\n" not in str(error.value)


def test_two_classes_are_refused():
    with pytest.raises(ValueError, match="needs three, found 2"):
        build("c2kd", student_dim=4, stage_dims=(4,) * 4, teacher_dims={"A": 4}, classes=2, clips=9, options={})
