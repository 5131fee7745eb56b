"""MNF + CSC against its equations in NumPy, and its two gradient modes against two explicit backward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.distillers.mnf_csc import calibrated_contrast, temperatures, triplet_loss
from models.outputs import StudentOutput
from tests.models.distillers.batches import DIM, Batch, array, make, total
from tests.models.distillers.test_kd import cross_entropy, softmax


def norm(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def linear(x, weight, bias):
    return x @ weight.T + bias


def batch_norm_relu(x):
    return np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)


class Reference:
    """The module in NumPy, float64, on the weights of ours."""

    def __init__(self, method, batch, heads=2):
        self.w = {name: array(value) for name, value in method.state_dict().items()}
        self.labels, self.heads = batch.labels.numpy(), heads
        self.s, self.m, self.t = array(batch.feature), array(batch.map), array(batch.teachers["A"].feature)

    def affine(self, name, x):
        return linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def mask(self):
        hidden = batch_norm_relu(self.affine("mask.w1", np.concatenate([self.t, self.s], 1)))
        return 1 / (1 + np.exp(-self.affine("mask.w2", hidden)))

    def attend(self, query):
        """(weights (B, heads, P), output (B, D)) of multi-head attention of one query on the map."""
        weight, bias = self.w["attention.in_proj_weight"], self.w["attention.in_proj_bias"]
        q, k, v = (
            linear(x, weight[i * DIM : (i + 1) * DIM], bias[i * DIM : (i + 1) * DIM])
            for i, x in enumerate([query, self.m, self.m])
        )
        size = DIM // self.heads
        weights, output = [], []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            p = softmax(np.einsum("bd,bpd->bp", q[:, part], k[:, :, part]) / np.sqrt(size))
            weights.append(p)
            output.append(np.einsum("bp,bpd->bd", p, v[:, :, part]))
        return np.stack(weights, 1), self.affine("attention.out_proj", np.concatenate(output, 1))

    def selected(self, query):
        return batch_norm_relu(self.affine("select.0", self.attend(query)[1]))

    def contrast(self, target, purified, delta=0.07):
        tau = norm(self.s) @ norm(purified).T + delta
        p = softmax(norm(self.s) @ norm(target).T / tau)
        same = self.labels[:, None] == self.labels
        return -np.mean([np.log(p[i][same[i]]).mean() for i in range(len(p))])

    def triplet(self, purified, margin=0.2):
        raw, pure = ((norm(x) * norm(self.s)).sum(1) for x in (self.t, purified))
        return np.maximum(raw - pure + margin, 0).mean()

    def guided(self, target):
        return cross_entropy(self.affine("classify", target), self.labels)


def close(terms, expected):
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=2e-5), name


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_values(heads):
    batch, method = Batch(), make("mnf_csc", heads=heads)
    reference = Reference(method, batch, heads)
    purified = reference.mask() * reference.t
    target = reference.selected(purified)
    close(
        method(*batch.arguments()),
        {
            "ce": cross_entropy(array(batch.logits), reference.labels),
            "triplet": reference.triplet(purified),
            "guided_ce": reference.guided(target),
            "contrast": reference.contrast(target, purified),
        },
    )
    right = reference.affine("classify", target).argmax(1) == reference.labels
    assert method.measured["guided_accuracy"].item() == pytest.approx(right.mean())


def test_values_of_other_options():
    batch = Batch()
    method = make("mnf_csc", margin=0.5, delta=0.2, weight=3, gradients="released", mask_l1=0.1)
    reference = Reference(method, batch)
    purified = reference.mask() * reference.t
    target = reference.selected(purified)
    close(
        method(*batch.arguments()),
        {
            "ce": cross_entropy(array(batch.logits), reference.labels),
            "triplet": 3 * reference.triplet(purified, 0.5),
            "guided_ce": 3 * reference.guided(target),
            "contrast": 3 * reference.contrast(target, purified, 0.2),
            "mask_l1": 0.1 / DIM * np.abs(reference.w["mask.w2.weight"]).sum(),
        },
    )


def test_values_without_mask():
    batch, method = Batch(), make("mnf_csc", mask=False)
    reference = Reference(method, batch)
    target = reference.selected(reference.t)
    close(
        method(*batch.arguments()),
        {
            "ce": cross_entropy(array(batch.logits), reference.labels),
            "guided_ce": reference.guided(target),
            "contrast": reference.contrast(target, reference.t),
        },
    )


def test_values_of_strategies():
    batch, method = Batch(), make("mnf_csc", strategy="audio_visual")
    reference = Reference(method, batch)
    purified = reference.mask() * reference.t
    both = np.concatenate([purified, reference.selected(purified)], 1)
    target = batch_norm_relu(reference.affine("fuse.0", both))
    terms = method(*batch.arguments())
    assert terms["contrast"].item() == pytest.approx(reference.contrast(target, purified), rel=2e-5)
    assert terms["guided_ce"].item() == pytest.approx(reference.guided(target), rel=2e-5)
    method = make("mnf_csc", strategy="audio")
    reference = Reference(method, batch)
    close(
        method(*batch.arguments()),
        {
            "ce": cross_entropy(array(batch.logits), reference.labels),
            "guided_ce": reference.guided(reference.t),
            "contrast": reference.contrast(reference.t, reference.t),
        },
    )


@pytest.mark.parametrize("projector", ["linear", "linear_bn"])
def test_projector_takes_the_teacher_to_the_student_s_width(projector):
    batch, method = Batch(dim=10), make("mnf_csc", dim=10, projector=projector)
    reference = Reference(method, batch)
    projected = reference.affine("project.0", reference.t)
    reference.t = batch_norm_relu(projected) if projector == "linear_bn" else np.maximum(projected, 0)
    purified = reference.mask() * reference.t
    terms = method(*batch.arguments())
    assert terms["contrast"].item() == pytest.approx(
        reference.contrast(reference.selected(purified), purified), rel=1e-4
    )
    with pytest.raises(ValueError, match=r"10 channels.*16.*linear"):
        make("mnf_csc", dim=10)


def test_ablations_leave_terms_out():
    batch = Batch()
    assert "triplet" not in make("mnf_csc", triplet=False)(*batch.arguments())
    assert "contrast" not in make("mnf_csc", contrast=False)(*batch.arguments())


def gradients(method, batch, terms):
    """Gradients of the sum of some terms, for the student's leaves and the module's parameters."""
    for leaf in (batch.feature, batch.map, batch.logits, *method.parameters()):
        leaf.grad = None
    loss = method(*batch.arguments())
    total({name: loss[name] for name in terms}).backward()
    student = {name: getattr(batch, name).grad for name in ("feature", "map", "logits")}
    return student, {name: p.grad for name, p in method.named_parameters()}


def test_only_the_mask_learns_from_the_triplet():
    method = make("mnf_csc", projector="linear")
    student, module = gradients(method, Batch(), ["triplet"])
    assert all(grad is None for grad in student.values())
    touched = {name.split(".")[0] for name, grad in module.items() if grad is not None}
    assert touched == {"mask"}


@pytest.mark.parametrize(
    ("mode", "term", "reached"),
    [
        ("paper", "ce", {"logits"}),
        ("paper", "contrast", {"feature", "map"}),
        ("paper", "guided_ce", {"feature", "map"}),
        ("released", "contrast", {"feature", "map"}),
        ("released", "guided_ce", set()),
        ("released", "mask_l1", set()),
    ],
)
def test_what_the_student_learns_from(mode, term, reached):
    student, _ = gradients(make("mnf_csc", gradients=mode), Batch(), [term])
    assert {name for name, grad in student.items() if grad is not None and grad.abs().sum() > 0} == reached


def test_released_mode_equals_two_backward_passes():
    """As the authors' program: the module's loss first, its gradient to the student dropped, then the student's."""
    batch, method = Batch(), make("mnf_csc", gradients="released", weight=0.7)
    one_student, one_module = gradients(method, batch, method(*batch.arguments()))

    leaves = {name: getattr(batch, name) for name in ("feature", "map", "logits")}
    for leaf in (*leaves.values(), *method.parameters()):
        leaf.grad = None
    teacher = batch.teachers["A"].feature.detach()
    found = method.filter(batch.feature, batch.map, teacher)
    module_loss = (
        0.7 * functional.cross_entropy(found.logits, batch.labels)
        + 0.7 * triplet_loss(batch.feature, teacher, found.purified, 0.2)
        + 1e-3 * method.mask.w2.weight.abs().sum() / DIM
    )
    module_loss.backward(retain_graph=True)
    for leaf in leaves.values():
        leaf.grad = None
    tau = temperatures(batch.feature, found.purified, 0.07)
    student_loss = functional.cross_entropy(batch.logits, batch.labels)
    student_loss = student_loss + 0.7 * calibrated_contrast(batch.feature, found.target, tau, batch.labels)
    student_loss.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(one_student[name], leaf.grad, atol=1e-6, rtol=1e-5)
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(one_module[name], parameter.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_running_statistics_see_each_batch_once(mode):
    batch, method = Batch(), make("mnf_csc", gradients=mode)
    joined = torch.cat([batch.teachers["A"].feature, batch.feature], 1).detach()
    expected = 0.1 * method.mask.w1(joined).mean(0)
    method(*batch.arguments())
    torch.testing.assert_close(method.mask.norm.running_mean, expected.detach())


def test_temperature_where_the_cosine_is_minus_delta():
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    delta = 0.07
    opposite = torch.tensor([[-delta, (1 - delta**2) ** 0.5], [1.0, 0.0]])
    tau = temperatures(s, opposite, delta)
    assert tau[0, 0].item() == pytest.approx(delta)
    assert (temperatures(s, -s, delta) >= delta - 1e-9).all()
    assert not temperatures(s.requires_grad_(), opposite, delta).requires_grad
    loss = calibrated_contrast(s, opposite, tau, torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite() and loss > 0 and s.grad.isfinite().all()
    positive = torch.rand(5, 3)
    expected = functional.cosine_similarity(positive[:, None], positive[None], dim=2) + delta
    torch.testing.assert_close(temperatures(positive, positive, delta), expected)


def test_scores_and_attention():
    batch, method = Batch().silence([2]), make("mnf_csc").eval()
    with torch.no_grad():
        scores = method.scores(batch.student, batch.teachers)
        attention = method.attend(batch.student, batch.teachers)
        half = StudentOutput(*(x.bfloat16() for x in batch.student[:3]), batch.student.stages)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            in_half = method.scores(half, batch.teachers)
            half_attention = method.attend(half, batch.teachers)
        for name, value in scores.items():
            torch.testing.assert_close(in_half[name], value, atol=3e-3, rtol=0, equal_nan=True)
        torch.testing.assert_close(half_attention, attention, atol=3e-3, rtol=0, equal_nan=True)
    heard = [i for i in range(12) if i != 2]
    s, t = batch.feature.detach()[heard], batch.teachers["A"].feature[heard]
    gate = method.mask(t, s).detach()
    assert scores["mask"].shape == scores["tau"].shape == (12,)
    assert scores["mask"][2].isnan() and scores["tau"][2].isnan()
    torch.testing.assert_close(scores["mask"][heard], gate.mean(1))
    torch.testing.assert_close(scores["tau"][heard], temperatures(s, gate * t, 0.07).diag())
    assert attention.shape == (12, 6)
    assert attention[2].isnan().all()
    reference = Reference(method, batch.rows(heard))
    weights, _ = reference.attend(array(gate * t))
    np.testing.assert_allclose(attention[heard].numpy(), weights.mean(1), atol=1e-6)
    with torch.no_grad():
        none = Batch().silence(list(range(12)))
        assert method.scores(none.student, none.teachers)["tau"].isnan().all()
        assert method.attend(none.student, none.teachers).isnan().all()
    assert "mask" not in make("mnf_csc", mask=False).eval().scores(batch.student, batch.teachers)


def test_learning_rate_of_the_module():
    (group,) = make("mnf_csc").param_groups(0.01)
    assert group["lr"] == pytest.approx(0.002)


def test_a_target_of_the_right_class_has_a_smaller_loss():
    labels = torch.arange(12) % 4
    s = torch.eye(4)[labels]
    tau = torch.full((12, 12), 0.1)
    good = calibrated_contrast(s, s, tau, labels)
    bad = calibrated_contrast(s, torch.eye(4)[(labels + 1) % 4], tau, labels)
    assert good < bad
    assert good.item() == pytest.approx(np.log(3), abs=1e-3)  # three positives share the probability
