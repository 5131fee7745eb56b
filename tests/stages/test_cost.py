from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from avdistill.tracking.journal import start
from avdistill.training.trainer import Trainer
from stages import cost, train

RUNS = ("uni_modal", "kd", "mnf_csc")


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage forks its workers, which PyTorch refuses in a process where another test has used autograd."""
    monkeypatch.setattr("avdistill.pipeline.devices.cores", lambda: 1)


@pytest.fixture
def stage(tiny: Params) -> Iterator[Stage]:
    report = tiny.report.model_copy(update={"cost": RUNS})
    params = tiny.model_copy(update={"report": report})
    with start("cost", None, params) as run:
        yield Stage("cost", None, params, run)


def test_each_run_has_its_cost(stage: Stage) -> None:
    cost.main(stage)
    table = pd.read_csv(stage.params.path("cost") / "cost.csv").set_index("run")
    assert tuple(table.index) == RUNS and (table["baseline"] == "uni_modal").all() and (table["device"] == "cpu").all()
    numbers = table[list(cost.MEASURED)]
    assert np.isfinite(numbers).all(axis=None) and (table["seconds"] > 0).all()
    assert (table["relative_low"] <= table["relative"]).all() and (table["relative"] <= table["relative_high"]).all()
    assert table["added_parameters"]["uni_modal"] == 0 == table["added_parameters"]["kd"]
    assert table["added_parameters"]["mnf_csc"] > 0
    assert table["memory_relative"]["uni_modal"] == pytest.approx(1, abs=1e-3)
    assert table["memory_relative"]["mnf_csc"] > table["memory_relative"]["kd"] > 1
    gradients = pd.read_csv(stage.params.path("cost") / "gradients.csv").set_index(["run", "term"])["start"]
    assert tuple(gradients.index.unique("run")) == RUNS and gradients["uni_modal", "ce"] == pytest.approx(1, rel=1e-4)


def test_parameters_are_those_of_the_trained_networks(stage: Stage) -> None:
    trainer = cost.ready(stage, "mnf_csc", "cpu")
    found = cost.measure(trainer, cost.ready(stage, "uni_modal", "cpu"), cost.first_batches(trainer))
    assert found["student_parameters"] == sum(p.numel() for p in trainer.student.parameters())
    assert found["added_parameters"] == sum(p.numel() for p in trainer.distiller.parameters())


def test_steps_take_turns_after_a_warm_up() -> None:
    called: list[tuple[str, int]] = []
    now = [0.0]

    def takes(name: str, seconds: float, given: int) -> None:
        called.append((name, given))
        now[0] += seconds if len(called) > 2 * cost.WARM_UP else 100

    def first(given: int) -> None:
        takes("first", 1.0, given)

    def second(given: int) -> None:
        takes("second", 3.0, given)

    theirs, ours = cost.alternate(first, second, [7, 8, 9], lambda: now[0])
    assert theirs.tolist() == [1.0] * cost.STEPS and ours.tolist() == [3.0] * cost.STEPS
    assert len(called) == 2 * (cost.WARM_UP + cost.STEPS)
    for number in range(0, len(called), 2):
        pair = called[number : number + 2]
        assert {name for name, _ in pair} == {"first", "second"}, "each turn has both"
        assert [given for _, given in pair] == [[7, 8, 9][number // 2 % 3]] * 2, "of the same batch"
    assert len({called[number][0] for number in range(0, len(called), 2)}) == 2, "neither is always first"


def test_what_is_saved_for_backward_is_counted_once() -> None:
    x = torch.ones(1000, requires_grad=True)
    weight = torch.ones(500, 2, requires_grad=True)
    with cost.saved_for_backward() as saved:
        y = x.exp()  # saves its result
        z = (y * 2).view(500, 2) * weight  # saves both factors
        _ = z.view(2, 500) ** 2  # saves z, here as a view
    addresses = {tensor.untyped_storage().data_ptr() for tensor in (y, weight, z)}
    assert addresses <= set(saved)
    assert set(saved.values()) == {4000} and len(saved) == 4  # the fourth: y * 2


def test_what_is_kept_is_counted_by_hand(stage: Stage) -> None:
    trainer: Trainer = cost.ready(stage, "mnf_csc", "cpu")
    trainer.step(*cost.first_batches(trainer)[0])
    parameters = [p for m in (trainer.student, trainer.distiller) for p in m.parameters()]
    expected = 4 * sum(p.numel() for p in parameters)
    with_gradient = [p for p in parameters if p.grad is not None]
    expected += 3 * 4 * sum(p.numel() for p in with_gradient) + 4 * len(with_gradient)  # Adam: two moments and a count
    for module in (trainer.student, trainer.distiller):
        expected += sum(b.numel() * b.element_size() for b in module.buffers())
    table = trainer.teachers["A"]
    expected += sum(t.numel() * t.element_size() for t in (table.feature, table.logits, table.mask))
    assert sum(cost.storages(cost.resident_tensors(trainer)).values()) == expected


def test_a_run_without_a_baseline_has_no_cost(stage: Stage) -> None:
    jobs = dict(stage.params.jobs)
    recipes = stage.params.recipes | {"other": stage.params.recipes["small"].model_copy(update={"batch": 3})}
    jobs["kd"] = jobs["kd"].model_copy(update={"recipe": "other"})
    params = stage.params.model_copy(update={"jobs": jobs, "recipes": recipes})
    with pytest.raises(UserError, match=r"report\.cost: 'kd' has no baseline; expected a run of method uni_modal"):
        cost.main(Stage("cost", None, params, stage.run))


def test_gradients_are_relative_to_the_plain_cross_entropy(stage: Stage) -> None:
    trainer = cost.ready(stage, "kd", "cpu")
    batch = cost.first_batches(trainer)[0]
    shares = cost.gradient_shares(trainer, batch)
    known = trainer.teachers["A"].take(batch[2]).mask
    assert shares["ce"] == pytest.approx(0.1, rel=1e-4) if known.all() else shares["ce"] > 0.1
    assert shares["kd"] > 0 and set(shares) == {"ce", "kd"}
    trainer = cost.ready(stage, "uni_modal", "cpu")
    assert cost.gradient_shares(trainer, batch) == {"ce": pytest.approx(1, rel=1e-5)}


def test_a_weak_term_is_seen(stage: Stage) -> None:
    trainer = cost.ready(stage, "kd", "cpu")
    trainer.distiller.weight = 1e-6  # type: ignore[assignment]
    assert cost.gradient_shares(trainer, cost.first_batches(trainer)[0])["kd"] < 1e-3


def test_the_table_has_start_and_end_of_every_term(stage: Stage) -> None:
    with start("train", "uni_modal", stage.params) as run:
        train.main(Stage("train", "uni_modal", stage.params, run))
    rows = pd.DataFrame([each for name in RUNS for each in cost.gradients(stage, name, "cpu")]).set_index(
        ["run", "term"]
    )
    assert rows.loc[("uni_modal", "ce")].tolist() == pytest.approx([1, 1], rel=1e-4)
    assert np.isfinite(rows["start"]).all() and rows.loc["mnf_csc"]["end"].isna().all(), "it was not trained"
    assert (rows.loc["mnf_csc"]["start"] > 0).any() and 0 in rows.loc["mnf_csc"]["start"].to_list()
