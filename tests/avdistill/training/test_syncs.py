"""A training step must not wait for the device: a GPU that waits for the host between steps computes nothing."""

from __future__ import annotations

import pytest
import torch

from avdistill.config.schema import Params
from benchmarks import made_up
from benchmarks.gpu.smoke import SMALL, earlier_student, every_job
from tests.helpers.syncs import Syncs

JOBS = every_job()


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    made = made_up.suite(tmp_path_factory.mktemp("suite"), 16, (6, 36, 48), SMALL, jobs=JOBS)
    earlier_student(made)
    return made


@pytest.fixture(autouse=True)
def _as_before() -> None:
    yield
    torch.use_deterministic_algorithms(False)


def test_what_would_wait_is_found() -> None:
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    waits = {
        "a value": lambda: float(x[1]),
        "a branch": lambda: bool((x > 0).any()),
        "nonzero": mask.nonzero,
        "index": lambda: x[mask],
        "index_put": lambda: x.clone().__setitem__(mask, x[:3]),
        "unique": x.unique,
        "numbers of the host": lambda: torch.tensor([1.0, 2.0]),
    }
    for name, wait in waits.items():
        with Syncs() as seen:
            wait()
        assert seen.found, name
        assert all("tests/avdistill/training/test_syncs.py" in place for place in seen.found), seen.found
    with Syncs() as seen:
        torch.where(mask, x, 0).sum() + x[torch.arange(2)].mean() + x.masked_fill(mask, 0).sum()
    assert not seen.found


@pytest.mark.parametrize("job", JOBS)
def test_no_step_waits(job: str, params: Params) -> None:
    """In the third of three steps, in the second epoch: after whatever a method does once."""
    trainer = made_up.trainer(params, "cpu", job)
    batches = [trainer.to_device(batch) for batch in trainer.loader]
    trainer.step(*batches[0])
    trainer.distiller.start_epoch(30)
    trainer.step(*batches[1])
    with Syncs() as seen:
        trainer.step(*batches[0])
    assert not seen.found


def test_what_a_step_gets_does_not_change_what_it_computes(params: Params) -> None:
    """The positions of the clips with sound, found on the host or on the device: the same bits."""
    losses = []
    for known in (True, False):
        trainer = made_up.trainer(params, "cpu", "mnf_csc-A")
        batch = trainer.to_device(next(iter(trainer.loader)))
        assert batch[3]["A"].tolist() == trainer.teachers["A"].mask[batch[2]].nonzero().flatten().tolist()
        losses.append(trainer.step(*(batch if known else batch[:3]))["loss"])
    assert torch.equal(*losses)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("job", JOBS)
def test_no_step_waits_on_a_gpu(job: str, params: Params) -> None:
    trainer = made_up.trainer(params, "cuda", job)
    batches = [trainer.to_device(batch) for batch in trainer.loader]
    trainer.step(*batches[0])
    trainer.step(*batches[1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(*batches[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
