"""Two processes against one, in double precision, where nothing hides behind rounding."""

from __future__ import annotations

import multiprocessing.connection
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.training import parallel


def network() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv3d(3, 6, (1, 3, 3)), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 8, (2, 1, 1)))
    return nn.Sequential(block, nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 3 * 9, 5)).double()


def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    clips = torch.randn(8, 3, 4, 5, 5, generator=random, dtype=torch.float64)
    return clips, torch.randint(5, (8,), generator=random)


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and a term that relates every clip to every other."""
    return F.cross_entropy(logits, labels) + torch.cdist(logits, logits).square().mean()


def outcome(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}


def step_of_one_rank(folder: Path) -> None:
    rank, world_size = parallel.rank_and_world_size()
    model = network()
    parallel.sync_batch_norms(model)
    clips, labels = (part.chunk(world_size)[rank] for part in batch())
    loss = loss_of(parallel.gather(model(clips)), parallel.gather(labels))
    loss.backward()
    parallel.all_reduce_gradients(model)
    torch.save(outcome(model, loss), folder / f"{rank}.pt")


def test_loss_gradients_and_statistics_are_those_of_one_process(tmp_path: Path) -> None:
    model = network()
    clips, labels = batch()
    loss = loss_of(model(clips), labels)
    loss.backward()
    alone = outcome(model, loss)
    parallel.launch(step_of_one_rank, (tmp_path,), 2, "cpu")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=f"rank {rank}: {name}")


def fail_in_one() -> None:
    if parallel.rank_and_world_size()[0] == 1:
        raise ValueError("one of them fails")
    parallel.gather(torch.zeros(1))  # would wait forever


def test_one_that_fails_ends_all() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 exited with code .*: rank 1: ValueError: one of them fails"):
        parallel.launch(fail_in_one, (), 2, "cpu")


def follow_the_failure_of_another() -> None:
    """Rank 0 loses its peer and fails too, and is the first one to be looked at."""
    if parallel.rank_and_world_size()[0] == 1:
        raise ValueError("one of them fails")
    try:
        parallel.gather(torch.zeros(1))
    finally:
        os._exit(6)


def test_the_first_error_is_reported_not_one_that_follows_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = multiprocessing.connection.wait
    monkeypatch.setattr("multiprocessing.connection.wait", lambda alive: [wait([each]) for each in alive])
    with pytest.raises(RuntimeError, match=r"rank 0 exited .*: rank 1: ValueError"):
        parallel.launch(follow_the_failure_of_another, (), 2, "cpu")


def nothing_to_do() -> None:
    pass


def test_processes_that_end_while_they_are_asked_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked twice whether it is alive may answer twice; to wait for nobody would be to wait for ever."""
    asked: list[bool] = []
    waited: list[int] = []

    def is_alive(process: object) -> bool:
        asked.append(True)
        return len(asked) == 1  # the first one, when it is asked first

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.is_alive", is_alive)
    monkeypatch.setattr("multiprocessing.connection.wait", lambda sentinels: waited.append(len(sentinels)))
    parallel.launch(nothing_to_do, (), 2, "cpu")
    assert waited == [1]


def test_alone() -> None:
    assert parallel.rank_and_world_size() == (0, 1)
