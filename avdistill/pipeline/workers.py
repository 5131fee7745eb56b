"""Process many files in parallel: ordered results, bounded memory; a crash or a hang loses only one item."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores, end_with_parent
from avdistill.pipeline.progress import progress

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4  # results per worker that may wait for the consumer
LIMIT = 1800.0  # s per item; enough to decode hours of video, so an item that takes longer hangs


class LostError(UserError):
    """A worker process died, or was killed after the time limit."""


class Fallback(NamedTuple):
    """What to do with an item whose worker dies, or takes more than `limit(item)` seconds: `function(item)` instead."""

    function: Callable[[Any], Any]
    limit: Callable[[Any], float]


def each(
    function: Callable[[T], R],
    items: Sequence[T],
    description: str,
    limit: float = LIMIT,
    fallback: Fallback | None = None,
) -> Iterator[tuple[T, R | UserError]]:
    """Yield (item, function(item)) in the order of `items`; `function` must be importable (top level of a module).

    The result is a UserError if `function` raises one, if the worker process crashes (codecs are C code that reads
    untrusted files), or if an item takes more than `limit` seconds; the last two apply to `fallback` if it is given.
    Any other exception is raised here.
    """
    return progress(_results(function, items, limit, fallback), description, total=len(items))


def _results(
    function: Callable[[T], R], items: Sequence[T], limit: float, fallback: Fallback | None
) -> Iterator[tuple[T, R | UserError]]:
    """Yield the results. One thread per worker feeds it, so workers do not wait while the consumer is busy."""
    count = min(cores(), len(items))
    workers = [_Worker(function, limit, fallback) for _ in range(count)]
    free: SimpleQueue[_Worker[T, R]] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def work(item: T) -> R | UserError:
        worker = free.get()  # never blocks: there are as many workers as threads
        try:
            return worker.result(item)
        finally:
            free.put(worker)

    pending: deque[tuple[T, Future[R | UserError]]] = deque()
    threads = ThreadPoolExecutor(max(1, count))
    try:
        for new in items:
            pending.append((new, threads.submit(work, new)))
            if len(pending) > AHEAD * count:
                item, future = pending.popleft()
                yield item, future.result()
        for item, future in pending:
            yield item, future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker(Generic[T, R]):
    """A worker process for one item at a time, started on the first item and restarted after a crash or a hang."""

    def __init__(self, function: Callable[[T], R], limit: float, fallback: Fallback | None) -> None:
        self.function, self.limit, self.fallback = function, limit, fallback
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None
        self.closed = False
        self.lock = threading.Lock()

    def result(self, item: T) -> R | UserError:
        """Return function(item), or the UserError in its place."""
        if self.fallback is None:
            return self._call(self.function, item, self.limit)
        found = self._call(self.function, item, min(self.limit, self.fallback.limit(item)))
        return self._call(self.fallback.function, item, self.limit) if isinstance(found, LostError) else found

    def _call(self, function: Callable[[T], R], item: T, limit: float) -> R | UserError:
        try:
            connection = self.connection or self._start()
            connection.send((function, item))
            if not connection.poll(limit):
                self._end()
                return LostError(f"no result after {limit:g} s; the worker process was killed")
            result, error = connection.recv()
        except (EOFError, ConnectionError):
            self._end()
            return LostError("the worker process died (a crash in a codec, or out of memory)")
        if error is None or isinstance(error, UserError):
            return error or result
        raise error

    def close(self) -> None:
        """Kill the process; it is not restarted."""
        self.closed = True
        self._end()

    def _start(self) -> Connection:
        # Spawn, not fork: a fork would copy locks that other threads of this process may hold.
        context = multiprocessing.get_context("spawn")
        connection, remote = context.Pipe()
        with self.lock:
            if self.closed:
                raise EOFError
            # The function is also an argument here, so that its imports are done before the first item.
            process = context.Process(target=_work, args=(self.function, remote), daemon=True)
            process.start()
            self.process = process
        remote.close()
        connection.recv()  # the imports are done; they do not count towards the limit
        self.connection = connection
        return connection

    def _end(self) -> None:
        with self.lock:
            if self.process is not None:
                self.process.kill()
                self.process.join()
            self.connection = None


def _work(_: Callable[[Any], Any], connection: Connection) -> None:
    """Run in the worker process: send the result of each item, or its exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills the worker
    end_with_parent()
    connection.send(None)
    while True:
        function, item = connection.recv()
        try:
            connection.send((function(item), None))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            error.add_note(traceback.format_exc())
            connection.send((None, error))
