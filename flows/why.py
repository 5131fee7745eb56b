"""Print why each stage would run now: the params key, module, package, file or upstream stage that has changed.

    python -m flows.why [SUITE] [STAGE]

SUITE is a dvc.yaml (default: that of the embedded suite). STAGE is a stage such as train@kd, or a name such as train
for all stages of that name. Only the stages code and check run, which takes seconds; DVC then writes dvc.lock.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avdistill.config.loading import load
from avdistill.pipeline.code import module_file
from avdistill.pipeline.errors import UserError, nearest
from flows.dvc import Dvc, StageError

FIRST = ("code", "check")  # the other stages depend on their outputs
SHOWN = 3  # upstream stages per line


def why(dvc: Dvc, suite: str = "dvc.yaml", wanted: str | None = None) -> dict[str, list[str]]:
    """Return the reasons why stages would run, by stage, in execution order.

    `wanted` selects one stage, or all stages with that name before @. Raises UserError if there is no such stage or
    if the params fail the checks."""
    out = load(Path(suite).with_name("params.yaml")).suite.out
    graph = dvc.graph(suite)
    names = {stage: stage.rpartition(":")[2] for stage in graph}
    choices = {*names.values(), *(name.partition("@")[0] for name in names.values())}
    if wanted is not None and wanted not in choices:
        raise UserError(f"{suite}: there is no stage '{wanted}'; {nearest(wanted, choices)}")
    try:
        for stage in [stage for first in FIRST for stage, name in names.items() if name == first]:
            dvc.repro(stage, lambda _: None)
    except StageError as error:
        raise UserError(str(error)) from None
    status, recorded = dvc.status(suite), dvc.recorded(suite)
    cache = dvc.cache_folder() / "files/md5"
    found: dict[str, list[str]] = {}
    for stage, above in graph.items():
        if names[stage] == "code":
            continue
        reasons = ["never run before"] if stage not in recorded else []
        for entry in status.get(stage, []) if not reasons else []:
            reasons += list(_explain(entry, recorded[stage], dvc.root, cache, out))
        if before := sorted(names[upstream] for upstream in above if names[upstream] in found):
            more = f" and {len(before) - SHOWN} more" if len(before) > SHOWN else ""
            reasons.append(f"upstream {', '.join(before[:SHOWN])}{more}")
        if reasons:
            found[names[stage]] = reasons
    return {name: reasons for name, reasons in found.items() if wanted in (None, name, name.partition("@")[0])}


def _explain(entry: Any, recorded: dict[str, Any], root: Path, cache: Path, out: str) -> Iterator[str]:
    """Describe one entry of `dvc status`. The old content of a changed file comes from DVC's cache."""
    if not isinstance(entry, dict):
        yield "command changed" if entry == "changed command" else str(entry)
        return
    for path, change in entry.get("changed outs", {}).items():
        yield f"output {path}: {change}"
    for path, change in entry.get("changed deps", {}).items():
        md5 = next((dep["md5"] for dep in recorded.get("deps", []) if dep["path"] == path), "none")
        old, new = cache / md5[:2] / md5[2:], root / path
        inside = path.removeprefix(f"{out}/").removesuffix(".json")
        section = inside.partition("/")[0]
        if section not in FIRST or not path.endswith(".json") or not (old.is_file() and new.is_file()):
            yield f"file {path}: {change}"
            continue
        before, now = (json.loads(file.read_text(encoding="utf-8")) for file in (old, new))
        for keys, one, other in _differences(before, now):
            if section == "check":
                yield f"params {'.'.join([*inside.split('/')[1:], *keys])}: {one} -> {other}"
            elif keys[0] == "packages":
                yield f"package {keys[1]}: {one} -> {other}"
            elif keys[0] == "modules":
                file = module_file(keys[1], root)
                yield f"code {file.relative_to(root) if file else keys[1]}"
            else:
                yield f"file {keys[1]}"


def _differences(old: Any, new: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield the differences of two JSON values: keys, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                yield (*keys, key), _shown(old, key), _shown(new, key)
            else:
                yield from _differences(old[key], new[key], (*keys, key))
    elif old != new:
        yield keys, str(old), str(new)


def _shown(side: dict[str, Any], key: str) -> str:
    """Return the value of a key as text: `absent` without the key, and a whole entry, which is long, as `{…}`."""
    if key not in side:
        return "absent"
    return "{…}" if isinstance(side[key], dict) else json.dumps(side[key])


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.why", description="Print why each stage would run now.")
    parser.add_argument(
        "suite", nargs="?", default="dvc.yaml", help="dvc.yaml (default), or that of another suite: paper/dvc.yaml"
    )
    parser.add_argument("stage", nargs="?", help="a stage such as train@kd, or a name such as train; default: all")
    given = parser.parse_args()
    try:
        with Dvc() as dvc:
            found = why(dvc, given.suite, given.stage)
    except UserError as error:
        sys.exit(f"error: {error}")
    for stage, reasons in found.items():
        print(f"{stage}: {'; '.join(reasons)}")
    if not found:
        print("all stages are up to date")


if __name__ == "__main__":
    _main()
