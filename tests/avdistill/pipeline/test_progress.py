from __future__ import annotations

import pytest

from avdistill.pipeline import progress as module
from avdistill.pipeline.progress import progress


def test_a_log_gets_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    assert list(progress(["a", "b"], "read")) == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("read: 1/2 (50%), ")
    assert lines[-1].startswith("read: 2/2 (100%), ")


def test_a_short_loop_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(3, "read")) == [0, 1, 2]
    assert list(progress((n for n in range(3)), "read", total=3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_log_tells_the_speed_in_a_unit_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    for _ in progress(3, "train kd", size=60, unit="clips"):
        now[0] += 30.0
    assert capsys.readouterr().err.splitlines() == [
        "train kd: 1/3 (33%), 2.0 clips/s, 0:01:00 left",
        "train kd: 2/3 (67%), 2.0 clips/s, 0:00:30 left",
        "train kd: 3/3 (100%), 2.0 clips/s",
        "train kd: 3/3 (100%), 2.0 clips/s",
    ]
