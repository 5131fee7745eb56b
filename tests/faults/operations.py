"""Code whose Nth operation on files fails, or ends the process: operations.c between it and the kernel."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

COUNT, FAIL, KILL = 1, 2, 3
STATE, LIMIT = struct.Struct("=qqqq480s"), 16384  # `struct state` of operations.c, without its array
KILLED = 137

# Forks one process for each piece of code that it gets.
SERVER = """
import json, os, signal, sys, traceback
exec(sys.argv[1])
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(600)
        printed = os.open(os.environ["PRINTED"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        code = 1
        try:
            exec(json.loads(line))
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Outcome(NamedTuple):
    """Exit code, a number for each operation on files, the one that was hit, and what was printed."""

    code: int
    operations: Sequence[int]  # what is done to which file: equal for several writes to one file
    hit: str
    printed: str


class Operations:
    """Runs code in forks of one process, which has run `prepare`; operations on files below `below` can fail."""

    def __init__(self, place: Path, below: Path, folder: Path, environment: dict[str, str], prepare: str) -> None:
        """`place` is for files of its own, `folder` the working directory."""
        if sys.platform != "linux" or (compiler := shutil.which("cc")) is None:
            pytest.skip("needs Linux and a C compiler")
        library, self.state, self.printed = place / "operations.so", place / "state", place / "printed"
        source = str(Path(__file__).with_suffix(".c"))
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
        self.state.write_bytes(bytes(STATE.size + 4 * LIMIT))
        layer = {
            "LD_PRELOAD": str(library),
            "OPERATIONS_FOLDER": str(below),
            "OPERATIONS_STATE": str(self.state),
            "PRINTED": str(self.printed),
        }
        command, pipe = [sys.executable, "-c", SERVER, prepare], subprocess.PIPE
        self.server = subprocess.Popen(command, cwd=folder, env=environment | layer, stdin=pipe, stdout=pipe, text=True)

    def run(self, code: str, mode: int = COUNT, at: int = 0) -> Outcome:
        """Run `code`; with FAIL or KILL its operation `at`, counted from 1, fails or ends it."""
        assert self.server.stdin is not None and self.server.stdout is not None
        with self.armed(mode, at) as found:
            print(json.dumps(code), file=self.server.stdin, flush=True)
            exit_code = int(self.server.stdout.readline())
        return Outcome(exit_code, *found[0], self.printed.read_text(errors="replace"))

    def end(self) -> None:
        """End the process."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(60)

    @contextmanager
    def armed(self, mode: int, at: int) -> Iterator[list[tuple[Sequence[int], str]]]:
        """What is run in the block meets the fault; afterwards the list has the operations, and the hit."""
        found: list[tuple[Sequence[int], str]] = []
        with self.state.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
            STATE.pack_into(shared, 0, mode, at, errno.EIO if at % 2 else errno.ENOSPC, 0, b"")
            try:
                yield found
            finally:
                _, _, _, count, what = STATE.unpack_from(shared)
                assert count <= LIMIT
                found.append((struct.unpack_from(f"={count}I", shared, STATE.size), what.partition(b"\0")[0].decode()))
                STATE.pack_into(shared, 0, 0, 0, 0, 0, b"")


def points(operations: Sequence[int], most: int) -> list[int]:
    """Which operations are tried, counted from 1: all with ALL=1.

    Else, where several in a row do the same to the same file, the first, the middle and the last of them; and of these
    at most `most`, at equal distances."""
    places = list(range(1, len(operations) + 1))
    if os.environ.get("ALL") == "1":
        return places
    rows = [list(row) for _, row in groupby(places, lambda place: operations[place - 1])]
    some = sorted({row[at] for row in rows for at in (0, len(row) // 2, -1)})
    if len(some) <= most:
        return some
    return [some[round(number * (len(some) - 1) / max(1, most - 1))] for number in range(most)]


def digests(folder: Path, without: Sequence[str] = (".tracking", ".partial")) -> dict[str, str]:
    """SHA-256 of all files below a folder, by path, but those below `without`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in without
    }


def leftovers(folder: Path) -> list[str]:
    """Files and folders that have temporary names, but for those of journals, which go when they are delivered."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] != ".tracking"
        and (path.parent == folder / ".partial" or (path.name.startswith(".") and path.parent != folder))
    ]
