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

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline import code
from avdistill.pipeline.errors import UserError, no_room, room_for
from avdistill.tracking.journal import TrackedRun, start

# The section of params whose entries are a stage's items; empty for a stage that runs once a suite.
ITEMS = {
    "check": "",
    "download": "datasets",
    "split": "datasets",
    "frames": "frames",
    "spectrogram": "datasets",
    "mix_noise": "noise_mixes",
    "teachers": "teachers",
    "teacher_features": "features",
    "teacher_head": "features",
    "train": "jobs",
    "evaluate": "jobs",
    "export": "exports",
    "cost": "",
    "figures": "",
    "report": "",
}
STAGES = ("code", *ITEMS)
TEMPORARY = re.compile(r"\..+\.\d+")  # a file that a process (by its number) was writing when it was killed


@dataclass
class Stage:
    """One execution of a stage: its params, the item that it works on, and its tracked run."""

    name: str
    item: str | None
    params: Params
    run: TrackedRun

    def input(self, stage: str, item: str | None = None) -> Path:
        """Folder that another stage made. Raises UserError if it is not there."""
        path = self.params.path(stage, item)
        if not path.exists():
            raise UserError(f"{path}: missing; run `dvc repro {stage}{'@' + item if item else ''}` first")
        return path

    @contextmanager
    def output(self, key: str | None = None, keep: bool = False) -> Iterator[Path]:
        """A folder to write into, that takes its final name when the block ends well.

        Without `key` the folder starts empty. With one (a digest of the inputs and params that the result depends on;
        code and packages are added here) it starts with what an interrupted execution of the same key had left there,
        so that a stage can resume.

        With `keep`, which is for downloads, only the key counts, no code: what was finished under the same key is taken
        up again, and what was half finished under another one is put aside, not deleted."""
        if key is not None and not keep:
            key = f"{key} {json.dumps(code.describe(self.name, self.item, self.params))}"
        final = self.params.path(self.name, self.item)
        partial = Path(self.params.suite.out) / ".partial" / "-".join(filter(None, [self.name, self.item]))
        marker = partial / ".key"
        finished = partial.with_name(f"{partial.name}.key")  # the key of what has the final name
        if keep and partial.exists() and marker.exists() and marker.read_text() != key:
            _put_aside(partial)
        if keep and final.exists() and not partial.exists() and finished.exists() and finished.read_text() == key:
            final.replace(partial)
            marker.write_text(key or "")
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
        if keep:
            finished.write_text(key or "")
        shutil.rmtree(old, ignore_errors=True)

    def metrics(self, values: dict[str, object]) -> None:
        """Write the stage's DVC metrics file: `<out>/metrics/<stage>/<item>.json`."""
        from avdistill.data.files import write_json

        path = self.params.path("metrics", self.name) / f"{self.item or self.name}.json"
        write_json(path, json.loads(json.dumps(values)))


def _put_aside(partial: Path) -> None:
    """Rename what is left of a download under other settings, which may be the work of weeks."""
    number = 1
    while (aside := partial.with_name(f"{partial.name}.{number}")).exists():
        number += 1
    partial.replace(aside)
    print(f"{aside}: half of a download under other settings; kept, delete it if it is not needed", file=sys.stderr)


def execute(arguments: list[str]) -> int | str:
    """Run a stage, given as STAGE PARAMS [ITEM]. Returns its exit code, or the one line that says what is wrong."""
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
