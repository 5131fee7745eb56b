"""The house: where things are, and that arrows go one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

# From top to bottom: a package may import itself and those after it.
LAYERS = ("benchmarks", "flows", "stages", "avdistill", "models")
LONGEST = 400  # lines of a file
# Tests that belong to no package: whole suites, servers, faults, and what holds of the repository.
ELSEWHERE = {"browser", "faults", "helpers", "pipeline"}


def modules(root: Path) -> list[Path]:
    return sorted(file for package in LAYERS for file in (root / package).rglob("*.py"))


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_arrows_go_one_way(root: Path) -> None:
    for file in modules(root):
        above = LAYERS[: LAYERS.index(file.relative_to(root).parts[0])]
        wrong = {name for name in imported(file) if name.partition(".")[0] in above}
        assert not wrong, f"{file.relative_to(root)} imports {wrong}"


def test_one_package_decodes_one_writes_to_mlflow_and_one_file_starts_dvc(root: Path) -> None:
    for file in modules(root):
        if file.is_relative_to(root / "benchmarks"):  # which compare with the plain use of these libraries
            continue
        where, names = file.relative_to(root).as_posix(), {name.partition(".")[0] for name in imported(file)}
        if names & {"av", "decord"}:
            assert where.startswith("avdistill/data/media/"), where
        if "mlflow" in names:
            assert where.startswith(("avdistill/tracking/", "avdistill/serving/", "flows/model.py")), where
        if "dvc" in names:
            assert where == "flows/dvc.py", where


# Where the time of day may be read: it is shown, or names something. time.monotonic decides, which nobody sets.
SHOWS_THE_TIME = {
    "avdistill/tracking/journal.py",
    "avdistill/tracking/mirror.py",
    "benchmarks/harness.py",
    "flows/ablations.py",
    "flows/dvc.py",  # whether dvc.lock was written again
    "flows/paper.py",
    "stages/report.py",
}


def test_no_clock_decides_that_can_be_set_back(root: Path) -> None:
    clock = re.compile(r"time\.time\(|time\.time_ns\(|datetime\.(now|today|utcnow)\(|st_mtime|getmtime")
    found = {file.relative_to(root).as_posix() for file in modules(root) if clock.search(file.read_text())}
    assert found == SHOWS_THE_TIME


def test_files_are_short(root: Path) -> None:
    long = {file.relative_to(root).as_posix(): len(file.read_text().splitlines()) for file in modules(root)}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}


def test_no_two_classes_have_one_name(root: Path) -> None:
    owners: dict[str, Path] = {}
    for file in modules(root):
        if file.is_relative_to(root / "benchmarks"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                assert node.name not in owners, f"{node.name}: {owners[node.name]} and {file}"
                owners[node.name] = file


def test_tests_mirror_the_tree(root: Path) -> None:
    for file in sorted((root / "tests").rglob("test_*.py")):
        place = file.parent.relative_to(root / "tests")
        if place.parts and place.parts[0] not in ELSEWHERE:
            assert (root / place).is_dir(), file
