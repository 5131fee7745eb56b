"""Downloads outlive changes of code and of other settings: what came is never deleted, nor fetched again."""

from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.schema import Params
from avdistill.pipeline import code
from avdistill.pipeline.stage import Stage
from tests.helpers.little import Recorder


def made(params: Params) -> Stage:
    return Stage("download", "avsynth", params, Recorder())  # type: ignore[arg-type]


def test_what_is_finished_is_taken_up_again(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tiny).output(key="settings", keep=True) as folder:
        (folder / "video").write_text("weeks of work")
    monkeypatch.setattr(code, "describe", lambda *_: pytest.fail("no code counts for a download"))
    with made(tiny).output(key="settings", keep=True) as folder:
        assert (folder / "video").read_text() == "weeks of work"
    assert (tiny.path("download", "avsynth") / "video").read_text() == "weeks of work"


def test_other_settings_start_anew(tiny: Params) -> None:
    for key in ("360p", "720p"):
        with made(tiny).output(key=key, keep=True) as folder:
            assert not list(folder.glob("video*"))
            (folder / f"video {key}").touch()
    assert [file.name for file in tiny.path("download", "avsynth").iterdir()] == ["video 720p"]


def test_half_of_a_download_under_other_settings_is_put_aside(tiny: Params, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("360p", "720p", "1080p"):
        with pytest.raises(KeyboardInterrupt), made(tiny).output(key=key, keep=True) as folder:
            (folder / f"half {key}").touch()
            raise KeyboardInterrupt
    partial = Path(tiny.suite.out) / ".partial"
    assert (partial / "download-avsynth.1/half 360p").exists() and (partial / "download-avsynth.2/half 720p").exists()
    assert (partial / "download-avsynth/half 1080p").exists()
    assert "unfinished download with other settings" in capsys.readouterr().err


def test_what_is_made_here_depends_on_its_code(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), made(tiny).output(key="settings") as folder:
        (folder / "video").touch()
        raise KeyboardInterrupt
    monkeypatch.setattr(code, "describe", lambda *_: {"modules": {"avsynth": "other"}})
    with made(tiny).output(key="settings") as folder:
        assert not (folder / "video").exists()
