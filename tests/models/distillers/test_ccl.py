"""CCL against its equations in NumPy, and its released form against two explicit backward passes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.distillers import check_options
from models.distillers.ccl import info_nce, log_complement, multiclass_nce, symmetric_kl
from tests.models.distillers.batches import CLASSES, Batch, array, make, total
from tests.models.distillers.test_kd import cross_entropy, softmax

TAU = {"A": 0.5, "I": 0.1}
TABLE_3 = {
    "CCL w/o composition": {"composition": False},
    "CCL w/ L_ct": {"contrast": "infonce"},
    "CCL w/o L_nce": {"contrast": "none"},
    "CCL w/o L_JSD": {"jsd": False},
    "CCL": {},
}


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def nce(u, w, labels, tau):
    """N(u, w) clip by clip, as the equation stands."""
    p = softmax(unit(u) @ unit(w).T / tau)
    loss = 0.0
    for i, own in enumerate(labels):
        loss -= np.log(p[i][labels == own]).mean()
        if (labels != own).any():
            loss -= np.log(1 - p[i][labels != own]).mean()
    return loss / len(labels)


def both_ways(u, w, labels, tau):
    return nce(u, w, labels, tau) + nce(w, u, labels, tau)


def first_only(u, w, labels, tau):
    return -np.log(softmax(unit(u) @ unit(w).T / tau).diagonal()).mean()


def jsd(a, b):
    p, q = softmax(a), softmax(b)
    return ((p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)).mean() / 2


def composed(method, batch, letter):
    """s, t, f_x and z_x, float64, on the weights of ours."""
    w = {name: array(value) for name, value in method.state_dict().items()}
    s, t = array(batch.feature), array(batch.teachers[letter].feature)
    both = np.concatenate([unit(t), unit(s)], 1)
    f = t + both @ w[f"compose.{letter}.residual.weight"].T + w[f"compose.{letter}.residual.bias"]
    return s, t, f, f @ w[f"compose.{letter}.classify.weight"].T + w[f"compose.{letter}.classify.bias"]


def close(terms, expected):
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("teachers", ["A", "I", "AI"])
@pytest.mark.parametrize(
    ("options", "tau", "share", "label_weight"),
    [
        ({}, TAU, 0.5, 1),
        ({"temperature_A": 0.2, "temperature_I": 3, "teacher_share": 0.2}, {"A": 0.2, "I": 3}, 0.2, 1),
        ({"label_weight": 2}, TAU, 0.5, 2),
    ],
)
def test_values(teachers, options, tau, share, label_weight):
    batch, method = Batch(teachers=teachers), make("ccl", teachers, **options)
    z, labels = array(batch.logits), batch.labels.numpy()
    expected = {"ce": label_weight * cross_entropy(z, labels)}
    for letter in teachers:
        s, t, f, z_f = composed(method, batch, letter)
        end = f"_{letter}" if len(teachers) == 2 else ""
        expected |= {
            f"composed_ce{end}": label_weight * cross_entropy(z_f, labels),
            f"teacher_contrast{end}": share * nce(s, t, labels, tau[letter]),
            f"composed_contrast{end}": (1 - share) * nce(s, f, labels, tau[letter]),
            f"jsd{end}": jsd(z, z_f),
        }
    close(method(*batch.arguments()), expected)


@pytest.mark.parametrize("teachers", ["A", "I", "AI"])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_values_of_the_released_form(teachers, share):
    batch, method = Batch(teachers=teachers), make("ccl", teachers, gradients="released", teacher_share=share)
    z, labels = array(batch.logits), batch.labels.numpy()
    expected = {"ce": cross_entropy(z, labels)}
    for letter in teachers:
        s, t, f, z_f = composed(method, batch, letter)
        end = f"_{letter}" if len(teachers) == 2 else ""
        st, sf, ft = (both_ways(*pair, labels, TAU[letter]) for pair in ((s, t), (s, f), (f, t)))
        expected |= {
            f"composed_ce{end}": cross_entropy(z_f, labels),
            f"teacher_contrast{end}": 2 * share * st / len(teachers),
            f"composed_contrast{end}": 2 * (1 - share) * sf / len(teachers),
            f"jsd{end}": jsd(z, z_f) / len(teachers),
            f"own_contrast{end}": sf + ft,
            f"own_jsd{end}": jsd(z, z_f),
        }
    close(method(*batch.arguments()), expected)


def test_values_with_infonce():
    batch, method = Batch(), make("ccl", contrast="infonce")
    s, t, f, _ = composed(method, batch, "A")
    terms, labels = method(*batch.arguments()), batch.labels.numpy()
    assert terms["teacher_contrast"].item() == pytest.approx(0.5 * first_only(s, t, labels, 0.5), rel=1e-5)
    assert terms["composed_contrast"].item() == pytest.approx(0.5 * first_only(s, f, labels, 0.5), rel=1e-5)


def test_values_without_composition():
    batch, method = Batch(), make("ccl", composition=False)
    s, t, z, labels = *map(array, (batch.feature, batch.teachers["A"].feature, batch.logits)), batch.labels.numpy()
    z_t = t @ array(method.compose["A"].classify.weight).T + array(method.compose["A"].classify.bias)
    terms = method(*batch.arguments())
    contrast = terms["teacher_contrast"] + terms["composed_contrast"]
    assert contrast.item() == pytest.approx(nce(s, t, labels, 0.5), rel=1e-5)
    assert terms["composed_ce"].item() == pytest.approx(cross_entropy(z_t, labels), rel=1e-5)
    assert terms["jsd"].item() == pytest.approx(jsd(z, z_t), rel=1e-5)


def test_ablations_leave_terms_out():
    everything = {"ce", "composed_ce", "teacher_contrast", "composed_contrast", "jsd"}
    released = everything | {"own_contrast", "own_jsd"}
    for options, missing in (
        ({}, set()),
        ({"contrast": "none"}, {"teacher_contrast", "composed_contrast", "own_contrast"}),
        ({"jsd": False}, {"jsd", "own_jsd"}),
    ):
        assert set(make("ccl", **options)(*Batch().arguments())) == everything - missing
        assert set(make("ccl", gradients="released", **options)(*Batch().arguments())) == released - missing


def test_every_row_of_the_paper_s_ablation_has_options():
    file = Path(__file__).parents[3] / "avdistill/reporting/reported_results.csv"
    with file.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if (row["source"], row["table"]) == ("chen2021", "3")]
    assert {row["method"] for row in rows} - {"baseline"} == set(TABLE_3)
    for row in rows:
        check_options("ccl", TABLE_3.get(row["method"], {}), row["setup"])


@pytest.mark.parametrize("projector", ["linear", "linear_bn"])
def test_projector_takes_the_teacher_to_the_student_s_width(projector):
    batch, method = Batch(dim=10), make("ccl", dim=10, projector=projector)
    layer = method.project["A"][0]
    t = array(batch.teachers["A"].feature) @ array(layer.weight).T + array(layer.bias)
    if projector == "linear_bn":
        t = (t - t.mean(0)) / np.sqrt(t.var(0) + 1e-5)
    loss = method(*batch.arguments())["teacher_contrast"]
    assert loss.item() == pytest.approx(0.5 * nce(array(batch.feature), t, batch.labels.numpy(), 0.5), rel=1e-5)
    with pytest.raises(ValueError, match=r"teacher A has 10 channels.*16.*linear"):
        make("ccl", dim=10)


def test_log_complement_where_one_minus_p_rounds_to_nothing():
    x = np.array([[300.0, 0.0, 1.0], [2.0, 2.0, 2.0], [-50.0, -50.0, 60.0], [0.1, 0.2, 0.9]])
    others = np.stack([np.logaddexp.reduce(np.delete(x, k, axis=1), axis=1) for k in range(3)], axis=1)
    expected = others - np.logaddexp.reduce(x, axis=1, keepdims=True)
    ours = torch.tensor(x, dtype=torch.float32).requires_grad_()
    np.testing.assert_allclose(array(log_complement(ours)), expected, rtol=1e-5, atol=1e-7)
    log_complement(ours).sum().backward()
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("loss", [multiclass_nce, info_nce])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_contrast_s_gradient_is_that_of_finite_differences(loss, temperature):
    rng = torch.Generator().manual_seed(4)
    u, w = (torch.randn(5, 3, dtype=torch.float64, generator=rng).requires_grad_() for _ in range(2))
    labels = torch.tensor([0, 1, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda u, w: loss(u, w, labels, temperature), (u, w))


def test_contrast_sees_directions_alone_and_the_labels():
    batch = Batch()
    s, t, labels = batch.feature.detach(), batch.teachers["A"].feature.detach(), batch.labels
    scale = torch.arange(1.0, 13)[:, None]
    expected = multiclass_nce(s, t, labels, 0.5)
    torch.testing.assert_close(multiclass_nce(s * scale, t * scale.flip(0), labels, 0.5), expected)
    torch.testing.assert_close(multiclass_nce(s, t, (labels + 1) % CLASSES, 0.5), expected)
    assert not torch.isclose(multiclass_nce(s, t, labels.roll(1), 0.5), expected)
    assert torch.equal(info_nce(s, t, labels, 0.5), info_nce(s, t, labels.roll(1), 0.5))


def test_a_class_without_others_has_no_second_half():
    s, t = array(Batch().feature), array(Batch().teachers["A"].feature)
    one = np.zeros(12, dtype=int)
    ours = multiclass_nce(torch.tensor(s), torch.tensor(t), torch.tensor(one), 0.1)
    assert ours.item() == pytest.approx(-np.log(softmax(unit(s) @ unit(t).T / 0.1)).mean(), rel=1e-9)
    alone = multiclass_nce(torch.tensor(s[:1]).requires_grad_(), torch.tensor(t[:1]), torch.tensor([0]), 0.1)
    alone.backward()
    assert alone.item() == 0


def test_gradient_of_the_symmetric_kl_where_both_are_certain():
    """dJ/da = ( p (l - <p, l>) + p - q ) / 2N with l = log p - log q; all finite, though p and q have zeros."""
    a = np.array([[800.0, 0, -300], [-700, 900, 0], [0.3, -0.2, 0.1]])
    b = np.array([[-500.0, 0, 700], [-600, 800, 0], [0.9, 0.4, -2]])
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (a, b))
    p, q, ratio = np.exp(log_p), np.exp(log_q), log_p - log_q
    ours = torch.tensor(a, dtype=torch.float32).requires_grad_()
    loss = symmetric_kl(ours, torch.tensor(b, dtype=torch.float32))
    loss.backward()
    assert loss.item() == pytest.approx(((p - q) * ratio).sum() / 6, rel=1e-5)
    expected = (p * (ratio - (p * ratio).sum(1, keepdims=True)) + p - q) / 6
    np.testing.assert_allclose(array(ours.grad), expected, rtol=1e-4, atol=1e-6)  # of logits of a thousand


def gradients(method, batch, terms):
    """Gradients of the sum of some terms, for the student's leaves and the module's parameters."""
    for leaf in (batch.feature, batch.logits, *method.parameters()):
        leaf.grad = None
    loss = method(*batch.arguments())
    total({name: loss[name] for name in terms}).backward()
    student = {name: getattr(batch, name).grad for name in ("feature", "logits")}
    return student, {name: p.grad for name, p in method.named_parameters()}


@pytest.mark.parametrize(
    ("mode", "term", "reached"),
    [
        ("paper", "ce", {"logits"}),
        ("paper", "composed_ce", {"feature"}),
        ("paper", "teacher_contrast", {"feature"}),
        ("paper", "composed_contrast", {"feature"}),
        ("paper", "jsd", {"feature", "logits"}),
        ("released", "composed_ce", set()),
        ("released", "teacher_contrast", {"feature"}),
        ("released", "composed_contrast", {"feature"}),
        ("released", "jsd", {"feature", "logits"}),
        ("released", "own_contrast", set()),
        ("released", "own_jsd", set()),
    ],
)
def test_what_the_student_learns_from(mode, term, reached):
    student, _ = gradients(make("ccl", gradients=mode), Batch(), [term])
    assert {name for name, grad in student.items() if grad is not None and grad.abs().sum() > 0} == reached


@pytest.mark.parametrize("teachers", ["A", "AI"])
def test_released_form_equals_two_backward_passes(teachers):
    """The compositions' loss first, its gradient to the student dropped, then the student's."""
    batch, method = Batch(teachers=teachers), make("ccl", teachers, gradients="released")
    one_student, one_module = gradients(method, batch, method(*batch.arguments()))

    for leaf in (batch.feature, batch.logits, *method.parameters()):
        leaf.grad = None
    s, z, y = batch.feature, batch.logits, batch.labels

    def both(u, w, letter):
        return multiclass_nce(u, w, y, TAU[letter]) + multiclass_nce(w, u, y, TAU[letter])

    student_loss, module_loss = functional.cross_entropy(z, y), torch.zeros(())
    for letter in teachers:
        t = batch.teachers[letter].feature.detach()
        f, z_f = method.compose[letter](s, t)
        module_loss = module_loss + functional.cross_entropy(z_f, y) + symmetric_kl(z, z_f)
        module_loss = module_loss + both(s, f, letter) + both(f, t, letter)
        shared = both(s, t, letter) + both(s, f, letter) + symmetric_kl(z, z_f)
        student_loss = student_loss + shared / len(teachers)
    module_loss.backward(retain_graph=True)
    batch.feature.grad = batch.logits.grad = None
    student_loss.backward()
    for name, grad in one_student.items():
        torch.testing.assert_close(grad, getattr(batch, name).grad, atol=1e-6, rtol=1e-5)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(one_module[name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_silence_leaves_the_other_teacher_s_terms_alone():
    batch, method = Batch(teachers="AI"), make("ccl", "AI")
    before = method(*batch.arguments())
    image = batch.teachers["I"]
    batch.silence([0, 4]).teachers["I"] = image
    after = method(*batch.arguments())
    for name, value in after.items():
        assert torch.equal(value, before[name]) == (not name.endswith("_A")), name


def test_running_statistics_see_each_batch_once():
    batch, method = Batch(dim=10), make("ccl", dim=10, projector="linear_bn", gradients="released")
    linear, norm = method.project["A"]
    expected = 0.1 * linear(batch.teachers["A"].feature.detach()).mean(0)
    method(*batch.arguments())
    torch.testing.assert_close(norm.running_mean, expected.detach())


def test_a_resumed_module_gives_the_same_bits():
    batch = Batch(teachers="AI")
    options = {"projector": "linear_bn", "gradients": "released"}
    first, second = make("ccl", "AI", **options), make("ccl", "AI", seed=1, **options)
    first(*batch.arguments())
    second.load_state_dict(first.state_dict())
    for ours, theirs in zip(first(*batch.arguments()).values(), second(*batch.arguments()).values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature_A": 0}, "temperature_A"),
        ({"temperature_I": -0.1}, "temperature_I"),
        ({"teacher_share": 1.5}, "teacher_share"),
        ({"label_weight": -1}, "label_weight"),
        ({"contrast": "nce"}, r"contrast.*'none'|contrast.*'infonce'"),
        ({"composition": 0}, "composition: expected bool"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words) as error:
        make("ccl", **options)
    assert "\n" not in str(error.value)
