"""Progress of long loops: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

LOG_EVERY = 5.0  # s


def progress(items: Iterable[T] | int, description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` (an int n means range(n)) and show on stderr how many are done.

    `total` is needed only if `items` has no length. A log gets a line every LOG_EVERY seconds, and one at the end if
    there was one before.
    """
    sequence: Iterable = range(items) if isinstance(items, int) else items
    if total is None and isinstance(sequence, Sized):
        total = len(sequence)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(sequence, desc=description, total=total, leave=False)
        return
    began = last_line = time.monotonic()
    done = 0
    for item in sequence:
        yield item
        done += 1
        now = time.monotonic()
        if now - last_line >= LOG_EVERY:
            last_line = now
            _print_line(description, done, total, now - began)
    if last_line > began:
        _print_line(description, done, total, time.monotonic() - began)


def _print_line(description: str, done: int, total: int | None, seconds: float) -> None:
    count = f"{done}/{total} ({done / total:.0%})" if total else str(done)
    print(f"{description}: {count}, {done / seconds:.1f}/s", file=sys.stderr, flush=True)
