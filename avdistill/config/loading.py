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


def load(file: str | os.PathLike[str]) -> Params:
    """Read and check a params file. Raises UserError: one line with the key, the problem and what is expected."""
    path = Path(file)
    try:
        # yaml.safe_load with PyYAML's C parser, if available: ten times as fast, and every stage loads params.
        raw = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8")).get_single_data()
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
