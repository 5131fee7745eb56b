"""Load and validate a params file.

`load` makes the checks that need no PyTorch: types, ranges, unknown keys, references between entries. Stage check makes
the others: the options of each method, and the files that params.yaml names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from avdistill.config.messages import first_problem
from avdistill.config.references import check_references
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError

# PyYAML's safe loader in C, if available: ten times as fast, and every stage loads params.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The largest suite has 40 kB, 10 levels and 5000 values. Far beyond, YAML crashes the process, fills its memory or
# computes for hours (a number like 1:1:1:…).
MOST_CHARACTERS, MOST_LEVELS, MOST_VALUES, LONGEST_VALUE = 1_000_000, 50, 100_000, 10_000


def load(file: str | os.PathLike[str]) -> Params:
    """Read and check a params file. Raises UserError: one line with the key, the problem and what is expected."""
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
        _check_size(path, text)
        raw = LOADER(text).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such params file; run from the root of the repository") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-99-99 is a ValueError
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    _check_keys(path, "", raw)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}") from None
    check_references(path, params)
    return params


def _check_size(path: Path, text: str) -> None:
    """Check size and depth of a YAML document, with aliases written out, before anything is made of it."""
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{path}: {len(text)} characters; expected at most {MOST_CHARACTERS}")
    values = 0
    inside: list[tuple[str | None, int]] = []  # open mappings and lists: the anchor, and the number of values before
    sizes: dict[str | None, int | None] = {}  # number of values by anchor; None while it is open
    for event in yaml.parse(text, LOADER):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 0)
            if size is None:
                raise UserError(f"{path}: line {line}: '*{event.anchor}' contains itself")
            values += size
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            values += 1
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_VALUE:
                raise UserError(f"{path}: line {line}: a value of more than {LONGEST_VALUE} characters")
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append((event.anchor, values - 1))
            if event.anchor:
                sizes[event.anchor] = 1 if isinstance(event, yaml.ScalarEvent) else None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = inside.pop()
            if anchor:
                sizes[anchor] = values - before
        if values > MOST_VALUES or len(inside) > MOST_LEVELS:
            most = f"{MOST_LEVELS} levels" if len(inside) > MOST_LEVELS else f"{MOST_VALUES} values"
            raise UserError(f"{path}: line {line}: more than {most}, counted with every alias written out")


def _check_keys(path: Path, where: str, value: Any) -> None:
    """Check that all keys are strings: DVC sorts keys, and fails on a mixture of numbers and strings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}: {where}{key}: keys must be strings; write '{key}' in quotes")
            _check_keys(path, f"{where}{key}.", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(path, where, inner)
