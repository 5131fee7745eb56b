"""Work on many files in several processes: results in order, bounded memory, and a crash or a hang costs one item."""

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
from typing import Any, Generic, TypeVar

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.processes import cores, end_with_parent
from avdistill.pipeline.progress import progress

T = TypeVar("T")
R = TypeVar("R")

WAITING = 4  # results a worker may be ahead of whoever reads them
LIMIT = 1800.0  # s an item may take; hours of video are decoded in it, so what takes longer hangs


def each(
    function: Callable[[T], R], items: Sequence[T], description: str, limit: float = LIMIT
) -> Iterator[tuple[T, R | UserError]]:
    """Yield (item, function(item)) in the order of `items`; `function` must be importable (top level of a module).

    A UserError, the death of a worker process (codecs are C code and files are anybody's), and `limit` seconds
    without a result become the result of their item. Any other exception is raised here.
    """
    return progress(_results(function, items, limit), description, total=len(items))


def _results(function: Callable[[T], R], items: Sequence[T], limit: float) -> Iterator[tuple[T, R | UserError]]:
    """A thread waits for each worker, so that it has its next item even while whoever reads the results is busy."""
    count = min(cores(), len(items))
    workers = [_Worker(function, limit) for _ in range(count)]
    free: SimpleQueue[_Worker[T, R]] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def work(item: T) -> R | UserError:
        worker = free.get()  # there are as many as threads
        try:
            return worker.result(item)
        finally:
            free.put(worker)

    pending: deque[tuple[T, Future[R | UserError]]] = deque()
    threads = ThreadPoolExecutor(max(1, count))
    try:
        for new in items:
            pending.append((new, threads.submit(work, new)))
            if len(pending) > WAITING * count:
                item, future = pending.popleft()
                yield item, future.result()
        for item, future in pending:
            yield item, future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker(Generic[T, R]):
    """A process that works on one item at a time: started when there is one, and anew when it has ended."""

    def __init__(self, function: Callable[[T], R], limit: float) -> None:
        self.function, self.limit = function, limit
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None
        self.closed = False
        self.lock = threading.Lock()

    def result(self, item: T) -> R | UserError:
        """function(item), or why there is none."""
        try:
            connection = self.connection or self._start()
            connection.send(item)
            if not connection.poll(self.limit):
                self._end()
                return UserError(f"not done after {self.limit:g} s, given up")
            result, error = connection.recv()
        except (EOFError, ConnectionError):
            self._end()
            return UserError("the process that worked on it died (a crash in a codec, or out of memory)")
        if error is None or isinstance(error, UserError):
            return error or result
        raise error

    def close(self) -> None:
        """End the process, whatever it does, for good."""
        self.closed = True
        self._end()

    def _start(self) -> Connection:
        # A fresh process: a fork would copy locks that threads of this one may hold.
        context = multiprocessing.get_context("spawn")
        connection, its_end = context.Pipe()
        with self.lock:
            if self.closed:
                raise EOFError
            process = context.Process(target=_work, args=(self.function, its_end), daemon=True)
            process.start()
            self.process = process
        its_end.close()
        connection.recv()  # it has imported what it needs; the item's time begins
        self.connection = connection
        return connection

    def _end(self) -> None:
        with self.lock:
            if self.process is not None:
                self.process.kill()
                self.process.join()
            self.connection = None


def _work(function: Callable[[Any], Any], connection: Connection) -> None:
    """In the worker: answer each item by its result or the exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    end_with_parent()
    connection.send(None)
    while True:
        item = connection.recv()
        try:
            connection.send((function(item), None))
        except Exception as error:  # noqa: BLE001 - it is raised in the parent
            error.add_note(traceback.format_exc())
            connection.send((None, error))
