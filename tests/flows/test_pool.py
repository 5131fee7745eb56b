"""Runs in a work pool, without a server: how often they are started, and when a worker counts as dead."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from prefect.states import Completed, Crashed, Failed, Running, State

from avdistill.pipeline.errors import UserError
from flows import pool
from flows.dvc import StageError, StoppedError

REQUEST = httpx.Request("POST", "http://127.0.0.1")
RESPONSES = [httpx.Response(503), httpx.Response(422)]


def outcome(monkeypatch: pytest.MonkeyPatch, *states: State[Any]) -> tuple[Any, list[str], int]:
    """Run a flow in a pool where its runs end in these states; returns run, log and number of runs."""
    left, log = list(states), list[str]()
    monkeypatch.setattr(pool, "get_client", lambda **_: nullcontext())
    monkeypatch.setattr(pool, "_deployment", lambda *_: None)
    monkeypatch.setattr(pool, "_start", lambda *_: None)
    monkeypatch.setattr(pool, "_follow", lambda *_: SimpleNamespace(state=left.pop(0)))
    try:
        run: Any = pool.run_in_pool("stage", "cluster", "train@kd", {}, True, log.append, lambda: False)
    except StageError as error:
        run = str(error)
    return run, log, len(states) - len(left)


def test_a_failure_is_started_again_until_it_comes_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    died, full = Crashed(message="worker x died"), Failed(message="disk full")
    run, log, number = outcome(monkeypatch, died, full, Completed(name="Ran"))
    assert run.state.name == "Ran" and number == 3
    assert log == ["train@kd: worker x died; started again", "train@kd: disk full; started again"]
    assert outcome(monkeypatch, died, full, died, full, Completed())[2] == 5
    assert outcome(monkeypatch, died, full, full, Completed()) == ("disk full", log, 3)


def test_a_server_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [httpx.ConnectError("away"), *(httpx.HTTPStatusError("", request=REQUEST, response=_) for _ in RESPONSES)]

    def start(*_: Any) -> None:
        if answers:
            raise answers.pop(0)

    monkeypatch.setattr(pool, "POLL_SECONDS", 0)
    monkeypatch.setattr(pool, "get_client", lambda **_: nullcontext())
    monkeypatch.setattr(pool, "_deployment", lambda *_: None)
    monkeypatch.setattr(pool, "_start", start)
    monkeypatch.setattr(pool, "_follow", lambda *_: SimpleNamespace(state=Completed()))
    given: Any = ("stage", "cluster", "train@kd", {}, True, print, lambda: False)
    with pytest.raises(StageError, match="Prefect refused train@kd"):
        pool.run_in_pool(*given)
    assert answers == [] and pool.run_in_pool(*given).state is not None


def test_equal_runs_are_shared_until_they_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect returns the flow run that has the same key in place of creating one."""
    asked = list[dict[str, Any]]()
    monkeypatch.setattr(pool, "git", lambda *_: "abc")
    monkeypatch.setattr(pool, "run_deployment", lambda *_, **given: asked.append(given))
    runs = list[Any]()
    client: Any = SimpleNamespace(read_flow_runs=lambda **_: runs)
    deployment: Any = SimpleNamespace(id=uuid4())

    def key(stage: str, md5: str, gpu: bool = True) -> str:
        pool._start(client, deployment, "stage", stage, {"upstream": {"check": md5}}, gpu)
        return str(asked[-1]["idempotency_key"])

    assert key("train@kd", "1") == key("train@kd", "1")
    assert len({key("train@kd", "1"), key("train@ccl", "1"), key("train@kd", "2")}) == 3
    before = key("train@kd", "1", gpu=False)
    assert asked[-1]["work_queue_name"] == "cpu" and asked[-1]["job_variables"]["gpus"] == 0
    runs += [SimpleNamespace(state=Running()), SimpleNamespace(state=None)]
    assert key("train@kd", "1") == before and asked[-1]["work_queue_name"] == "gpu"
    runs.append(SimpleNamespace(state=Crashed()))
    assert key("train@kd", "1") != before


class Server:
    """A server whose flow run stays in one state, with the worker's heartbeats, one for each look."""

    def __init__(self, *heartbeats: int | None, online: bool = True) -> None:
        self.run = SimpleNamespace(id=uuid4(), state=Running(), labels={"prefect.worker.name": "x"})
        self.heartbeats, self.online, self.looks = list(heartbeats), online, 0

    def read_flow_run(self, _: Any) -> Any:
        self.looks += 1
        return self.run

    def read_workers_for_work_pool(self, *_: Any, **__: Any) -> list[Any]:
        beat = self.heartbeats.pop(0) if len(self.heartbeats) > 1 else self.heartbeats[0]
        if beat is None:
            raise httpx.ConnectError("the server is away")
        workers = [SimpleNamespace(name="y", last_heartbeat_time=self.looks, heartbeat_interval_seconds=3)]
        if self.online:
            workers.append(SimpleNamespace(name="x", last_heartbeat_time=beat, heartbeat_interval_seconds=3))
        return workers

    def set_flow_run_state(self, _: Any, state: State[Any], force: bool = False) -> None:
        self.run.state = state


def follow(server: Server, monkeypatch: pytest.MonkeyPatch, stop_at: int = 1000) -> State[Any]:
    """Follow the run with a clock that only its waits of 2 s move."""
    clock = [0.0]
    sleep = lambda seconds: clock.__setitem__(0, clock[0] + seconds)  # noqa: E731
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    run = pool._follow(cast(Any, server), "cluster", cast(Any, server.run), lambda: server.looks >= stop_at)
    assert run.state is not None
    return run.state


def test_a_worker_without_heartbeats_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0, 1, 2, 3)
    state = follow(server, monkeypatch)
    assert state.is_crashed() and state.message == "worker x died: no heartbeat for 9 s"
    assert (
        server.looks == 4 + 5 + 1
    )  # looks with a new heartbeat, those of the 9 s after, the one that finds it crashed


def test_a_worker_that_the_server_lost_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert follow(Server(0, online=False), monkeypatch).is_crashed()


def test_a_worker_with_heartbeats_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedError):
        follow(Server(*range(200)), monkeypatch, stop_at=150)


def test_a_server_that_is_away_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoppedError):
        follow(Server(1, None), monkeypatch, stop_at=100)


def test_a_run_that_waits_for_a_worker_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(0)
    server.run.labels = {}
    with pytest.raises(StoppedError):
        follow(server, monkeypatch, stop_at=100)
    assert server.run.state.is_cancelling()


def test_a_pool_without_deployment_names_the_remedy() -> None:
    pools = [SimpleNamespace(name="cluster")]
    client: Any = SimpleNamespace(read_deployments=lambda **_: [], read_work_pools=lambda: pools)
    with pytest.raises(UserError, match=r"work pool 'cluster' has no deployment of flow `stage`; run `prefect deploy"):
        pool._deployment(client, "stage", "cluster")
    with pytest.raises(UserError, match="did you mean 'cluster'"):
        pool._deployment(client, "stage", "clutser")


def test_uncommitted_changes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "uncommitted", lambda: b"a patch")
    with pytest.raises(UserError, match="commit and push your changes first"):
        pool.check_pool("stage", "cluster")
