"""What holds for every method, whatever its equation."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn import functional

from models.distillers import build, check_options, methods
from tests.models.distillers.batches import CLASSES, STAGES, Batch, all_finite, hard_batches, make, total

CASES = [(name, teachers) for name, method in methods().items() for teachers in method.accepts]
VARIANTS = {
    "kd": [{"standardise": True}],
    "dkd": [{"standardise": True}],
    "c2kd": [
        {"tap": "feature"},
        {"agreement": "predictions"},
        {"nontarget": "zeroed"},
        {"threshold": -1.0},
        {"teacher": "head"},
    ],
    "fd_cmkd": [{"align": "student"}, {"heads": False}, {"permute": True}, {"projector": "linear"}],
    "fitnet": [{"normalise": True}],
    "mnf_csc": [
        {"gradients": "released"},
        {"mask": False},
        {"strategy": "audio_visual"},
        {"strategy": "audio"},
        {"projector": "linear"},
        {"projector": "linear_bn", "gradients": "released"},
        {"triplet": False, "contrast": False},
    ],
    "ccl": [
        {"gradients": "released"},
        {"composition": False},
        {"composition": False, "gradients": "released"},
        {"contrast": "infonce"},
        {"contrast": "none", "gradients": "released"},
        {"jsd": False},
        {"projector": "linear_bn", "gradients": "released"},
    ],
    "rc_mc": [{"self_similarity": True}],
    "crd": [{"negatives": 5}],
    "cmc": [{"negatives": 5}],
    "xid": [{"warmup": 0}],
    "supcon": [{"contrast": "multiclass"}],
    "uni_modal": [{"label_smoothing": 0.1}],
}
ALL = [(*case, {}) for case in CASES] + [(n, t, o) for n, t in CASES for o in VARIANTS.get(n, [])]


@pytest.mark.parametrize("hard", hard_batches())
@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_finite(name, teachers, options, hard):
    all_finite(make(name, teachers, **options), hard_batches(teachers)[hard])


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_order_of_clips_does_not_matter(name, teachers, options):
    batch = Batch(teachers=teachers).silence([3])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    ours, theirs = (make(name, teachers, **options)(*b.arguments()) for b in (batch, batch.rows(order)))
    for term in ours:
        torch.testing.assert_close(ours[term], theirs[term], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_clips_without_sound_count_for_the_labels_only(name, teachers, options):
    """Terms that need sound are those of the batch without the silent clips; the student's CE is that of all."""
    if not teachers:
        pytest.skip("no teacher")
    batch, silent = Batch(teachers=teachers), [0, 4, 7]
    rest = batch.rows([i for i in range(12) if i not in silent])
    whole = make(name, teachers, **options)(*Batch(teachers=teachers).arguments())
    ours = make(name, teachers, **options)(*batch.silence(silent).arguments())
    theirs = make(name, teachers, **options)(*rest.arguments())
    expected = whole["ce"]
    if name == "kd":  # what the teacher's term does not carry, the label does
        each = functional.cross_entropy(batch.logits, batch.labels, reduction="none")
        expected = expected + 0.9 * each[silent].sum() / 12
    torch.testing.assert_close(ours.pop("ce"), expected)
    for term, value in ours.items():
        torch.testing.assert_close(value, theirs[term], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_without_any_sound_the_other_terms_are_zero(name, teachers, options):
    if not teachers:
        pytest.skip("no teacher")
    method = make(name, teachers, **options)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    terms = method(*Batch(teachers=teachers).silence(list(range(12))).arguments())
    assert all(value == 0 for term, value in terms.items() if term != "ce")
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_only_a_method_that_says_so_uses_the_predictions_of_its_teachers(name, teachers, options):
    """Stage train fits heads for these methods alone; another one would distil heads that saw other clips' labels."""
    batch = Batch(teachers=teachers)
    unknown = {letter: t._replace(logits=torch.full_like(t.logits, torch.nan)) for letter, t in batch.teachers.items()}
    terms = make(name, teachers, **options)(batch.student, unknown, batch.labels, batch.index)
    used = not all(value.isfinite() for value in terms.values())
    declared = bool(teachers) and methods()[name].uses_logits
    assert used == declared or (declared and options == {"teacher": "head"}), "C2KD's own head uses them at the start"


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_half_precision_changes_little(name, teachers, options):
    full, half = Batch(teachers=teachers), Batch(teachers=teachers)
    student = half.student
    student = type(student)(
        student.logits.bfloat16(), student.feature.bfloat16(), student.map.bfloat16(),
        tuple(stage.bfloat16() for stage in student.stages),
    )  # fmt: skip
    expected = make(name, teachers, **options)(*full.arguments())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = make(name, teachers, **options)(student, half.teachers, half.labels, half.index)
    for term, value in ours.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[term], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_same_seed_same_bits(name, teachers, options):
    results = []
    for _ in range(2):
        method, batch = make(name, teachers, **options), Batch(teachers=teachers)
        loss = total(method(*batch.arguments()))
        loss.backward()
        results.append((loss, batch.logits.grad, batch.feature.grad))
    for ours, theirs in zip(*results, strict=True):
        assert (ours is theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "teachers", "options"), ALL, ids=str)
def test_learning_rates_cover_all_parameters(name, teachers, options):
    method = make(name, teachers, **options)
    grouped = [p for group in method.param_groups(0.1) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters()}
    assert len(grouped) == len(set(map(id, grouped)))


@pytest.mark.parametrize("name", methods())
def test_a_method_says_where_it_comes_from(name):
    module = inspect.getmodule(methods()[name])
    assert module is not None and module.__doc__ and methods()[name].__doc__
    assert methods()[name].accepts


def test_checking_options_draws_no_random_numbers():
    before = torch.get_rng_state()
    for name, method in methods().items():
        for teachers in method.accepts:
            check_options(name, {}, teachers)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "options", "teachers", "words"),
    [
        ("mnfcsc", {}, None, "no method 'mnfcsc'.*'mnf_csc'"),
        ("mnf_csc", {"deltas": 0.1}, None, "no option 'deltas'.*'delta'"),
        ("mnf_csc", {"delta": True}, None, "delta: expected float, found True"),
        ("mnf_csc", {"delta": "0.1"}, None, "delta: expected float"),
        ("mnf_csc", {"delta": float("nan")}, None, "delta: expected float, found nan"),
        ("mnf_csc", {"delta": 0}, None, "delta.*above 0"),
        ("mnf_csc", {"heads": 2.0}, None, "heads: expected int"),
        ("mnf_csc", {"heads": 0}, None, "heads"),
        ("mnf_csc", {"triplet": 1}, None, "triplet: expected bool"),
        ("mnf_csc", {"strategy": "visal"}, None, "strategy: 'visal'.*'visual'"),
        ("mnf_csc", {"strategy": ["visual"]}, None, "strategy"),
        ("mnf_csc", {}, "AI", "teachers 'AI'.*'A' or 'I'"),
        ("kd", {}, "", "teachers ''"),
        ("kd", {"temperature": 0.0}, None, "temperature"),
        ("kd", {"weight": -1}, None, "weight"),
        ("uni_modal", {"weight": 1}, "", "no option 'weight'; valid: label_smoothing"),
        ("uni_modal", {}, "A", "teachers 'A'"),
    ],
)
def test_wrong_options_are_one_line_errors(name, options, teachers, words):
    with pytest.raises(ValueError, match=words) as error:
        check_options(name, options, teachers)
    assert "\n" not in str(error.value)
    dims = dict.fromkeys("A" if teachers is None else teachers, 16)
    with pytest.raises(ValueError, match=words):
        build(name, student_dim=16, stage_dims=STAGES, teacher_dims=dims, classes=CLASSES, clips=9, options=options)


def test_an_int_stands_for_a_float():
    check_options("kd", {"temperature": 2})
