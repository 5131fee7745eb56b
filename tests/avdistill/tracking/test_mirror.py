"""Journals reach a real MLflow on SQLite: all of them, once, whatever happens in between."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.tracking import journal
from avdistill.tracking.journal import ledger, start
from avdistill.tracking.mirror import _client, mirror, sync
from avdistill.tracking.shared import artifact_location, journal_folder, tracking_uri

ROOT = Path(__file__).resolve().parents[3]
START_AND_WAIT = """
import sys, time
sys.path.insert(0, {root!r})
from avdistill.tracking import journal as tracking
from tests.avdistill.tracking.test_mirror import suite
with tracking.start("train", {job!r}, suite({out!r})) as run:
    run.log_metrics({{"loss": 1.0}})
    print(run.id, flush=True)
    time.sleep(60)
"""


def suite(out: Path | str, file: str = "params.yaml") -> Params:
    params = load(ROOT / "params.yaml")
    return params.model_copy(update={"suite": params.suite.model_copy(update={"out": str(out), "file": file})})


JOB, OTHER_JOB = list(load(ROOT / "params.yaml").jobs)[:2]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creating the tables takes a second: once for all tests."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def use_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def use(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        _client.cache_clear()

    monkeypatch.setenv("AV_TRACKING", "off")
    yield use
    _client.cache_clear()


@pytest.fixture
def params(tmp_path: Path, empty_database: Path, use_store: Callable[[str], None]) -> Params:
    """A suite whose runs go to a database of their own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    return suite(tmp_path / "out")


def runs(params: Params) -> list[Any]:
    client = _client()
    experiment = client.get_experiment_by_name(params.suite.name)
    return (
        list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])) if experiment else []
    )


def journals(params: Params, pattern: str = "*.jsonl") -> list[Path]:
    return sorted(journal_folder(params).glob(pattern))


def history(run: Any, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in _client().get_metric_history(run.info.run_id, metric)]


def artifacts(run: Any) -> list[str]:
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_logged_arrives(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-1")
    file = tmp_path / "table.csv"
    with start("train", JOB, params) as run:
        run.log_params({"recipe": {"lr": 0.1, "scale": (0.5, 1.0)}, "options": {}, "teachers": ""})
        for step in range(1, 4):
            run.log_metrics({"loss": 1 / step, "R@1": 0.5}, step=step)
        run.log_metrics({"odd": math.nan, "large": math.inf})
        file.write_text("a,b\n")
        run.log_artifact(file)
        run.log_artifact(file, "tables")
        file.unlink()
        run.log_dataset("clips", Path("out/split"), "ab" * 32, "training")
        run.describe("# What it is")
    sync(params)

    (found,) = runs(params)
    assert found.info.run_name == f"train {JOB}"
    assert found.info.status == "FINISHED"
    assert found.data.params == {
        "recipe.lr": "0.1", "recipe.scale": "(0.5, 1.0)", "options": "{}", "teachers": ""
    }  # fmt: skip
    assert history(found, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert [value for _, value in history(found, "R_at_1")] == [0.5] * 3
    assert math.isnan(history(found, "odd")[0][1])
    assert history(found, "large")[0][1] > 1e308
    assert artifacts(found) == ["table.csv", "tables/table.csv"]
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("clips", ("ab" * 32)[:36])
    tags = found.data.tags
    expected = {
        "suite": params.suite.name, "stage": "train", "item": JOB, "dataset": params.jobs[JOB].dataset,
        "dvc.stage": f"train@{JOB}", "prefect.flow_run_id": "flow-1", "journal": run.id,
        "mlflow.note.content": "# What it is",
    }  # fmt: skip
    assert expected.items() <= tags.items()
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["git.dirty"] in {"true", "false"}
    # Nothing is left but what the ledger needs.
    left = [path.name for path in journal_folder(params).iterdir() if path.suffix != ".lock"]
    assert left == [f"{run.id}.sent.json"]


def test_tags_of_other_suites_and_stages(tmp_path: Path, use_store: object) -> None:
    params = suite(tmp_path, file="paper/params.yaml")
    dataset, features = next(iter(params.datasets)), next(iter(params.features))
    with start("split", dataset, params) as run:
        assert run.tags["dvc.stage"] == f"paper/dvc.yaml:split@{dataset}"
        assert run.tags["dataset"] == dataset
    with start("report", None, params) as run:
        assert run.tags["dvc.stage"] == "paper/dvc.yaml:report"
        assert "item" not in run.tags and "dataset" not in run.tags
    with start("teacher_head", features, params) as run:
        assert run.tags["dataset"] == params.features[features].dataset


def test_without_git(tmp_path: Path, use_store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with start("report", None, suite(tmp_path)) as run:
        assert "mlflow.source.git.commit" not in run.tags


def test_nested_runs_and_ledger(params: Params) -> None:
    assert ledger(params) == {}
    for attempt in range(2):
        with start("train", JOB, params) as run:
            for seed in range(2):
                with run.child(f"kd seed {seed}", {"run": "kd", "seed": seed}) as child:
                    child.log_metrics({"accuracy": 0.5 + attempt}, step=1)
    with pytest.raises(RuntimeError), start("train", JOB, params):
        raise RuntimeError("newer, but not finished")
    assert ledger(params) == {}
    assert sync(params).completed == 7

    found = runs(params)
    parents = [run for run in found if run.info.run_name == f"train {JOB}"]
    newest = parents[1].info.run_id
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == newest]
    assert {run.data.tags["seed"] for run in children} == {"0", "1"}
    assert {run.data.metrics["accuracy"] for run in children} == {1.5}
    assert {run.data.tags["item"] for run in children} == {JOB}
    expected: dict[tuple[str | int | None, ...], str] = {("train", JOB): newest}
    expected |= {("train", "kd", int(run.data.tags["seed"])): run.info.run_id for run in children}
    assert ledger(params) == expected


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (UserError("no such\nfile"), "FAILED")])
def test_end_of_a_run_that_fails(params: Params, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), start("report", None, params):
        raise error
    sync(params)
    (found,) = runs(params)
    assert found.info.status == status
    assert found.data.tags.get("error") == ("UserError: no such file" if status == "FAILED" else None)


def test_a_run_that_goes_on_is_sent_in_parts_without_doubles(params: Params, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    with start("train", JOB, params) as run:
        run.log_metrics({"loss": 3.0}, step=1)
        run.log_artifact(tmp_path / "a.txt")
        sync(params)
        assert runs(params)[0].info.status == "RUNNING"
        # As if the process that sent it had been killed before it could write that down.
        (state,) = journals(params, "*.sent.json")
        state.unlink()
        (tmp_path / "a.txt").write_text("2")
        run.log_artifact(tmp_path / "a.txt")
        run.log_metrics({"loss": 2.0}, step=2)
        assert sync(params).events == 5
    assert sync(params) == (1, 1)
    assert sync(params) == (0, 0)
    (found,) = runs(params)
    assert history(found, "loss") == [(1, 3.0), (2, 2.0)]
    assert found.info.status == "FINISHED"
    assert artifacts(found) == ["a.txt"]
    assert Path(found.info.artifact_uri.removeprefix("file://"), "a.txt").read_text() == "2"


def test_what_mlflow_refuses_is_noted_and_the_rest_arrives(params: Params) -> None:
    with start("train", JOB, params) as run:
        run.log_params({"lr": 1})
        run.log_params({"lr": 2})  # in one delivery the first value stays
        sync(params)
        run.log_params({"lr": 3})
        run.log_params({"name\udc80": "bytes that are no text: \udcff"})
        run.log_metrics({"loss": 1.0})
    journals(params)[0].write_bytes(journals(params)[0].read_bytes() + b"{damaged\n")
    assert sync(params).completed == 1
    (found,) = runs(params)
    assert found.info.status == "FINISHED"
    assert found.data.params["lr"] == "1"
    assert found.data.metrics == {"loss": 1.0}
    notes = (journal_folder(params) / "mirror.log").read_text().splitlines()
    assert len(notes) == 2
    assert "damaged line" in notes[0]
    assert "refused" in notes[1]


def test_a_run_deleted_in_mlflow_does_not_hold_back_others(params: Params) -> None:
    with start("train", JOB, params) as run:
        sync(params)
        _client().delete_run(runs(params)[0].info.run_id)
        run.log_metrics({"loss": 1.0})
        with start("train", OTHER_JOB, params):
            pass
    assert sync(params).completed == 2
    assert [run.data.tags["item"] for run in runs(params)] == [OTHER_JOB]


def log_model(params: Params, folder: Path, **tags: object) -> None:
    """As stage export does."""
    (folder / "code").mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    (folder / "code" / "a.py").write_text("1")
    with start("export", "avsynth", params) as run:
        run.log_model("student-avsynth", folder, "best", "What it is.", {"run": "kd", "seed": 1} | tags)
    shutil.rmtree(folder)


def test_a_model_is_a_version_of_its_training(params: Params, tmp_path: Path) -> None:
    for seed in range(2):
        with start("train", "kd", params) as run, run.child(f"kd seed {seed}", {"run": "kd", "seed": seed}):
            pass
    log_model(params, tmp_path / "model", val_accuracy=0.5)
    sync(params)
    client = _client()
    training = next(run for run in runs(params) if run.info.run_name == "train kd seed 1")
    (version,) = client.search_model_versions("name = 'student-avsynth'")
    assert version.run_id == training.info.run_id
    assert version.description.startswith("KD: Hinton")
    assert {"run": "kd", "seed": "1", "val_accuracy": "0.5"}.items() <= version.tags.items()
    model = client.get_registered_model("student-avsynth")
    assert (model.description, model.aliases) == ("What it is.", {"best": version.version})
    stored = Path(client.get_logged_model(version.source.removeprefix("models:/")).artifact_location[len("file://") :])
    files = sorted(str(path.relative_to(stored)) for path in stored.rglob("*") if path.is_file())
    assert files == ["MLmodel", "code/a.py"]

    # The next export takes the alias; one whose training MLflow does not know comes from itself.
    log_model(params, tmp_path / "model", run="elsewhere")
    sync(params)
    newest = client.get_model_version_by_alias("student-avsynth", "best")
    assert newest.version > version.version
    assert client.get_run(newest.run_id).info.run_name == "export avsynth"


def test_two_checkouts_on_one_database(params: Params, tmp_path: Path) -> None:
    """The other one has trained the same run later: the model comes from this one's training all the same."""
    other = suite(tmp_path / "other")
    for checkout in (params, other):
        with start("train", "kd", checkout) as run, run.child("kd seed 1", {"run": "kd", "seed": 1}):
            pass
        sync(checkout)
    log_model(params, tmp_path / "model")
    sync(params)
    own = ledger(params)["train", "kd", 1]
    assert own != ledger(other)["train", "kd", 1]
    (version,) = _client().search_model_versions("name = 'student-avsynth'")
    assert version.run_id == own


def test_a_clock_that_is_set_back(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a day, after the start of a run: it precedes its child, and the newest run is the newest one."""

    class Clock(datetime):
        days = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(days=cls.days)

    monkeypatch.setattr(journal, "datetime", Clock)
    with start("train", "kd", params) as run:
        Clock.days = 1
        with run.child("kd seed 1", {"run": "kd", "seed": 1}) as child:
            pass
    with start("train", "kd", params) as again:
        pass
    Clock.days = 2
    with start("train", "kd", params) as last:
        pass
    assert [file.stem for file in journals(params)] == [run.id, child.id, again.id, last.id]
    assert sync(params).completed == 4  # the first time
    newest = _client().get_run(ledger(params)["train", "kd"])
    assert newest.data.tags["journal"] == last.id


@pytest.mark.parametrize(
    "step", ["log_model_artifacts", "finalize_logged_model", "create_model_version", "set_registered_model_alias"]
)
def test_a_model_that_is_sent_again_makes_no_doubles(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    log_model(params, tmp_path / "model")
    client = _client()

    def breaks(*_: object, **__: object) -> None:
        raise OSError("the server has gone")

    with monkeypatch.context() as patched:
        patched.setattr(client, step, breaks)
        with pytest.raises(UserError, match="the server has gone; the journals stay on disk"):
            sync(params)
    assert sync(params).completed == 1
    experiment = client.get_experiment_by_name(params.suite.name)
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert str(model.status) == "READY"
    (version,) = client.search_model_versions("name = 'student-avsynth'")
    assert client.get_model_version_by_alias("student-avsynth", "best").version == version.version
    assert len(list(tmp_path.rglob("MLmodel"))) == 1


def test_descriptions(tmp_path: Path, use_store: object) -> None:
    params = suite(tmp_path)
    with start("train", "mnf_csc", params) as run, run.child("a seed", {}) as child:
        for tags in (run.tags, child.tags):
            assert "L_cl   = -mean_i" in str(tags["mlflow.note.content"])
    with start("report", None, params) as run:
        assert str(run.tags["mlflow.note.content"]).startswith("Stage report")
        assert "\n\n" not in str(run.tags["mlflow.note.content"])


NVIDIA_SMI = """#!/bin/sh
echo "$@" | grep -q -e --query-gpu=utilization.gpu,memory.used,power.draw || exit 1
echo '37, 1024, 101.5'
echo '0, 2, [N/A]'
"""


def test_system_metrics(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    with start("train", JOB, params) as run:
        run.log_system(step=1)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        run.log_system(step=2)
    sync(params)
    (found,) = runs(params)
    for name in ("cpu_utilization_percentage", "system_memory_usage_percentage"):
        assert all(0 <= value <= 100 for _, value in history(found, f"system/{name}"))
        assert [step for step, _ in history(found, f"system/{name}")] == [1, 2]
    assert history(found, "system/system_memory_usage_megabytes")[0][1] > 10
    assert (2, 37) in history(found, "system/gpu_0_utilization_percentage")
    assert (2, 101.5) in history(found, "system/gpu_0_power_usage_watts")
    assert (2, 2) in history(found, "system/gpu_1_memory_usage_megabytes")
    assert not history(found, "system/gpu_1_power_usage_watts")


def _one_stage(task: tuple[str, int]) -> None:
    out, number = task
    with start("train", f"job{number}", suite(out)) as run, ProcessPoolExecutor(2) as pool:
        for _ in pool.map(_one_child, [(pickle.dumps(run), seed) for seed in range(3)]):
            run.log_metrics({"done": 1.0}, step=number)


def _one_child(task: tuple[bytes, int]) -> None:
    parent, seed = task
    run = pickle.loads(parent)
    run.log_metrics({f"from_worker_{seed}": 1.0})
    with run.child(f"seed {seed}", {"run": "kd", "seed": seed}) as child:
        for step in range(200):
            child.log_metrics({"loss": step / 7}, step=step)


def test_many_processes_at_once(params: Params) -> None:
    script = (
        "import sys; from tests.avdistill.tracking.test_mirror import _one_stage as one; "
        "one((sys.argv[1], int(sys.argv[2])))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, params.suite.out, str(number)], cwd=ROOT) for number in range(4)
    ]
    while any(process.poll() is None for process in processes):
        sync(params)
    assert [process.returncode for process in processes] == [0] * 4
    sync(params)
    found = runs(params)
    assert {run.info.status for run in found} == {"FINISHED"}
    parents = {run.info.run_id: run for run in found if "run" not in run.data.tags}
    assert len(parents) == 4
    for parent in parents.values():
        assert set(parent.data.metrics) == {"done", "from_worker_0", "from_worker_1", "from_worker_2"}
    children = [run for run in found if "run" in run.data.tags]
    assert len(children) == 12
    for run in children:
        assert run.data.tags["item"] == parents[run.data.tags["mlflow.parentRunId"]].data.tags["item"]
        assert history(run, "loss") == [(step, step / 7) for step in range(200)]


def test_mirror_killed_in_the_middle(params: Params) -> None:
    """The first run is sent, the others perhaps in part, when the mirror dies."""
    for number in range(15):
        with start("train", f"job{number}", params) as run:
            for step in range(400):
                run.log_metrics({"loss": step * 0.5, "accuracy": step * 0.25}, step=step)
    folder = journal_folder(params)
    mirror = subprocess.Popen([sys.executable, "-m", "avdistill.tracking", "mirror", str(folder)], cwd=ROOT)
    while not journals(params, "*.sent.json"):
        assert mirror.poll() is None
        time.sleep(0.01)
    mirror.kill()
    mirror.wait()
    assert len(journals(params)) > 5, "killed too late to show anything"
    sync(params)
    found = runs(params)
    assert sorted(run.data.tags["item"] for run in found) == sorted(f"job{number}" for number in range(15))
    for run in found:
        assert history(run, "loss") == [(step, step * 0.5) for step in range(400)]
        assert run.info.status == "FINISHED"
    assert not journals(params)


def test_what_killed_processes_left_is_deleted(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was not begun, a note of what was sent that was not finished, and copies of artifacts."""
    with start("report", None, params) as run:
        run.log_artifact(ROOT / "params.yaml")
    folder = journal_folder(params)
    old, new = [folder / ".20260101-000000-000000-abcdef01", folder / ".a.sent.json.12"], folder / ".of a live one"
    for file in (*old, new):
        file.write_text("")
    for file in old:
        os.utime(file, (0, 0))
    (folder / run.id / ".params.yaml.12").write_text("")
    rmtree = shutil.rmtree

    def fail_once(path: Path) -> None:
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(shutil, "rmtree", fail_once)
    with pytest.raises(UserError, match="Input/output error"):
        sync(params)
    assert (folder / f"{run.id}.jsonl").exists(), "else nobody would delete the folder"
    sync(params)
    (sent,) = runs(params)
    assert sent.info.status == "FINISHED"
    left = {path.name for path in folder.iterdir()}
    assert left == {f"{run.id}.sent.json", new.name, "send.lock"}


def test_a_journal_for_which_there_is_no_room(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gets full writes a part of a line without an error; that must not pass unseen."""
    write = os.write
    with pytest.raises(OSError, match="No space left"), start("report", None, params) as run:
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:-5]))
        run.log_metrics({"loss": 1.0})
    monkeypatch.setattr(os, "write", write)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *_: rename(Path("nowhere"), Path("there")))
    with pytest.raises(FileNotFoundError), start("report", None, params):
        pass
    assert not list(journal_folder(params).glob(".*"))


def test_process_that_is_killed_ends_its_run(params: Params) -> None:
    script = START_AND_WAIT.format(root=str(ROOT), job=JOB, out=params.suite.out)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    journal = process.stdout.readline().strip()
    sync(params)
    assert runs(params)[0].info.status == "RUNNING"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with (journal_folder(params) / f"{journal}.jsonl").open("ab") as file:
        file.write(b'{"event": "metri')  # what it was writing
    assert sync(params).completed == 1
    (found,) = runs(params)
    assert found.info.status == "KILLED"
    assert found.data.metrics == {"loss": 1.0}


class FakeServer(BaseHTTPRequestHandler):
    """Answers a look whether it is there, and fails whatever is to be created, after it has done it."""

    created: list[str]

    def do_GET(self) -> None:
        body = b"{}" if "get-by-name" not in self.path else b'{"experiment": {"experiment_id": "1", "name": "a"}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/search"):
            self.do_GET()
            return
        self.created.append(self.path)
        self.send_error(502)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_server(use_store: Callable[[str], None]) -> Iterator[type[FakeServer]]:
    """A server that loses answers, behind an address with a password."""
    handler = type("Handler", (FakeServer,), {"created": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_store(f"http://someone:s3cret@127.0.0.1:{server.server_port}")
        yield handler
        server.shutdown()


def test_what_may_have_been_created_is_not_created_again_unseen(
    tmp_path: Path, fake_server: type[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own client would send the request a second time."""
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with start("report", None, suite(tmp_path)):
        pass
    with pytest.raises(UserError, match="the journals stay on disk"):
        sync(suite(tmp_path))
    assert fake_server.created == ["/api/2.0/mlflow/runs/create"]


def test_passwords_are_shown_nowhere(
    tmp_path: Path, fake_server: type[FakeServer], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    uri, params = tracking_uri(), suite(tmp_path)
    with pytest.raises(RuntimeError), start("report", None, params):
        raise RuntimeError(f"no answer from {uri}/api")
    with pytest.raises(UserError, match=r"MLflow at http://\*\*\*@127.0.0.1:\d+: ") as raised:
        sync(params)
    mirror(journal_folder(params), idle=0.1, patience=0.1)
    assert "gave up" in (journal_folder(params) / "mirror.log").read_text()
    shown = [str(raised.value), *capfd.readouterr()]
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("s3cret" in text for text in [*shown, *written])


def test_a_child_waits_for_its_parent(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    with start("train", JOB, params) as run, run.child("seed 0", {"run": "kd", "seed": 0}):
        pass
    client, create, calls = _client(), _client().create_run, list[int]()

    def breaks_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the server has gone")
        return create(*arguments)

    monkeypatch.setattr(client, "create_run", breaks_once)
    with pytest.raises(UserError, match="the server has gone"):
        sync(params)
    assert runs(params) == []
    assert sync(params).completed == 2
    parent, child = sorted(runs(params), key=lambda run: "run" in run.data.tags)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_an_experiment_that_another_checkout_creates_meanwhile(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _client()
    client.create_experiment(params.suite.name)
    answers, look = [None], client.get_experiment_by_name
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: answers.pop() if answers else look(name))
    with start("report", None, params):
        pass
    assert sync(params).completed == 1
    assert len(runs(params)) == 1


def test_a_database_that_was_left_half_made(tmp_path: Path, use_store: Callable[[str], None]) -> None:
    """Its tables are made under another name, so whoever made them may be killed."""
    (tmp_path / "mlflow.db.new").write_bytes(b"half of it")
    (tmp_path / "mlflow.db.new-journal").write_bytes(b"and its journal")
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    with start("report", None, suite(tmp_path / "out")):
        pass
    assert sync(suite(tmp_path / "out")).completed == 1
    assert sorted(path.name for path in tmp_path.glob("mlflow.db*")) == ["mlflow.db", "mlflow.db.lock"]


def test_ledger_does_not_wait_for_a_server_that_is_away(
    tmp_path: Path, use_store: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        use_store(f"http://127.0.0.1:{server.getsockname()[1]}")
        params = suite(tmp_path)
        with start("report", None, params):
            pass
        mirror(journal_folder(params), idle=0.1, patience=0.1)
        monkeypatch.delenv("AV_TRACKING")
        monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
        assert ledger(params) == {}


@pytest.mark.parametrize("kind", ["refuses", "never answers"])
def test_unreachable_server_holds_nothing_up(
    kind: str, tmp_path: Path, empty_database: Path, use_store: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    if kind == "never answers":
        server.listen()
    use_store(f"http://127.0.0.1:{server.getsockname()[1]}")
    params = suite(tmp_path / "out")
    with monkeypatch.context() as here:
        here.setattr(socket.socket, "connect", lambda *_: pytest.fail("a stage asks the server itself"))
        for _ in range(3):
            with start("train", JOB, params) as run:
                for step in range(100):
                    run.log_metrics({"loss": 1.0}, step=step)

    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:\d+: .*the journals stay on disk"):
        sync(params)
    folder = journal_folder(params)
    mirror(folder, idle=0.1, patience=0.1)  # ends
    (note,) = (folder / "mirror.log").read_text().splitlines()
    assert "gave up" in note
    assert len(journals(params)) == 3
    server.close()

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    use_store(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sync(params) == (3 * 102, 3)
    assert [len(history(run, "loss")) for run in runs(params)] == [100] * 3


def test_first_stage_starts_the_mirror(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AV_TRACKING")
    folder = journal_folder(params)
    with start("train", JOB, params) as run:
        run.log_metrics({"loss": 1.0})
        deadline = time.monotonic() + 60
        while not any("offset" in file.read_text() for file in journals(params, "*.sent.json")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert runs(params)[0].data.metrics == {"loss": 1.0}
    assert set(ledger(params, wait=60)) == {("train", JOB)}  # waits for the mirror
    assert (folder / "mirror.log").read_text() == ""
    # It still looks for more, so a second one ends at once.
    before = time.perf_counter()
    (folder / "pretend.jsonl").touch()
    mirror(folder, idle=60)
    assert time.perf_counter() - before < 30


def test_mirror_ends_when_nothing_goes_on(params: Params) -> None:
    with start("train", JOB, params):
        pass
    before = time.perf_counter()
    mirror(journal_folder(params), idle=0.2)
    assert time.perf_counter() - before > 0.2
    assert not journals(params)
    assert len(runs(params)) == 1


def test_a_stage_that_only_writes_its_journal_imports_no_mlflow(tmp_path: Path) -> None:
    script = f"""
import sys
from tests.avdistill.tracking.test_mirror import suite
from avdistill.tracking import journal as tracking
with tracking.start("report", None, suite({str(tmp_path)!r})) as run:
    run.log_metrics({{"a": 1.0}})
assert "mlflow" not in sys.modules
"""
    environment = os.environ | {"AV_TRACKING": "off"}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True)
    (journal,) = (tmp_path / ".tracking").glob("*.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "metrics", "end"]


def test_sync_on_the_command_line(params: Params, tmp_path: Path) -> None:
    text = (
        (ROOT / "params.yaml").read_text().replace(f"out: {load(ROOT / 'params.yaml').suite.out}", f"out: {tmp_path}")
    )
    (tmp_path / "params.yaml").write_text(text)
    with start("report", None, load(tmp_path / "params.yaml")):
        pass
    command = [sys.executable, "-m", "avdistill.tracking", "sync"]
    done = subprocess.run([*command, tmp_path / "params.yaml"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 events sent, 1 runs completed" in done.stdout
    missing = subprocess.run([*command, tmp_path / "none.yaml"], cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ") and "none.yaml" in missing.stderr
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1


def test_default_store_is_beside_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{ROOT / 'mlflow.db'}"
    assert artifact_location() == (ROOT / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # as `mlflow run` hands it on
    assert tracking_uri() == f"sqlite:///{ROOT / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert artifact_location() is None
