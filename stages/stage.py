"""What every stage shares: its command line, its one MLflow run, and outputs that are whole or absent.

A stage is a module with `main(stage: Stage)`; `dvc.yaml` calls it as

    python -m stages <name> <params file> [<item>]

from the repository's root. It reads what other stages made by `stage.input`, and writes what it makes inside
`with stage.output() as folder`.
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

from stages import params as params_module
from stages import tracking
from stages.errors import UserError, no_room, room_for
from stages.params import Params

STAGES = ["check", "download", "split", "frames", "spectrogram", "mix_noise", "teachers", "teacher_features"]
STAGES += ["teacher_head", "train", "evaluate", "export", "cost", "figures", "report"]
TEMPORARY = re.compile(r"\..+\.\d+")  # a file that a process (by its number) was writing when it was killed


@dataclass
class Stage:
    """One execution of a stage: its params, the item that it works on, and its tracked run."""

    name: str
    item: str | None
    params: Params
    run: tracking.Run

    def input(self, stage: str, item: str | None = None) -> Path:
        """Folder that another stage made. Raises UserError if it is not there."""
        path = self.params.path(stage, item)
        if not path.exists():
            raise UserError(f"{path}: missing; run `dvc repro {stage}{'@' + item if item else ''}` first")
        return path

    @contextmanager
    def output(self, key: str | None = None) -> Iterator[Path]:
        """A folder to write into, that takes its final name when the block ends well.

        Without `key` the folder starts empty. With one (a digest of all that the result depends on) it starts
        with what an interrupted execution of the same key had left there, so that a stage can resume."""
        final = self.params.path(self.name, self.item)
        partial = Path(self.params.suite.out) / ".partial" / "-".join(filter(None, [self.name, self.item]))
        marker = partial / ".key"
        if partial.exists() and (key is None or not marker.exists() or marker.read_text() != key):
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for left in partial.rglob(".*"):
            if TEMPORARY.fullmatch(left.name):
                left.unlink()
        if not marker.exists():
            marker.write_text(key or "")
        with room_for(partial):
            yield partial
        marker.unlink()
        final.parent.mkdir(parents=True, exist_ok=True)
        old = partial.with_name(f"{partial.name}.old")  # a folder that is half deleted must not have the final name
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.replace(old)
        partial.replace(final)
        shutil.rmtree(old, ignore_errors=True)

    def metrics(self, values: dict[str, object]) -> None:
        """Write the stage's DVC metrics file: `<out>/metrics/<stage>/<item>.json`."""
        from stages.stores import write_json

        path = self.params.path("metrics", self.name) / f"{self.item or self.name}.json"
        write_json(path, json.loads(json.dumps(values)))


def execute(arguments: list[str]) -> int | str:
    """Run a stage, given as STAGE PARAMS [ITEM]. Returns its exit code, or the one line that says what is wrong."""
    if len(arguments) not in (2, 3) or arguments[0] not in STAGES:
        return f"usage: python -m stages STAGE PARAMS [ITEM], STAGE one of {', '.join(STAGES)}"
    name, file, item = [*arguments, None][:3]
    try:
        params = params_module.load(str(file))
        main: Callable[[Stage], None] = import_module(f"stages.{name}").main
        with tracking.start(str(name), item, params) as run:
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
    """Run a stage as `execute` does, and end this process."""
    code: int | str = 1
    try:
        code = execute(arguments)
    except BaseException:  # noqa: BLE001 - it is about to end
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # To take PyTorch and all else down in order would be as slow as a short stage.
    os._exit(1 if isinstance(code, str) else code)
