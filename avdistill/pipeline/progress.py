"""How far a long loop has come: a bar in a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

LOG_EVERY = 5.0  # s


def progress(items: Iterable[T] | int, description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` (an int n stands for range(n)) and show on stderr how many are done.

    `total` is needed only where `items` has no length. A log gets a line when LOG_EVERY seconds have passed since
    the last one, and one at the end of a loop that took that long.
    """
    sequence: Iterable = range(items) if isinstance(items, int) else items
    if total is None and isinstance(sequence, Sized):
        total = len(sequence)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(sequence, desc=description, total=total, leave=False)
        return
    began = told = time.monotonic()
    done = 0
    for item in sequence:
        yield item
        done += 1
        now = time.monotonic()
        if now - told >= LOG_EVERY:
            told = now
            _tell(description, done, total, now - began)
    if told > began:
        _tell(description, done, total, time.monotonic() - began)


def _tell(description: str, done: int, total: int | None, seconds: float) -> None:
    share = f"{done}/{total} ({done / total:.0%})" if total else str(done)
    print(f"{description}: {share}, {done / seconds:.1f}/s", file=sys.stderr, flush=True)
