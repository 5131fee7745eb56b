"""Stages that a warm server runs: nothing differs from those that start by themselves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from avdistill.pipeline import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm starts are for Linux")

# In place of a stage: says how it was started, and waits if it is told to.
SLEEPER = """
import os, sys, time
from pathlib import Path
def main(stage):
    print("warm" if "stages.evaluate" in sys.modules else "cold", os.environ.get("SAID"), Path.cwd().name, flush=True)
    print("to stderr", file=sys.stderr)
    assert os.environ["GOMP_SPINCOUNT"]
    Path("pid").write_text(str(os.getpid()))
    time.sleep(float(os.environ.get("WAIT", 0)))
    if os.environ.get("FAIL"):
        from avdistill.pipeline.errors import UserError
        raise UserError(os.environ["FAIL"])
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A copy of the project in which stage download is the sleeper."""
    folder = tmp_path_factory.mktemp("warm") / "project"
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("avdistill", "stages", "models"):
        shutil.copytree(root / package, folder / package, ignore=ignored)
    shutil.copy(root / "params.yaml", folder)
    (folder / "stages/download.py").write_text(SLEEPER)
    return folder


@pytest.fixture(scope="module")
def served(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which stages share a server, which ends with a process of ours; it has loaded all."""
    temporary = tmp_path_factory.mktemp("tmp")
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as owner:
        assert owner.stdin is not None
        environment = os.environ | {warm.VARIABLE: str(owner.pid), "TMPDIR": str(temporary)}
        assert run(checkout, environment).stdout.startswith("cold"), "nothing is loaded yet"
        (folder,) = temporary.iterdir()
        until = time.monotonic() + 120
        while not run(checkout, environment).stdout.startswith("warm"):
            assert time.monotonic() < until
        (server,) = servers(folder)
        assert server.environ()["GOMP_SPINCOUNT"] == os.environ.get("GOMP_SPINCOUNT", "1000")
        yield environment
        owner.stdin.close()
        server.wait(60)  # by itself, once its owner has gone
        assert not folder.exists()


def servers(folder: Path) -> list[psutil.Process]:
    """Those that listen in a folder."""
    return [process for process in psutil.process_iter() if str(folder) in arguments(process)]


COMMAND = [sys.executable, "-m", "stages", "download", "params.yaml", "avsynth"]


def run(folder: Path, environment: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=folder, env=environment | more, capture_output=True, text=True, timeout=120)


def begin(folder: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A stage that waits for minutes, as who asked for it and as who runs it."""
    (folder / "pid").unlink(missing_ok=True)
    asked = subprocess.Popen(COMMAND, cwd=folder, env=environment | {"WAIT": "300"}, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert asked.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    return asked, psutil.Process(int((folder / "pid").read_text()))


def test_runs_as_if_it_had_been_started(checkout: Path, served: dict[str, str]) -> None:
    done = run(checkout, served, SAID="hello")
    assert (done.returncode, done.stdout) == (0, "warm hello project\n")
    assert done.stderr == "to stderr\n"


def test_errors_and_exit_codes_are_the_same(checkout: Path, served: dict[str, str]) -> None:
    cold = {name: value for name, value in served.items() if name != warm.VARIABLE}
    for more in ({"FAIL": "one line"}, {"WAIT": "nonsense"}):
        ours, theirs = run(checkout, served, **more), run(checkout, cold, **more)
        assert ours.returncode == theirs.returncode == 1
        assert ours.stderr.splitlines()[-1] == theirs.stderr.splitlines()[-1]
    assert "error: one line" in run(checkout, served, FAIL="one line").stderr


def test_whoever_asked_is_killed(checkout: Path, served: dict[str, str]) -> None:
    asked, stage = begin(checkout, served)
    asked.kill()
    stage.wait(60)
    asked.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 130)])
def test_signals_reach_the_stage(checkout: Path, served: dict[str, str], number: signal.Signals, code: int) -> None:
    asked, stage = begin(checkout, served)
    asked.send_signal(number)
    asked.communicate(timeout=60)
    assert asked.returncode == code
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


def test_both_end_at_once(checkout: Path, served: dict[str, str]) -> None:
    """Whoever asks is stopped, so that the server learns of its end and of the stage's in one go. It goes on."""
    asked, stage = begin(checkout, served)
    server = stage.parent()
    assert server is not None
    server.suspend()
    stage.kill()
    asked.kill()
    asked.communicate()
    server.resume()
    assert run(checkout, served).returncode == 0
    assert server.is_running()


def test_a_parent_that_ended_before_the_server_was_there(checkout: Path, tmp_path: Path) -> None:
    """It used to be taken for init, and the server ran for ever."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-m", "avdistill.pipeline.warm", str(folder), str(gone.pid)]
    subprocess.run(command, cwd=checkout, check=True, timeout=60)
    assert not folder.exists()


def test_other_code_starts_by_itself(checkout: Path, served: dict[str, str], tmp_path: Path) -> None:
    """Neither another checkout nor code that was changed since is served. Two points of an ablation shared the server
    of the one that ended first, whose checkout was then deleted under the other's stage."""
    other = shutil.copytree(checkout, tmp_path / "other")
    assert run(other, served).stdout.startswith("cold None other")
    original = (checkout / "models/metrics.py").read_text()
    (checkout / "models/metrics.py").write_text("# edited\n" + original)
    assert run(checkout, served).stdout.startswith("cold")
    (checkout / "models/metrics.py").write_text(original)
    assert run(checkout, served).stdout.startswith("warm")


# In place of DVC: runs stages one after the other until one finds all libraries loaded, tells that one, and waits.
DVC = """
import os, subprocess, sys, time
said, until = "", time.monotonic() + 120
while not said.startswith("warm"):
    assert time.monotonic() < until
    said = subprocess.check_output([sys.executable, "-m", "stages", "download", "params.yaml", "avsynth"], text=True)
print(said, end="", flush=True)
sys.stdin.read()
"""


def test_dvc_by_itself_has_a_server(checkout: Path, tmp_path: Path) -> None:
    """The first stage starts it, which DVC does not have to know; it ends with DVC, killed or not."""
    environment = {name: value for name, value in os.environ.items() if name != warm.VARIABLE}
    environment |= {"DVC_STAGE": "download@avsynth", "TMPDIR": str(tmp_path), "SAID": "hello"}
    command = [sys.executable, "-c", DVC]
    with subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as dvc:
        assert dvc.stdout is not None
        assert dvc.stdout.readline() == "warm hello project\n"
        (folder,) = tmp_path.glob("avdistill-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        found = servers(folder)  # with the last stage, if that is still ending
        assert found
        dvc.kill()
        assert not psutil.wait_procs(found, 60)[1]
        assert not folder.exists()


def arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended, or belongs to somebody else
        return []


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm.VARIABLE, "1234")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(warm, "launch", lambda folder, owner: None)
    folder = warm.server_folder()
    assert folder is not None and folder.is_dir() and folder == warm.server_folder()
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    folder.rename(tmp_path / folder.name.replace(f"-{own}-", f"-{own + 1}-"))
    assert warm.server_folder() is None


def test_no_server_is_no_error(checkout: Path, served: dict[str, str], tmp_path: Path) -> None:
    """None is wanted; or it was killed, and its folder is still there; or no socket's path may be so long."""
    assert run(checkout, served | {warm.VARIABLE: "off", "DVC_STAGE": "download@avsynth"}).stdout.startswith("cold")
    environment = served | {warm.VARIABLE: str(os.getpid()), "TMPDIR": str(tmp_path)}
    assert run(checkout, environment).stdout.startswith("cold")
    (folder,) = tmp_path.iterdir()
    (server,) = servers(folder)
    server.kill()
    psutil.wait_procs([server], 60)
    assert run(checkout, environment).stdout.startswith("cold")
    assert not servers(folder)
    deep = tmp_path / ("a" * 50) / ("b" * 50)
    deep.mkdir(parents=True)
    assert run(checkout, environment | {"TMPDIR": str(deep)}).stdout.startswith("cold")
    until = time.monotonic() + 60
    while list(deep.iterdir()):  # the server has ended by itself
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_server_is_killed(checkout: Path, served: dict[str, str]) -> None:
    """The last test of this file: stages end with it, and say so."""
    asked, stage = begin(checkout, served)
    server = stage.parent()
    assert server is not None and "avdistill.pipeline.warm" in server.cmdline()
    folder = Path(server.cmdline()[3])
    server.kill()
    assert "the warm server ended" in asked.communicate(timeout=60)[1]
    assert asked.returncode == 1
    stage.wait(60)
    shutil.rmtree(folder)  # which it could not do itself
