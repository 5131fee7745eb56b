"""The exported student behind the real `mlflow models serve`: the answers of stage evaluate, from a video file."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.helpers.servers import free_port, running
from tests.helpers.whole import whole_suite
from tests.pipeline.conftest import Checkout, tiny_params

pytestmark = pytest.mark.e2e

# One process for all stages: each would import torch anew.
RUN_STAGES = """
from importlib import import_module
from avdistill.config import loading as params
from avdistill.tracking import journal as tracking
from avdistill.pipeline.stage import Stage
suite = params.load("params.yaml")
for name, item in [
    ("check", None), ("download", "avsynth"), ("split", "avsynth"), ("frames", "avsynth"),
    ("train", "uni_modal"), ("evaluate", "uni_modal"), ("export", "avsynth"),
]:
    with tracking.start(name, item, suite) as run:
        import_module(f"stages.{name}").main(Stage(name, item, suite, run))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    """A checkout whose tiny suite has one run, trained, evaluated, exported and registered."""
    made = Checkout(tmp_path_factory.mktemp("serve"), root)
    raw = whole_suite(root)
    tiny_params(raw)
    raw["jobs"] = {"uni_modal": raw["jobs"]["uni_modal"] | {"init": "none"}}
    raw["report"] = {"baseline": "uni_modal"}
    for section in ("features", "noise_mixes", "studies", "teachers"):
        raw.pop(section, None)
    (made.folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    made.environment |= {"AV_TRACKING": "off", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    made.run("python", "-c", RUN_STAGES)
    made.run("python", "-m", "avdistill.tracking", "sync", "params.yaml")
    return made


def listens(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0


@pytest.fixture(scope="module")
def server(exported: Checkout) -> Iterator[str]:
    """Address of a server of the registered model."""
    port, log = free_port(), exported.folder / "serve.log"
    address = f"http://127.0.0.1:{port}"
    command = ["make", "model", f"PORT={port}"]
    with running(command, f"{address}/ping", log, exported.environment, exported.folder) as process:
        yield address
        process.terminate()  # make alone, as a supervisor would
        process.wait(60)
        until = time.monotonic() + 60
        while listens(port):
            assert time.monotonic() < until, "make has ended, what it started has not"
            time.sleep(0.1)


def post(address: str, *videos: str) -> tuple[int, Any]:
    body = json.dumps({"dataframe_records": [{"video": video} for video in videos], "params": {"nearest": 2}})
    request = urllib.request.Request(
        f"{address}/invocations", body.encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def videos(checkout: Checkout) -> dict[str, Path]:
    """Files of all clips by id."""
    out = checkout.folder / "out" / "avsynth"
    index = pd.read_csv(out / "split" / "avsynth" / "index.csv")
    return {row.id: out / "download" / "avsynth" / "videos" / row.file for row in index.itertuples()}


def test_a_clip_gets_the_probabilities_of_the_evaluation(exported: Checkout, server: str) -> None:
    out = exported.folder / "out" / "avsynth"
    about = json.loads((out / "export" / "avsynth" / "export.json").read_text())
    evaluated = np.load(out / "evaluate" / "uni_modal" / about["run"] / f"seed-{about['seed']}.npz")
    files = [videos(exported)[name] for name in evaluated["ids"][:4]]
    bodies = [base64.b64encode(file.read_bytes()).decode() for file in files]
    for asked in (map(str, files), bodies):
        status, answers = post(server, *asked)
        assert status == 200 and len(answers) == 4
        for answer, expected in zip(answers, evaluated["probabilities"], strict=False):
            assert list(answer["probabilities"]) == about["classes"]
            assert list(answer["probabilities"].values()) == pytest.approx(list(expected), abs=1e-5)
            assert answer["class"] == about["classes"][int(expected.argmax())]
            assert answer["error"] is None


def test_a_training_video_is_nearest_to_itself(exported: Checkout, server: str) -> None:
    gallery = np.load(exported.folder / "out" / "avsynth" / "export" / "avsynth" / "gallery.npz")["ids"].tolist()
    (answer,) = post(server, str(videos(exported)[gallery[0]]))[1]
    assert len(answer["nearest"]) == 2
    assert answer["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert gallery[0] in [near["video"] for near in answer["nearest"]]


def test_a_text_is_refused_and_the_server_goes_on(exported: Checkout, server: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n")
    status, answer = post(server, str(tmp_path / "text.mp4"))
    assert status == 400
    assert "no video can be read; first error: not a video file; expected MP4" in answer
    assert "Traceback" not in answer and "unexpected" not in answer
    status, (good, bad) = post(server, str(next(iter(videos(exported).values()))), str(tmp_path / "text.mp4"))
    assert status == 200
    assert good["class"] and not good["error"]
    assert not bad["class"] and "not a video file" in bad["error"]


def test_it_listens_on_loopback_only(server: str) -> None:
    """127.0.0.2 is this machine, too, but not the address that was bound."""
    assert not listens(int(server.rpartition(":")[2]), "127.0.0.2")


def test_too_large_a_body_is_refused_and_the_server_goes_on(exported: Checkout, server: str) -> None:
    with socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2])), timeout=30) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n{")
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert post(server, str(next(iter(videos(exported).values()))))[0] == 200


def test_the_folder_is_a_model_without_checkout_and_registry(exported: Checkout, tmp_path: Path) -> None:
    folder = exported.folder / "out" / "avsynth" / "export" / "avsynth"
    command = ["mlflow", "models", "predict", "-m", str(folder), "--env-manager", "local", "--content-type", "json"]
    command += ["-i", str(folder / "serving_input_example.json"), "-o", str(tmp_path / "answer.json")]
    done = subprocess.run(command, cwd=tmp_path, env=exported.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads((tmp_path / "answer.json").read_text())["predictions"]
    assert answer["error"] is None
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
