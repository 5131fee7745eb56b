"""Params files with a mistake: one line that names the key and the nearest valid choice, before any work."""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from avdistill.config.loading import load
from avdistill.pipeline.errors import UserError
from stages.check import check
from tests.faults.record import count, record

pytestmark = pytest.mark.faults

SUITES = ("params.yaml", "findings/params.yaml", "own/params.yaml", "paper/params.yaml")
# Keys that every entry must have.
NEEDED = {"method", "dataset", "input", "recipe", "seeds", "runs", "kind", "teacher", "weights", "baseline", "origin"}
NEEDED |= {"name", "root", "file", "out", "title", "suite", "datasets", "recipes", "jobs", "report"}
OTHERS = {"seed", "epochs", "lr", "batch", "fps"}
REFERENCES = {"dataset", "recipe", "input", "teacher", "method", "baseline", "proposed", "student", "optimizer"}
REFERENCES |= {"schedule", "selection", "precision", "normalisation", "kind", "A", "I", "encoding"}
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every place of a params file, with what stands there."""
    if at:
        yield at, value
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def parent(raw: Any, at: Place) -> Any:
    for key in at[:-1]:
        raw = raw[key]
    return raw


def misspelt(name: str, choose: random.Random) -> str:
    """A name with two neighbours in each other's place, or a letter too many."""
    place = choose.randrange(len(name))
    swapped = name[:place] + name[place : place + 2][::-1] + name[place + 2 :]
    return swapped if swapped != name else f"{name[:place]}q{name[place:]}"


def unknown_key(raw: Any, choose: random.Random) -> str:
    """A key of a section with a fixed set of keys, misspelt."""
    fixed = [at for at, _ in places(raw) if str(at[-1]) in NEEDED - {"kind"} | OTHERS]
    at = choose.choice([at for at in fixed if "options" not in at and "rows" not in at])
    section = parent(raw, at)
    new = misspelt(str(at[-1]), choose)
    section[new] = section.pop(at[-1])
    return new


def missing_key(raw: Any, choose: random.Random) -> str:
    at = choose.choice([at for at, _ in places(raw) if at[-1] in NEEDED and "options" not in at and "rows" not in at])
    del parent(raw, at)[at[-1]]
    return str(at[-1])


def wrong_type(raw: Any, choose: random.Random) -> str:
    """A mapping in the place of a number, a text or a list."""
    leaves = [at for at, value in places(raw) if not isinstance(value, dict) and isinstance(at[-1], str)]
    at = choose.choice(leaves)
    parent(raw, at)[at[-1]] = {"nonsense": [1, {}]}
    return str(at[-1])


def out_of_range(raw: Any, choose: random.Random) -> str:
    """What is no number at all, or so far below that nothing allows it."""
    kinds = (int, float)
    numbers = [at for at, v in places(raw) if isinstance(v, kinds) and not isinstance(v, bool) and "options" not in at]
    at = choose.choice(numbers)
    limited = not {"music_db", "snr_db", "reported"} & {str(key) for key in at}
    values = [float("nan"), float("inf"), -float("inf"), "many"] + ([-(2**40), -0.5] if limited else [])
    parent(raw, at)[at[-1]] = choose.choice(values)
    return next(str(key) for key in reversed(at) if isinstance(key, str))


def wrong_name(raw: Any, choose: random.Random) -> str:
    """A reference to something that is not there, or a choice that does not exist."""
    found = [at for at, value in places(raw) if at[-1] in REFERENCES and isinstance(value, str) and "options" not in at]
    at = choose.choice(found)
    parent(raw, at)[at[-1]] = misspelt(parent(raw, at)[at[-1]], choose)
    return str(at[-1])


def wrong_suite(raw: Any, choose: random.Random) -> str:
    """A section that another suite has: its names are not those of this one."""
    section = choose.choice(["datasets", "features", "recipes", "jobs"])
    raw[section] = {f"x{name}": entry for name, entry in raw[section].items()}
    return ""


MISTAKES = (unknown_key, missing_key, wrong_type, out_of_range, wrong_name, wrong_suite)


def broken(text: str, choose: random.Random) -> str:
    """Text of a params file that is no YAML any more, or no mapping, or no text."""
    lines = text.splitlines()
    place = choose.randrange(1, len(lines))
    damage = choose.choice(
        ["\t- x: [", "a: b: c", "}", '"', "%", "? [", "\x00", "key: *nowhere", "!!python/object:os.system {}"]
    )
    return "\n".join([*lines[:place], damage, *lines[place:]])


def verdict(file: Path) -> str:
    """The one line that a file ends with, or nothing where it is valid."""
    try:
        check(str(file), load(file))
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def suites(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text() for name in SUITES}


def test_mistakes(suites: dict[str, str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    file = tmp_path / "params.yaml"
    valid = {name: yaml.safe_load(text) for name, text in suites.items()}
    tried: dict[str, int] = {}
    slowest = 0.0

    @settings(
        max_examples=count(200),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a file that is let through is small enough to be read
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(name=st.sampled_from(SUITES), mistake=st.sampled_from(MISTAKES), seed=st.integers(0, 2**31))
    def look(name: str, mistake: Any, seed: int) -> None:
        nonlocal slowest
        raw = copy.deepcopy(valid[name])
        key = mistake(raw, random.Random(seed))
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        started = time.monotonic()
        line = verdict(file)
        slowest = max(slowest, time.monotonic() - started)
        assert line, f"{mistake.__name__} of {key} in {name} is let through"
        assert "\n" not in line and line.startswith(f"{file}: ") and key in line, line
        if mistake in (unknown_key, wrong_name):
            assert re.search(r"did you mean '|valid: |expected |, not of a ", line), line
        tried[mistake.__name__] = tried.get(mistake.__name__, 0) + 1

    look()
    each = ", ".join(f"{times} {name.replace('_', ' ')}" for name, times in sorted(tried.items()))
    record("params", "a mistake in a params file", sum(tried.values()), note=f"{each}; {slowest:.1f} s at most")
    assert slowest < 10


def test_files_that_are_no_yaml(suites: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    number = count(60)
    for seed in range(number):
        choose = random.Random(seed)
        file.write_text(broken(suites[choose.choice(SUITES)], choose))
        line = verdict(file)
        assert line.startswith(f"{file}: ") and "\n" not in line, line
    record("params", "a params file that is no YAML", number)


def test_on_the_command_line(suites: dict[str, str], root: Path, tmp_path: Path) -> None:
    """Before any work: nothing is written."""
    number = count(6)
    for seed, mistake in zip(range(number), MISTAKES, strict=False):
        raw = yaml.safe_load(suites["params.yaml"])
        raw["suite"]["out"] = str(tmp_path / "out")
        key = mistake(raw, random.Random(seed + 100))
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "stages", "check", str(file)], cwd=root, capture_output=True, text=True, timeout=60
        )
        assert time.monotonic() - started < 10
        lines = done.stderr.splitlines()
        assert done.returncode == 1 and not done.stdout and len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ") and key in lines[0]
        assert not [path for path in tmp_path.glob("out/*") if path.name != ".tracking"]
    record("params", "a mistake, on the command line", number, note="10 s at most")
