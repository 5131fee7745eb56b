"""Grid of an ablation: keys of the suite's params, and the values that they take.

    recipes.small.lr: [0.003, 0.01]          a key and its values
    jobs.*.options.margin: [0, 0.2]          * stands for any text: every such key that the ablation's runs use
    losses:                                  keys that vary together: combinations of their values, by name
      both: { jobs.*.options.triplet: true, jobs.*.options.contrast: true }
      none: { jobs.*.options.triplet: false, jobs.*.options.contrast: false }

Every option of a method is a key, even if the params file does not list it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from avdistill.config.items import ITEMS
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError, nearest

COLUMNS = {"point", "run", "seed", "metric", "value", "seconds", "gain", "p"}  # of the results, besides the axes


class Axis(NamedTuple):
    """An entry of the grid: its key, and by value, as tables show it, the keys of params to set."""

    key: str
    values: dict[Any, dict[str, Any]]


def axes(grid: Mapping[str, Any]) -> dict[str, Axis]:
    """Return the entries of a grid by label: as many of the last parts of the key as make it unique.

    Raises UserError for an entry without a label, and for one that is neither a list nor named combinations."""
    found = {}
    for key, entry in grid.items():
        parts = key.split(".")
        ends = [".".join(parts[first:]) for first in reversed(range(len(parts)))]
        free = [
            end for end in ends if end not in COLUMNS and sum(f".{other}".endswith(f".{end}") for other in grid) == 1
        ]
        if not free:
            raise UserError(f"grid: {key}: expected a name that is not a column of the results or the end of a key")
        if entry and isinstance(entry, list) and not any(isinstance(value, dict) for value in entry):
            found[free[0]] = Axis(key, {_shown(value): {key: value} for value in entry})
        elif entry and isinstance(entry, dict) and all(isinstance(value, dict) and value for value in entry.values()):
            found[free[0]] = Axis(key, {str(name): combination for name, combination in entry.items()})
        else:
            raise UserError(f"grid: {key}: expected [value, …] or {{name: {{key: value, …}}, …}}, found {entry!r}")
    if not found:
        raise UserError("grid: nothing varies; expected keys of params with lists of values")
    return found


def _shown(value: Any) -> str | int | float:
    """Return a value as tables show it: numbers and text as they are, others as JSON."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


class Keys:
    """The keys of a suite's params that an ablation of `runs` may set: `paths` has the path of each in the file."""

    def __init__(self, params: Params, runs: Sequence[str]) -> None:
        from models.distillers import methods  # imported here because it imports PyTorch

        self._tree = params.model_dump(mode="json")
        for job in self._tree["jobs"].values():
            signature = inspect.signature(methods()[job["method"]])
            options = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
            for run in job["runs"].values():
                run["options"] = options | run["options"]
        self.paths = {".".join(path): path for path in _leaves(self._tree)}
        beginnings = used(params, runs)
        self._with_effect = [key for key in self.paths if has_effect(key, beginnings)]

    def matching(self, key: str) -> list[str]:
        """Return the keys that a key of the grid stands for. Raises UserError if there are none."""
        found = [one for one in self._with_effect if fnmatchcase(one, key)] if "*" in key else [key]
        if not found:
            raise UserError(f"grid: {key}: expected a key that the runs use; {hint(key, self._with_effect)}")
        if found[0] in self.paths:
            return found
        node = self._tree
        for part in [*key.split("."), ""]:
            entries = node if isinstance(node, dict) else {}
            if part not in entries:
                break
            node = entries[part]
        raise UserError(f"grid: {key}: expected a key of params with a value; {nearest(part, entries)}")


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value in nested mappings."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def used(params: Params, runs: Sequence[str]) -> set[str]:
    """Return the beginnings of all keys that the results of runs depend on, except seeds."""
    found = set()
    for name in runs:
        job_name, run = params.runs()[name]
        job, key = params.jobs[job_name], f"jobs.{job_name}"
        found |= {f"{key}.{field}" for field in ("method", "dataset", "input", "recipe", "init", *run.teachers)}
        found |= {f"{key}.runs.{name}.{field}" for field in ("teachers", "options", "shuffled")}
        found |= {f"datasets.{job.dataset}", f"recipes.{job.recipe}", f"teachers.{job.init}"}
        inputs = [job.input]
        for letter in run.teachers:
            if letter == "S":
                found |= used(params, [job.S.partition("/")[2]])
                continue
            features = params.features[getattr(job, letter)]
            found |= {f"features.{getattr(job, letter)}", f"teachers.{features.teacher}"}
            inputs.append(features.input)
        found |= {f"{ITEMS[stage]}.{item}" for stage, _, item in (source.partition("/") for source in inputs)}
    return found


def has_effect(key: str, beginnings: set[str]) -> bool:
    """Return whether a key begins with one of `beginnings`, as returned by `used`."""
    return any(f"{key}.".startswith(f"{beginning}.") for beginning in beginnings)


def hint(key: str, choices: Iterable[str]) -> str:
    """Return a hint for a key without effect: the nearest choice in the same section, else the entries of all."""
    near = [choice for choice in choices if choice.partition(".")[0] == key.partition(".")[0]]
    return nearest(key, near) if near else nearest("", {".".join(choice.split(".")[:2]) for choice in choices})
