"""Process many files in parallel: ordered results, bounded memory; a crash or a hang loses only one item."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from pebble import ProcessExpired, ProcessPool

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
    if not items:
        return
    count = min(cores(), len(items))
    # Spawn, not fork: a fork would copy locks that threads of this process may hold. The function is also an argument
    # of the initializer, so that its imports are done before the first item and do not count towards the limit.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(count, initializer=_set_up, initargs=(function,), context=context)

    def start(item: T) -> tuple[T, float, Future[R]]:
        seconds = min(limit, fallback.limit(item)) if fallback else limit
        return item, seconds, pool.schedule(function, (item,), timeout=seconds)

    def result(item: T, seconds: float, future: Future[R]) -> tuple[T, R | UserError]:
        found = _outcome(future, seconds)
        if fallback and isinstance(found, LostError):
            found = _outcome(pool.schedule(fallback.function, (item,), timeout=limit), limit)
        return item, found

    pending: deque[tuple[T, float, Future[R]]] = deque()
    try:
        for new in items:
            pending.append(start(new))
            if len(pending) > AHEAD * count:
                yield result(*pending.popleft())
        while pending:
            yield result(*pending.popleft())
    finally:
        pool.stop()  # kills the workers
        pool.join()


def _outcome(future: Future[R], seconds: float) -> R | UserError:
    """Wait for a result; return it, or the UserError in its place."""
    try:
        return future.result()
    except UserError as error:
        return error
    except TimeoutError:
        return LostError(f"no result after {seconds:g} s; the worker process was killed")
    except ProcessExpired:
        return LostError("the worker process died (a crash in a codec, or out of memory)")


def _set_up(_: Callable[[Any], Any]) -> None:
    """Run in a worker process before its first item."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills the worker
    end_with_parent()
