"""Run a graph as Prefect task runs, side by side: the stages of a suite (flows/paper.py), the points of an ablation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Set
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from flows.dvc import StoppedError

LOOK_SECONDS = 5.0  # between checks for cancellation
WAIT_SECONDS = 1.0  # for a task run to end, before `limit` is asked again


class Ended(NamedTuple):
    """A node of the graph that has ended: its name, the final state of its task run, its duration in seconds."""

    node: str
    state: State[Any]
    seconds: float


def run_graph(
    graph: Mapping[str, Set[str]],
    submit: Callable[[str, int], PrefectFuture[Any]],
    limit: Callable[[], int],
) -> Iterator[Ended]:
    """Run the nodes of a graph, each after the nodes that it depends on, and yield each one that ends.

    At most `limit()` nodes run at a time; it is asked again whenever a node could start. `submit(node, ready)` starts a
    node and returns its future; `ready` is the number of nodes that run or could run, this one included. It is called
    only when the node may run, because a task that waits in Prefect's pool cannot be cancelled. Nodes that depend on
    one that did not complete are not run and not yielded. Raises StoppedError if the flow run is cancelled."""
    waiting, completed = dict(graph), set[str]()
    running: dict[UUID, tuple[str, float]] = {}  # node and start time by task run
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    look_at = time.monotonic() + LOOK_SECONDS
    while True:
        while len(running) < limit() and (ready := [node for node, above in waiting.items() if above <= completed]):
            node = ready[0]
            del waiting[node]
            future = submit(node, len(running) + len(ready))
            running[future.task_run_id] = (node, time.monotonic())
            future.add_done_callback(ended.put)
        if not running:
            return
        with contextlib.suppress(Empty):
            future = ended.get(timeout=WAIT_SECONDS)
            future.wait()  # returns at once and sets the final state
            node, begun = running.pop(future.task_run_id)
            if future.state.is_completed():
                completed.add(node)
            yield Ended(node, future.state, time.monotonic() - begun)
        if time.monotonic() > look_at:
            look_at = time.monotonic() + LOOK_SECONDS
            if cancelled():
                raise StoppedError


def cancelled() -> bool:
    """Return whether this flow run was cancelled. A worker terminates cancelled runs; one without a worker must ask."""
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False
