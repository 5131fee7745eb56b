"""Trainings that are interrupted within an epoch, and what writes their checkpoints."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.training import checkpoints, parallel
from avdistill.training.checkpoints import Checkpoints
from avdistill.training.task import Task
from avdistill.training.tensors import save_tensors
from avdistill.training.trainer import Trainer
from tests.stages.test_train import RUNS, state_of, task

EPOCHS = 2


class StopError(Exception):
    pass


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step, for all that the disk needs for it."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)


def with_workers(params: Params, workers: int) -> Params:
    recipes = {name: r.model_copy(update={"loader_workers": workers}) for name, r in params.recipes.items()}
    return params.model_copy(update={"recipes": recipes})


def with_options(params: Params, job: str, run: str, **options: Any) -> Params:
    entry = params.jobs[job].runs[run]
    entry = entry.model_copy(update={"options": entry.options | options})
    changed = params.jobs[job].model_copy(update={"runs": {run: entry}})
    return params.model_copy(update={"jobs": params.jobs | {job: changed}})


def interrupt(trainer: Trainer, steps: int) -> None:
    """Train until the step after `steps` steps, which fails."""
    whole, left = trainer.step, steps

    def step(*batch: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal left
        if not left:
            raise StopError
        left -= 1
        return whole(*batch)

    trainer.step = step  # type: ignore[method-assign]
    with pytest.raises(StopError):
        trainer.fit(EPOCHS)


def assert_same(resumed: Trainer, whole: Trainer) -> None:
    assert resumed.history == whole.history
    assert resumed.best["epoch"] == whole.best["epoch"]
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(resumed)[name]), name


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("job", "run"), RUNS)
def test_an_epoch_goes_on_at_the_step_after_the_last_checkpoint(
    tiny: Params, tmp_path: Path, job: str, run: str
) -> None:
    """Interrupted in the first epoch, in the second, and between the two."""
    whole = Trainer(task(tiny, tmp_path / "whole", job, run))
    whole.fit(EPOCHS)
    batches = len(whole.loader)
    assert batches > 2
    for steps in (1, batches, batches + 2):
        folder = tmp_path / str(steps)
        interrupt(Trainer(task(tiny, folder, job, run)), steps)
        resumed = Trainer(task(tiny, folder, job, run))
        resumed.load()
        assert (resumed.epoch, resumed.steps) == divmod(steps, batches)
        resumed.fit(EPOCHS)
        assert_same(resumed, whole)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("workers", [(0, 2), (2, 0), (2, 1)])
def test_the_number_of_loader_workers_may_change_where_a_method_draws_numbers(
    tiny: Params, tmp_path: Path, workers: tuple[int, int]
) -> None:
    """Interrupted in the second epoch, in which persistent workers are not started again."""
    params = with_options(tiny, "crd", "crd-A", negatives=3)
    whole = Trainer(task(params, tmp_path / "whole", "crd", "crd-A"))
    whole.fit(EPOCHS)
    folder, steps = tmp_path / "halves", len(whole.loader) + 1
    interrupt(Trainer(task(with_workers(params, workers[0]), folder, "crd", "crd-A")), steps)
    resumed = Trainer(task(with_workers(params, workers[1]), folder, "crd", "crd-A"))
    resumed.fit(EPOCHS)
    assert_same(resumed, whole)


def test_negatives_are_those_of_earlier_versions(tiny: Params, tmp_path: Path) -> None:
    """The number that DataLoader took from the generator before each epoch is still taken."""
    params = with_options(tiny, "crd", "crd-A", negatives=3)
    trainer = Trainer(task(params, tmp_path, "crd", "crd-A", 1))
    drawn = []
    trainer.step = lambda *_: drawn.append(torch.rand(3)) or {}  # type: ignore[method-assign, func-returns-value]
    trainer.train_epoch()
    torch.manual_seed(100_003)
    torch.empty((), dtype=torch.int64).random_()
    assert all(torch.equal(numbers, torch.rand(3)) for numbers in drawn) and len(drawn) > 1


def interrupt_and_resume(whole_task: Task, halves_task: Task) -> None:
    """What each of two processes does: one training as a whole, and one in two pieces."""
    Checkpoints.due = lambda self: True  # type: ignore[method-assign]
    whole = Trainer(whole_task)
    whole.fit(EPOCHS)
    interrupt(Trainer(halves_task), 1)
    distributed.barrier()  # rank 0 has written its state
    resumed = Trainer(halves_task)
    resumed.load()
    assert (resumed.epoch, resumed.steps) == (0, 1)
    resumed.fit(EPOCHS)
    assert_same(resumed, whole)


def test_two_processes_go_on_within_an_epoch(tiny: Params, tmp_path: Path) -> None:
    tasks = tuple(task(tiny, tmp_path / name, "crd", "crd-A") for name in ("whole", "halves"))
    parallel.launch(interrupt_and_resume, tasks, 2, "cpu")


def test_a_training_that_diverged_is_not_gone_on_with(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its last epoch and its last file, it diverges in the same epoch again."""
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    trainer = Trainer(task(tiny, tmp_path, "uni_modal", "uni_modal"))
    trainer.validate = lambda: {"val_loss": float("nan")}  # type: ignore[method-assign]
    trainer.fit()
    assert trainer.diverged and trainer.epoch == 1
    resumed = Trainer(trainer.task)
    resumed.load()
    assert (resumed.epoch, resumed.steps) == (0, len(resumed.loader))


def state(number: int) -> dict[str, Any]:
    return {"run": "r", "seed": 0, "weights": torch.full((3,), number)}


def loaded(files: Checkpoints) -> dict[str, Any] | None:
    return files.load(torch.device("cpu"), "r", 0)


def test_a_state_may_change_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is begun before it has been written."""
    go_on = threading.Event()

    def slow(path: Path, value: dict[str, Any]) -> None:
        assert go_on.wait(60)
        save_tensors(path, value)

    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))
    monkeypatch.setattr(checkpoints, "save_tensors", slow)
    files, weights = Checkpoints(tmp_path / "seed-0"), {"nested": [torch.zeros(3)]}
    assert files.due()
    files.save(state(0) | weights)
    weights["nested"][0] += 1
    assert not files.due()
    go_on.set()
    files.wait()
    assert files.due()
    found = loaded(files)
    assert found is not None and found["nested"][0].tolist() == [0, 0, 0]


def test_a_state_that_cannot_be_written_ends_the_training(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: dict[str, Any]) -> None:
        raise UserError(f"{path}: {OSError(errno.ENOSPC, 'No space left on device').strerror}")

    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "save_tensors", full)
    trainer = Trainer(task(tiny, tmp_path, "uni_modal", "uni_modal"))
    with pytest.raises(UserError, match=r"seed-0\.checkpoint\.pt: No space left"):
        trainer.fit()


def test_checkpoints_take_two_hundredths_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def write(path: Path, value: dict[str, Any]) -> None:
        nonlocal now
        now += value["seconds"]

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    monkeypatch.setattr(checkpoints, "save_tensors", write)
    files, times = Checkpoints(tmp_path / "seed-0"), []
    while now < 700:
        if files.due():
            times.append(round(now))
            files.save({"seconds": 4.0 if len(times) > 2 else 0.05})
            files.wait()
        now += 0.5
    assert times == [5, 10, 15, 215, 415, 615]
