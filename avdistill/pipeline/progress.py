"""Progress of long loops: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

LOG_EVERY = 5.0  # s


def progress(
    items: Iterable[T] | int, description: str, total: int | None = None, size: int = 1, unit: str = ""
) -> Iterator[T]:
    """Yield `items` (an int n means range(n)) and show on stderr how many are done, the speed and the time left.

    `total` is needed only if `items` has no length. Each item is `size` of a `unit`, such as the clips of an epoch, in
    which the speed is told. A log gets a line every LOG_EVERY seconds, and one at the end if there was one before.
    """
    sequence: Iterable = range(items) if isinstance(items, int) else items
    if total is None and isinstance(sequence, Sized):
        total = len(sequence)
    if sys.stderr.isatty():
        from tqdm import tqdm

        told = f" {unit}" if unit else "it"
        yield from tqdm(
            sequence, desc=description, total=total, leave=False, unit=told, unit_scale=size if size > 1 else False
        )
        return
    began = last_line = time.monotonic()
    done = 0
    for item in sequence:
        yield item
        done += 1
        now = time.monotonic()
        if now - last_line >= LOG_EVERY:
            last_line = now
            _print_line(description, done, total, now - began, size, unit)
    if last_line > began:
        _print_line(description, done, total, time.monotonic() - began, size, unit)


def _print_line(description: str, done: int, total: int | None, seconds: float, size: int, unit: str) -> None:
    count = f"{done}/{total} ({done / total:.0%})" if total else str(done)
    speed = f"{size * done / seconds:.1f}{f' {unit}' if unit else ''}/s"
    left = f", {timedelta(seconds=round(seconds * (total - done) / done))} left" if total and done < total else ""
    print(f"{description}: {count}, {speed}{left}", file=sys.stderr, flush=True)
