"""Flows from the command line where their surroundings are not as they should be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.serving import serve


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://user:secret@127.0.0.1:9/api", "nonsense"])
@pytest.mark.parametrize("command", [["flows.paper"], ["flows.ablations", "delta"]])
def test_a_server_that_does_not_answer_is_one_line_with_the_remedy(root: Path, url: str, command: list[str]) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root,
        env=os.environ | {"PREFECT_API_URL": url, "http_proxy": "http://127.0.0.1:8", "no_proxy": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and time.monotonic() - began < 60  # most of it imports, on a busy machine
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: PREFECT_API_URL: no server answers") and "make serve" in line
    assert "secret" not in line


def test_a_server_that_is_not_prefect_s_is_one_line_too(root: Path, tmp_path: Path) -> None:
    """As a proxy answers in place of a server that is not there."""
    with serve(tmp_path) as server:
        done = subprocess.run(
            [sys.executable, "-m", "flows.paper"],
            cwd=root,
            env=os.environ | {"PREFECT_API_URL": f"{server.url}/api"},
            capture_output=True,
            text=True,
        )
        assert server.count("/api/health") == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: PREFECT_API_URL: no server answers") and "make serve" in line
    assert done.returncode == 1


def test_a_proxy_is_not_asked_for_this_machine(root: Path) -> None:
    code = "import flows, os; print(os.environ['no_proxy'], os.environ['NO_PROXY'])"
    for before, after in (("", "127.0.0.1,localhost"), ("a.example", "a.example,127.0.0.1,localhost")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env=os.environ | {"no_proxy": before, "NO_PROXY": before},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [after, after]
