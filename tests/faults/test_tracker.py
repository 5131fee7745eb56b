"""The tracking server stopped, hung, answering 500, or losing answers: trainings end in time, and nothing is lost."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from avdistill.tracking.mirror import _client, deliver
from tests.faults.record import count, record
from tests.helpers.servers import free_port, running
from tests.pipeline.conftest import Checkout, tiny_params

pytestmark = pytest.mark.faults

SLOWER = 1.10  # at most, than with a tracker that works
EPOCHS = 60  # a training of several seconds
PREPARE = """
from importlib import import_module
from avdistill.config import loading as params
from avdistill.tracking import journal as tracking
from avdistill.pipeline.stage import Stage
suite = params.load("params.yaml")
for name in ("check", "download", "split", "frames"):
    item = None if name == "check" else "avsynth"
    with tracking.start(name, item, suite) as run:
        import_module(f"stages.{name}").main(Stage(name, item, suite, run))
"""


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server that answers as `handler` does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Answers500(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def trackers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URIs of trackers by what is wrong with them."""
    folder = tmp_path_factory.mktemp("tracker")
    with socket.socket() as stopped, socket.create_server(("127.0.0.1", 0)) as hung, listening(Answers500) as broken:
        stopped.bind(("127.0.0.1", 0))
        yield {
            "works": f"sqlite:///{folder / 'mlflow.db'}",
            "stopped": f"http://127.0.0.1:{stopped.getsockname()[1]}",
            "hung": f"http://127.0.0.1:{hung.getsockname()[1]}",
            "answers 500": broken,
        }


@pytest.fixture(scope="module")
def trainable(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    """A checkout with all that one training needs."""
    made = Checkout(tmp_path_factory.mktemp("trainable"), root)
    raw = yaml.safe_load((made.folder / "params.yaml").read_text())
    tiny_params(raw)
    raw["jobs"] = {"uni_modal": raw["jobs"]["uni_modal"] | {"seeds": [0, 1]}}
    raw["recipes"]["small"]["epochs"] = EPOCHS
    raw["report"] = {"baseline": "uni_modal"}
    for section in ("features", "noise_mixes", "studies", "teachers", "exports"):
        raw.pop(section, None)
    (made.folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    made.run("python", "-c", PREPARE, AV_TRACKING="off")
    shutil.rmtree(made.folder / "out/avsynth/.tracking")
    return made


def end_mirrors(folder: Path) -> None:
    """End the mirrors of a checkout, which would go on with the tracker that they were started for."""
    for process in psutil.process_iter():
        try:
            if process.cmdline()[1:4] == ["-m", "avdistill.tracking", "mirror"] and str(folder) in process.cmdline()[4]:
                process.kill()
                process.wait(10)
        except (psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
            continue


def test_a_training_needs_no_tracker(trainable: Checkout, trackers: dict[str, str]) -> None:
    rounds, out = count(5), trainable.folder / "out/avsynth"
    trained = {name: out / "train/uni_modal" / name for name in ("history.csv",)}
    seconds: dict[str, list[float]] = {kind: [] for kind in trackers}
    wanted: dict[str, str] = {}
    trainable.run("python", "-m", "stages", "train", "params.yaml", "uni_modal", AV_TRACKING="off")  # warms the caches
    for number in range(rounds):
        kinds, shift = list(trackers), (number + 1 - rounds) % len(trackers)
        for kind in kinds[shift:] + kinds[:shift]:  # none is always the first; in the last round the one that works is
            uri = trackers[kind]
            shutil.rmtree(out / "train/uni_modal")
            began = time.perf_counter()
            trainable.run("python", "-m", "stages", "train", "params.yaml", "uni_modal", MLFLOW_TRACKING_URI=uri)
            seconds[kind].append(time.perf_counter() - began)
            end_mirrors(trainable.folder)
            history = {name: without_seconds(file.read_text()) for name, file in trained.items()}
            wanted = wanted or history
            assert history == wanted, kind
    least = {kind: min(values) for kind, values in seconds.items()}  # what else the machine does only adds to it
    ratios = {kind: least[kind] / least["works"] for kind in trackers if kind != "works"}

    sync = ("python", "-m", "avdistill.tracking", "sync", "params.yaml")
    trainings = 1 + rounds * len(trackers)
    failed = trainable.run(*sync, check=False, MLFLOW_TRACKING_URI=trackers["answers 500"])
    assert "the journals stay on disk" in failed.stdout
    # Whatever works has sent what the others left, as far as it came in its time: not what came after it.
    assert len(list((out / ".tracking").glob("*.jsonl"))) >= 3 * (len(trackers) - 1)
    trainable.run(*sync, MLFLOW_TRACKING_URI=trackers["works"])
    assert "0 events sent, 0 runs" in trainable.run(*sync, MLFLOW_TRACKING_URI=trackers["works"]).stdout
    whole(MlflowClient(trackers["works"]), trainings)
    for kind, ratio in ratios.items():
        note = f"{ratio:.2f} of the time with a tracker that works ({least[kind]:.1f} s)"
        record("tracker", f"a training, MLflow: {kind}", rounds, note=note)
    assert max(ratios.values()) <= SLOWER, ratios


def without_seconds(history: str) -> str:
    """A table without its column of seconds."""
    header, *lines = history.splitlines()
    kept = [place for place, name in enumerate(header.split(",")) if "seconds" not in name]
    return "\n".join(",".join(line.split(",")[place] for place in kept) for line in [header, *lines])


def whole(client: MlflowClient, trainings: int) -> None:
    """Every training is there once, with its two seeds, every epoch once."""
    (experiment,) = [found for found in client.search_experiments() if found.name == "avsynth"]
    runs = client.search_runs([experiment.experiment_id], max_results=50_000)
    assert len({run.data.tags["journal"] for run in runs}) == len(runs)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == trainings
    assert len(runs) == 3 * trainings
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in (run for run in runs if "mlflow.parentRunId" in run.data.tags):
        losses = client.get_metric_history(run.info.run_id, "lr")
        assert [metric.step for metric in losses] == list(range(1, EPOCHS + 1))


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """MLflow's own server on a fresh database."""
    port, mlflow = free_port(), str(Path(sys.executable).with_name("mlflow"))
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "a")]
    command, url = [mlflow, "server", *store, "--port", str(port), "--workers", "1"], f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", folder / "server.log"):
        yield url


def unreliable(target: str, faults: random.Random, lost: list[str]) -> type[BaseHTTPRequestHandler]:
    """A server in front of another one. Of five requests one is refused and another is done, but its answer lost."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fate = faults.random()
            if fate < 0.2:
                self.send_error(500)
                return
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            request = urllib.request.Request(target + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    status, kind, data = answer.status, answer.headers.get("Content-Type"), answer.read()
            except urllib.error.HTTPError as error:
                status, kind, data = error.code, error.headers.get("Content-Type"), error.read()
            if fate < 0.4:
                lost.append(f"{self.command} {self.path}")
                self.send_error(502)
                return
            self.send_response(status)
            self.send_header("Content-Type", kind or "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


LOG = """
from pathlib import Path
from avdistill.config import loading as params
from avdistill.tracking import journal as tracking
suite = params.load("params.yaml")
folder = Path("model"); folder.mkdir(exist_ok=True); (folder / "MLmodel").write_text("flavors: {}")
for number in range(3):
    with tracking.start("train", "uni_modal", suite) as run:
        run.log_params({"number": number})
        run.log_artifact(Path("params.yaml"))
        for seed in range(2):
            with run.child(f"uni_modal seed {seed}", {"run": "uni_modal", "seed": seed}) as child:
                for step in range(1, 61):
                    child.log_metrics({"lr": 1 / step}, step)
with tracking.start("export", "avsynth", suite) as run:
    run.log_model("student-avsynth", folder, "best", "A model.", {"run": "uni_modal", "seed": 1})
"""


def test_a_tracker_that_loses_answers_gets_no_doubles(
    trainable: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that were done and not acknowledged are the ones that make doubles."""
    shutil.rmtree(trainable.folder / "out/avsynth/.tracking", ignore_errors=True)
    trainable.run("python", "-c", LOG, AV_TRACKING="off")
    folder, lost, tries = trainable.folder / "out/avsynth/.tracking", list[str](), 0
    with mlflow_server(tmp_path) as server, listening(unreliable(server, random.Random(1), lost)) as between:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", between)
        _client.cache_clear()
        while any(folder.glob("*.jsonl")):
            tries += 1
            assert tries < 500
            with contextlib.suppress(MlflowException, OSError):
                deliver(folder)
        client = MlflowClient(server)
        (experiment,) = [found for found in client.search_experiments() if found.name == "avsynth"]
        (export,) = client.search_runs([experiment.experiment_id], "tags.stage = 'export'")
        assert export.info.status == "FINISHED"
        (version,) = client.search_model_versions("name = 'student-avsynth'")
        assert client.get_model_version_by_alias("student-avsynth", "best").version == version.version
        client.delete_run(export.info.run_id)
        whole(client, 3)
    assert any("runs/create" in request for request in lost), "no answer of the kind was lost"
    record(
        "tracker", "answers lost or refused while runs were sent", len(lost), note=f"all was sent after {tries} rounds"
    )
