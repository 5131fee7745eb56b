"""The scheduler of stages and points, with futures that end when the test wants it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from flows import scheduler
from flows.dvc import StoppedError
from flows.scheduler import run_graph

GRAPH = {"a": set[str](), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}, "e": set[str]()}


class Tasks:
    """Tasks that end at once, in the order of their start, all but those that fail as completed."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.started, self.ready = failing, list[str](), list[int]()

    def submit(self, node: str, ready: int) -> Any:
        self.started.append(node)
        self.ready.append(ready)
        state = SimpleNamespace(is_completed=lambda: node not in self.failing)
        future = SimpleNamespace(task_run_id=uuid4(), state=state, wait=lambda: None)
        future.add_done_callback = lambda call: call(future)
        return future


def run(tasks: Tasks, limit: int = 4) -> list[str]:
    return [ended.node for ended in run_graph(GRAPH, tasks.submit, lambda: limit)]


def test_a_node_runs_after_those_that_it_depends_on() -> None:
    tasks = Tasks()
    assert run(tasks) == ["a", "e", "b", "c", "d"]
    assert tasks.ready == [2, 2, 3, 3, 1]


def test_the_limit_holds_and_is_asked_again() -> None:
    running, most = set[str](), list[int]()
    limits = iter([1, 1, 1, *[2] * 100])

    def submit(node: str, ready: int) -> Any:
        running.add(node)
        most.append(len(running))
        return Tasks().submit(node, ready)

    for ended in run_graph(GRAPH, submit, lambda: next(limits)):
        running.remove(ended.node)
    assert most[0] == 1 and max(most) == 2 and len(most) == len(GRAPH)


def test_what_depends_on_a_failure_does_not_run() -> None:
    tasks = Tasks("b")
    assert sorted(run(tasks)) == ["a", "b", "c", "e"]
    assert "d" not in tasks.started


def test_a_cancelled_flow_run_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", -1)
    monkeypatch.setattr(scheduler, "cancelled", lambda: True)
    with pytest.raises(StoppedError):
        run(Tasks())
