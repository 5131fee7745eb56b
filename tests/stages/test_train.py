from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.schema import Params
from avdistill.pipeline.devices import resolve_device, run_parallel
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores
from avdistill.pipeline.stage import Stage
from avdistill.tracking.journal import start
from avdistill.training.task import Task, task_of
from avdistill.training.trainer import Trainer, train_one
from stages.train import main


def task(params: Params, folder: Path, job: str, run: str, seed: int = 0) -> Task:
    with start("train", job, params) as tracked:
        return task_of(params, run, seed, "cpu", folder, tracked)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{split}.{name}": value
        for split in ("student", "distiller")
        for name, value in getattr(trainer, split).state_dict().items()
    }


RUNS = [
    ("uni_modal", "uni_modal"),
    ("kd", "kd"),
    ("mnf_csc", "mnf_csc"),
    ("mnf_csc", "mnf_csc-audio_visual"),
    ("crd", "crd-A"),
    ("ifd", "ifd-AI"),
    ("xid", "xid"),
    ("dkd", "dkd-standardised"),
    ("c2kd-head", "c2kd-frozen-head"),
    ("fd_cmkd", "fd_cmkd-permuted"),
    ("mst_distill", "mst-stored"),
    ("tagging-uni_modal", "tagging-uni_modal"),
    ("tagging-crd", "tagging-crd"),
]


@pytest.mark.parametrize(("job", "run"), RUNS)
@pytest.mark.parametrize("workers", [0, 2])
def test_two_and_two_epochs_are_four(tiny: Params, tmp_path: Path, job: str, run: str, workers: int) -> None:
    params = tiny.model_copy(
        update={"recipes": {n: r.model_copy(update={"loader_workers": workers}) for n, r in tiny.recipes.items()}}
    )
    whole = Trainer(task(params, tmp_path / "whole", job, run))
    whole.fit(4)
    Trainer(task(params, tmp_path / "halves", job, run)).fit(2)
    resumed = Trainer(task(params, tmp_path / "halves", job, run))
    resumed.fit(4)
    assert resumed.history == whole.history and len(whole.history) == 4
    assert resumed.best["epoch"] == whole.best["epoch"]
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(resumed)[name]), name


@pytest.mark.parametrize(("job", "run"), [("uni_modal", "uni_modal"), ("mnf_csc", "mnf_csc")])
def test_two_processes_train_as_one_does(tiny: Params, tmp_path: Path, job: str, run: str) -> None:
    """Two processes on halves of each batch: the losses of one process, until rounding has grown.

    tests/avdistill/training/test_parallel.py compares one step in double precision."""
    histories = []
    for processes in (1, 2):
        recipe = tiny.recipes["small"].model_copy(update={"processes": processes})
        folder = tmp_path / str(processes)
        train_one(task(tiny.model_copy(update={"recipes": {"small": recipe}}), folder, job, run))
        histories.append(pd.read_csv(folder / run / "seed-0.csv"))
        assert torch.load(folder / run / "seed-0.pt", weights_only=True)["epoch"] in range(1, 5)
    columns = [name for name in histories[0] if name.startswith("loss")]
    assert len(histories[0]) == len(histories[1]) == 4 and columns
    np.testing.assert_allclose(histories[1][columns].iloc[0], histories[0][columns].iloc[0], rtol=1e-2)


@pytest.mark.parametrize(("job", "run"), RUNS)
def test_nothing_reads_memory_that_was_not_written(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, run: str
) -> None:
    whole = Trainer(task(tiny, tmp_path / "as found", job, run))
    whole.fit(1)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.set_deterministic_debug_mode("error")
    try:
        assert torch.empty(1).isnan()
        filled = Trainer(task(tiny, tmp_path / "filled", job, run))
        filled.fit(1)
    finally:
        torch.set_deterministic_debug_mode("default")
    assert filled.history == whole.history
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(filled)[name]), name


def test_training_learns_and_seeds_differ(tiny: Params, tmp_path: Path) -> None:
    first, second = (Trainer(task(tiny, tmp_path, "uni_modal", "uni_modal", seed)) for seed in (0, 1))
    first.fit(4)
    second.fit(4)
    assert first.history[-1]["loss"] < first.history[0]["loss"]
    assert first.history != [row | {"seed": 0} for row in second.history]


def test_widths_that_do_not_fit_name_the_run(tiny: Params, tmp_path: Path) -> None:
    wider = tiny.recipes["small"].model_copy(update={"width": 2 * tiny.recipes["small"].width})
    with pytest.raises(UserError, match=r"jobs\.mnf_csc\.runs\.mnf_csc: projector none needs equal widths"):
        Trainer(task(tiny.model_copy(update={"recipes": {"small": wider}}), tmp_path, "mnf_csc", "mnf_csc"))


def test_the_learning_rate_steps_down_at_the_milestone(tiny: Params, tmp_path: Path) -> None:
    trainer = Trainer(task(tiny, tmp_path, "uni_modal", "uni_modal"))
    trainer.fit()
    assert [row["lr"] for row in trainer.history] == pytest.approx([0.003, 0.003, 0.003, 0.0003])


def test_the_selected_epoch_is_the_best_on_the_select_part(tiny: Params, tmp_path: Path) -> None:
    trainer = Trainer(task(tiny, tmp_path, "uni_modal", "uni_modal"))
    trainer.fit()
    ranks = [(row["val_accuracy"], -row["val_loss"]) for row in trainer.history]
    assert trainer.best["epoch"] == 1 + max(range(4), key=ranks.__getitem__)
    last = tiny.model_copy(
        update={"recipes": {"small": tiny.recipes["small"].model_copy(update={"selection": "last"})}}
    )
    trainer = Trainer(task(last, tmp_path / "last", "uni_modal", "uni_modal"))
    trainer.fit()
    assert trainer.best["epoch"] == 4
    for name, value in trainer.student.state_dict().items():
        assert torch.equal(value, trainer.best["student"][name])


def test_the_stage_makes_weights_and_history_and_is_the_same_with_any_number_of_cores(
    tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    # Spawned: a test that ran before in this process may have started threads of autograd, which cannot be forked.
    monkeypatch.setattr("avdistill.pipeline.devices.sys.platform", "darwin")
    for number in ("1", "2"):
        monkeypatch.setenv("AV_CORES", number)
        with start("train", "mnf_csc", tiny) as run:
            main(Stage("train", "mnf_csc", tiny, run))
        folder = tiny.path("train", "mnf_csc")
        history = pd.read_csv(folder / "history.csv")
        job = tiny.jobs["mnf_csc"]
        assert len(history) == len(job.trainings()) * tiny.recipes["small"].epochs
        weights = {
            f"{name}-{seed}": torch.load(folder / name / f"seed-{seed}.pt", weights_only=True)
            for name, seed in job.trainings()
        }
        assert not list(folder.rglob("*checkpoint*"))
        found.append((history, weights))
    pd.testing.assert_frame_equal(found[0][0], found[1][0], check_exact=True)
    for name, state in found[0][1].items():
        for key, value in state["student"].items():
            assert torch.equal(value, found[1][1][name]["student"][key])


def test_a_changed_input_is_not_resumed_from(tiny: Params) -> None:
    """What an interrupted execution left is used for the same inputs and settings only."""
    partial = Path(tiny.suite.out) / ".partial" / "train-kd"
    with start("train", "kd", tiny) as run:
        stage = Stage("train", "kd", tiny, run)
        with pytest.raises(RuntimeError), stage.output(key="one") as folder:
            (folder / "left").write_text("half")
            raise RuntimeError
        assert (partial / "left").exists()
        with pytest.raises(RuntimeError), stage.output(key="one") as folder:
            assert (folder / "left").exists()
            raise RuntimeError
        with stage.output(key="another") as folder:
            assert not (folder / "left").exists()
            (folder / "whole").write_text("")
        assert not partial.exists()
        assert [path.name for path in tiny.path("train", "kd").iterdir()] == ["whole"]


def square(number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return number * number


@pytest.mark.parametrize("number", ["1", "2"])
def test_jobs_keep_their_order_and_their_errors(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("AV_CORES", number)
    assert run_parallel(square, [(n,) for n in range(20)], "cpu", "squares") == [n * n for n in range(20)]
    with pytest.raises(ValueError, match="negative"):
        run_parallel(square, [(1,), (-1,), (2,)], "cpu", "squares")


def meet(folder: Path, number: int) -> int:
    """Waits until three of its kind are there."""
    (folder / str(number)).touch()
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    return len(list(folder.iterdir()))


def test_three_jobs_share_two_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("avdistill.pipeline.devices.cores", lambda: 2)
    assert run_parallel(meet, [(tmp_path, n) for n in range(3)], "cpu", "jobs") == [3, 3, 3]


def seen_device(number: int) -> int:
    return getattr(torch.cuda, "chosen", -1)


def test_jobs_on_several_gpus_have_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked workers and a made-up set_device stand for GPUs, which no test machine needs to have."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda place: setattr(torch.cuda, "chosen", place))
    monkeypatch.setattr(
        "avdistill.pipeline.devices.multiprocessing.get_context", lambda _, get=multiprocessing.get_context: get("fork")
    )
    assert set(run_parallel(seen_device, [(n,) for n in range(40)], "cuda", "jobs")) <= {0, 1}
    assert run_parallel(seen_device, [(1,), (2,)], "cuda:1", "jobs") == [-1, -1], "one device: no other process"


def test_devices_and_cores_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(UserError, match="does not exist"):
        resolve_device("cuda:99")
    monkeypatch.setenv("AV_CORES", "zero")
    with pytest.raises(UserError, match="AV_CORES"):
        cores()
