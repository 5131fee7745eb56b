"""DVC as a subprocess, on a small repository with real stages."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from avdistill.pipeline.errors import UserError
from flows import dvc, processes
from flows.dvc import Dvc, StageError, StoppedError
from tests.flows import project


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project.make(tmp_path_factory.mktemp("dvc") / "repo")


@pytest.fixture
def repo(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in project.environment(made).items():
        monkeypatch.setenv(name, value)
    for job in ("kd", "mnf_csc"):
        (made / "mood" / job).write_text("well")
    (made / "pids").unlink(missing_ok=True)
    return made


def mood(repo: Path, job: str, value: str) -> None:
    (repo / "mood" / job).write_text(value)


def alive(pids: str) -> list[str]:
    """Those of the processes that still run; one that ended and that nobody has asked for is gone, too."""
    running = []
    for pid in pids.split():
        state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
        if state and not state.startswith("Z"):
            running.append(pid)
    return running


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return path.read_text()


def test_graph(repo: Path) -> None:
    with Dvc(repo) as runner:
        graph = runner.graph()
        assert graph == {
            "check": set(),
            "train@kd": {"check"},
            "train@mnf_csc": {"check"},
            "report": {"train@kd", "train@mnf_csc"},
        }
        assert next(iter(graph)) == "check" and list(graph)[-1] == "report"
        assert runner.graph("paper/dvc.yaml")["paper/dvc.yaml:train@kd"] == {"paper/dvc.yaml:check"}
        with pytest.raises(UserError, match=r"nowhere/dvc.yaml.*does not exist"):
            runner.graph("nowhere/dvc.yaml")


def test_states_of_a_stage(repo: Path) -> None:
    lines: list[str] = []
    with Dvc(repo) as runner:
        assert set(runner.status("paper/dvc.yaml")) == set(runner.graph("paper/dvc.yaml"))
        stage = "paper/dvc.yaml:train@kd"
        for upstream in ("check", "train@mnf_csc", "train@kd", "report"):
            assert runner.repro(f"paper/dvc.yaml:{upstream}", lines.append) == "ran"
        assert "train@kd feels well" in lines
        assert not any("git add" in line for line in lines)
        assert runner.status("paper/dvc.yaml") == {}
        assert runner.repro(stage, lines.append) == "skipped"
        before = runner.locked("paper/dvc.yaml")

        mood(repo, "kd", "better")
        assert set(runner.status("paper/dvc.yaml")) == {stage}
        assert runner.repro(stage, lines.append) == "ran"
        assert runner.locked("paper/dvc.yaml")[stage] != before[stage]
        mood(repo, "kd", "well")
        assert runner.repro(stage, lines.append) == "cached"
        assert runner.locked("paper/dvc.yaml")[stage] == before[stage]
        assert (repo / "out/paper/train/kd").read_text() == "train@kd well"

        mood(repo, "kd", "ill")
        with pytest.raises(StageError, match=r"^params.yaml: too ill to train$"):
            runner.repro(stage, lines.append)


@pytest.mark.parametrize("ask", [True, False])
def test_reason_of_an_unexpected_error_is_the_error(repo: Path, monkeypatch: pytest.MonkeyPatch, ask: bool) -> None:
    """As DVC ends where its remote's host is not known, say: the last line offers help."""
    program = repo.parent / "fails"
    program.write_text(
        "#!/bin/sh\n{ echo 'ERROR: unexpected error - Host key is not trusted for host there'; echo\n"
        "echo 'Having any troubles? Hit us up at https://dvc.org/support, we are always happy to help!'; } >&2\n"
        "exit 255\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(dvc, "executable", lambda: str(program))
    runner = Dvc(repo)
    with pytest.raises((UserError, StageError), match=r"unexpected error - Host key is not trusted for host there$"):
        runner.fetch_run_cache() if ask else runner.repro("report", print)


def test_missing_dependency_says_what_is_missing(repo: Path) -> None:
    with Dvc(repo) as runner, pytest.raises(StageError, match="out/small/train"):
        runner.repro("report", print)


@pytest.mark.parametrize("kind", ["asleep", "deaf"])
def test_stop_ends_the_stage_and_its_workers(repo: Path, kind: str) -> None:
    caught: list[StoppedError] = []

    def run(runner: Dvc) -> None:
        try:
            runner.repro("train@kd", print)
        except StoppedError as error:
            caught.append(error)

    with Dvc(repo, grace=0.5) as runner:
        runner.repro("check", print)
        mood(repo, "kd", kind)
        thread = threading.Thread(target=run, args=[runner])
        thread.start()
        pids = wait_for(repo / "pids")
        assert len(alive(pids)) == 2
        before = time.monotonic()
    thread.join(60)
    assert time.monotonic() - before < 30
    assert len(caught) == 1
    while alive(pids):  # a busy machine takes a moment to end what is killed
        assert time.monotonic() - before < 30
        time.sleep(0.05)
    with pytest.raises(StoppedError):
        runner.repro("train@kd", print)
    mood(repo, "kd", "well")
    with Dvc(repo) as another:
        assert another.repro("train@kd", print) in {"ran", "cached"}


def run_until_stopped(runner: Dvc) -> None:
    with contextlib.suppress(StoppedError):
        runner.repro("train@kd", print)


def test_one_line_says_who_is_before_a_stage(repo: Path) -> None:
    mood(repo, "kd", "asleep")
    with Dvc(repo, grace=0.5) as runner:
        runner.repro("check", print)
        thread = threading.Thread(target=run_until_stopped, args=[runner])
        thread.start()
        wait_for(repo / "pids")
        with Dvc(repo) as other, pytest.raises(StageError) as refused:
            other.repro("train@kd", print)
    thread.join(60)
    assert re.fullmatch(
        r"/.*/out/small/train/kd: in use by /.*dvc --wait-for-lock repro --single-item train@kd \(process \d+\); "
        "try again when it has ended",
        str(refused.value),
    )


def test_interrupt_while_a_stage_runs_ends_it(repo: Path) -> None:
    def interrupt(line: str) -> None:
        if "worker sleeps" in line:
            raise KeyboardInterrupt

    mood(repo, "kd", "asleep")
    with Dvc(repo, grace=0.5) as runner:
        runner.repro("check", print)
        with pytest.raises(KeyboardInterrupt):
            runner.repro("train@kd", interrupt)
        assert alive((repo / "pids").read_text()) == []


def test_second_interrupt_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()

    def impatient(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processes.time, "sleep", impatient)
        processes.end([process], grace=60)
    assert process.wait(60) == -9


def test_command_line_is_dvc_with_the_python_of_this_environment(repo: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "flows.dvc", "repro", "check"],
        cwd=repo,
        env=project.environment(repo) | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert dvc.environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_mlflow_project_commands(repo: Path) -> None:
    import yaml

    folder = Path(__file__).resolve().parents[2] / "mlflow_project"
    described = yaml.safe_load((folder / "MLproject").read_text())
    assert (folder / described["python_env"]).exists()
    points = described["entry_points"]
    assert set(points) == {"repro", "train", "evaluate"}
    (repo / "mlflow_project").mkdir(exist_ok=True)
    if not (repo / ".venv").exists():
        (repo / ".venv").symlink_to(sys.prefix)
    for point, given in (("train", {"job": "kd", "suite": "paper/dvc.yaml"}), ("repro", {"suite": "dvc.yaml"})):
        run = subprocess.run(  # as MLflow does it
            ["bash", "-c", points[point]["command"].format(**given)],
            cwd=repo / "mlflow_project",
            env=project.environment(repo) | {"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
    assert (repo / "out/paper/train/kd").exists()
    assert (repo / "out/small/report").exists()


@pytest.mark.parametrize("cut", [0, 20, 90, 1000])
def test_what_a_killed_dvc_left_half_written_does_not_stop_the_next_one(
    repo: Path, capsys: pytest.CaptureFixture[str], cut: int
) -> None:
    log: list[str] = []
    with Dvc(repo) as runner:
        runner.repro("check", log.append)
        before = runner.locked()["check"]
    lock, table = repo / "dvc.lock", repo / ".dvc/tmp/rwlock"
    whole = lock.read_text()
    lock.write_text(whole[:cut])
    table.write_text(json.dumps({"write": {"/x": {"pid": 1, "cmd": "dvc repro"}}})[: cut // 2])
    with Dvc(repo) as runner:
        assert ("moved to" in capsys.readouterr().err) == (cut < len(whole))
        assert runner.repro("check", log.append) in ("cached", "skipped")
        assert runner.locked()["check"] == before
    whole = lock.read_text()
    dvc.recover_lock(repo)
    assert lock.read_text() == whole and not table.exists()


def test_the_records_of_a_dvc_that_runs_are_left_alone(repo: Path) -> None:
    def run(runner: Dvc) -> None:
        with contextlib.suppress(StoppedError):
            runner.repro("train@kd", print)

    with Dvc(repo, grace=0.5) as runner:
        runner.repro("check", print)
        mood(repo, "kd", "asleep")
        thread = threading.Thread(target=run, args=[runner])
        thread.start()
        wait_for(repo / "pids")
        (repo / "dvc.lock").write_text("half")
        dvc.recover_lock(repo)
        assert (repo / "dvc.lock").read_text() == "half" and (repo / ".dvc/tmp/rwlock").exists()
    thread.join()
    dvc.recover_lock(repo)
    assert not (repo / "dvc.lock").exists()


def test_a_copy_without_git_works_and_says_what_it_cannot(tmp_path: Path, root: Path) -> None:
    """A ZIP file of the repository, unpacked."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo 1 > a\n    outs: [a]\n")
    command = [sys.executable, "-m", "flows.dvc", "repro"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "a").read_text() == "1\n", done.stderr
    assert "no git repository" in done.stderr
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "no git repository" not in again.stderr


@pytest.mark.parametrize("ask", ["graph", "status", "recorded", "locked"])
def test_whoever_reads_beside_a_writer_waits(repo: Path, monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    """DVC writes dvc.lock in place. What reads half of it fails with "required key not provided", or finds too little;
    it tries again, and says who is to blame if the file stays as it is."""
    with Dvc(repo) as runner:
        for stage in ("check", "train@mnf_csc", "train@kd", "report"):
            runner.repro(stage, print)
        wanted = getattr(runner, ask)()
        lock = repo / "dvc.lock"
        whole = lock.read_text()
        lock.write_text(whole[: whole.rindex("    deps:") + len("    deps:")])
        writer = threading.Timer(1.5, lock.write_text, [whole])
        writer.start()
        try:
            assert getattr(runner, ask)() == wanted
        finally:
            writer.join()
        lock.write_text(whole[: whole.rindex("cmd:")])
        monkeypatch.setattr(dvc, "PATIENCE", 0.5)
        with pytest.raises(UserError, match=r"dvc.lock: incomplete; another DVC is writing it or was killed"):
            getattr(runner, ask)()
        lock.write_text(whole)
