"""The framework of the stages: command line, one MLflow run per execution, atomic and resumable outputs.

A stage is a module in `stages` with a function `main(stage: Stage)`. dvc.yaml runs it from the root of the repository:

    python -m stages <name> <params file> [<item>]

It finds the outputs of other stages with `stage.input`, and writes its own in `with stage.output() as folder`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from avdistill.config.items import ITEMS
from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.config.studies import target
from avdistill.pipeline import code
from avdistill.pipeline.errors import UserError, no_room, room_for
from avdistill.tracking.journal import TrackedRun, start

STAGES = ("code", *ITEMS)
TEMPORARY = re.compile(r"\..+\.\d+")  # `.<name>.<pid>`: partial file of a process that was killed


@dataclass
class Stage:
    """One execution of a stage: its params, its item, and its tracked run."""

    name: str
    item: str | None
    params: Params
    run: TrackedRun

    def input(self, stage: str, item: str | None = None) -> Path:
        """Return the output folder of another stage. Raises UserError if it does not exist."""
        path = self.params.path(stage, item)
        if not path.exists():
            raise UserError(f"{path}: missing; run `dvc repro {target(self.params, stage, item)}` first")
        return path

    @contextmanager
    def output(self, key: str | None = None, keep: bool = False) -> Iterator[Path]:
        """Yield a folder to write to, which is moved to the stage's output path if the block succeeds.

        Without `key`, the folder is empty. With a key (a digest of the inputs and params; code and packages are added
        here), the folder keeps the files of an interrupted execution with the same key, so that the stage can resume.

        With `keep`, for downloads, code does not count, a finished output with the same key is updated in place of
        being written again, and an unfinished one with another key is renamed in place of being deleted."""
        if key is not None and not keep:
            key = f"{key} {json.dumps(code.describe(self.name, self.item, self.params))}"
        final = self.params.path(self.name, self.item)
        partial = Path(self.params.suite.out) / ".partial" / "-".join(filter(None, [self.name, self.item]))
        marker = partial / ".key"
        finished = self.params.path(".downloads") / f"{partial.name}.key"  # the key of what has the final name
        if keep and partial.exists() and marker.exists() and marker.read_text() != key:
            _put_aside(partial)
        if keep and final.exists() and not partial.exists() and finished.exists() and finished.read_text() == key:
            final.replace(partial)
            marker.write_text(key or "")
        if partial.exists() and (key is None or not marker.exists() or marker.read_text() != key):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for path in partial.rglob(".*"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink()
        if not marker.exists():
            marker.write_text(key or "")
        with room_for(partial):
            yield partial
        final.parent.mkdir(parents=True, exist_ok=True)
        old = partial.with_name(f"{partial.name}.old")  # a half deleted folder must not be at the output path
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        # Until the last step, the files are in a folder that the next execution with this key finds and keeps.
        if keep:
            finished.parent.mkdir(exist_ok=True)
            finished.write_text(key or "")
        partial.replace(final)
        (final / marker.name).unlink()
        shutil.rmtree(old, ignore_errors=True)


def _put_aside(partial: Path) -> None:
    """Rename an unfinished download with other settings: it may have taken weeks, so it is not deleted."""
    number = 1
    while (aside := partial.with_name(f"{partial.name}.{number}")).exists():
        number += 1
    partial.replace(aside)
    print(f"{aside}: an unfinished download with other settings; delete it if you do not need it", file=sys.stderr)


def execute(arguments: list[str]) -> int | str:
    """Run a stage with the arguments STAGE PARAMS [ITEM]. Returns the exit code, or an error message of one line."""
    if len(arguments) not in (2, 3) or arguments[0] not in STAGES:
        return f"usage: python -m stages STAGE PARAMS [ITEM], STAGE one of {', '.join(STAGES)}"
    name, file, item = [*arguments, None][:3]
    try:
        params = load(str(file))
        main: Callable[[Stage], None] = import_module(f"stages.{name}").main
        with start(str(name), item, params) as run:
            main(Stage(str(name), item, params, run))
    except UserError as error:
        return f"error: {error}"
    except BrokenPipeError:
        os._exit(1)
    except (OSError, RuntimeError) as error:
        if full := no_room(error, Path(params.suite.out)):
            return f"error: {full}"
        raise
    except KeyboardInterrupt:
        return 130
    return 0


def run(arguments: list[str]) -> NoReturn:
    """Run a stage as `execute` does, and exit the process."""
    code: int | str = 1
    try:
        code = execute(arguments)
    except BaseException:  # noqa: BLE001 - the process exits below
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # os._exit, because a regular interpreter shutdown with PyTorch loaded takes as long as a short stage.
    os._exit(1 if isinstance(code, str) else code)
