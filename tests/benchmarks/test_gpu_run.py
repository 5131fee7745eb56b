"""`python -m benchmarks gpu` from end to end, as a dry run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from avdistill.pipeline.errors import UserError
from benchmarks import __main__ as benchmarks
from benchmarks.gpu import command, page
from benchmarks.gpu.report import Report, read
from benchmarks.gpu.smoke import every_job, waits
from models.distillers import methods

PARTS = ("smoke", "rows", "throughput", "training")


def test_a_dry_run_finds_nothing_wrong_and_writes_both_pages(tmp_path: Path, root: Path) -> None:
    before = {path: path.read_bytes() for path in (root / "docs").glob("*.md")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", "--dry", "--out", str(tmp_path), "--seconds", "3000"],
        cwd=root, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {part: read(tmp_path / "gpu", part)["found"] for part in PARTS}
    bad = {name: row for rows in found.values() for name, row in rows.items() if row.get("error") or "skipped" in row}
    assert not bad
    assert {name.partition("-")[0] for name in found["smoke"]} >= set(methods())
    assert all(row["ok"] for row in found["smoke"].values())
    assert found["training"]["training"]["converged"] and len(found["training"]["training"]["epochs"]) == 3
    assert found["throughput"]["bfloat16, batch 2, eager"]["clips_per_s"] > 0
    assert (tmp_path / "gpu/profile_eager.txt").read_text()
    assert list(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == ["cnn14_features"]
    assert "Python" in (tmp_path / "gpu.md").read_text() and "cnn14" in (tmp_path / "benchmarks.md").read_text()
    assert {path: path.read_bytes() for path in before} == before, "a dry run leaves the project's pages alone"


def test_what_was_not_measured_is_marked(root: Path, tmp_path: Path) -> None:
    text = page.measured(tmp_path)
    assert text.count("Card and date: not measured.") == 3
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert all(rows[job].count("not measured") == 4 for job in every_job())
    assert "MNF+CSC on UCF51, 200 epochs: not measured." in text
    committed = (root / "docs/gpu.md").read_text()
    assert page.replaced(committed, root / "benchmarks/results/gpu") == committed, "run `python -m benchmarks gpu page`"


def test_findings_are_kept_as_they_come(tmp_path: Path) -> None:
    report = Report(tmp_path, "smoke", 60)
    report.add("first", ok=True)
    assert read(tmp_path, "smoke")["found"] == {"first": {"ok": True}}

    def fails() -> dict[str, object]:
        raise RuntimeError("out of memory\nand more")

    report.attempt("second", fails)
    report.attempt("third", lambda: {"ok": True}, need=1e9)
    found = read(tmp_path, "smoke")["found"]
    assert found["second"]["error"] == "RuntimeError: out of memory" and "test_gpu_run.py" in found["second"]["where"]
    assert found["third"] == {"skipped": "no time left"}


def slow(part: str, folder: Path, seconds: float, dry: bool) -> None:
    Report(folder, part, seconds).add("first", ok=True)
    time.sleep(600)


def test_a_part_that_takes_too_long_is_ended_and_what_it_found_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "run_part", slow)
    assert not command._limited("smoke", tmp_path, 20, dry=True)
    assert read(tmp_path, "smoke")["found"] == {"first": {"ok": True}}


def test_wheels_are_there_for_this_process_and_those_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    with pytest.raises(UserError, match=r"no wheel \(\*\.whl\) there"):
        command.install(wheels, site)
    with zipfile.ZipFile(wheels / "unheard_of-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("unheard_of/__init__.py", "WORD = 'yes'\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    command.install(wheels, site)
    assert sys.path[0] == str(site)
    code = "import unheard_of; print(unheard_of.WORD)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "yes\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["somke"], "gpu somke: there is no such part; did you mean 'smoke'?"),
        (["--dry"], "--dry: requires --out"),
        (["smoke"], "PyTorch sees no GPU on this machine; --dry"),
    ],
)
def test_bad_calls_are_one_line(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError) as error:
        benchmarks.main(["gpu", *arguments])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_waits_are_those_that_pytorch_warns_of(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", lambda mode: None)
    assert waits(lambda: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)) != []
    assert waits(lambda: warnings.warn("something else", stacklevel=1)) == []
