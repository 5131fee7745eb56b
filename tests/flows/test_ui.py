"""The servers of flows.ui, with small servers in their place."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from avdistill.pipeline.errors import UserError
from flows import ui
from flows.ui import Server
from tests.helpers.servers import free_port

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow, prefect = ui.servers(5001, 4201)
    assert mlflow.command[1:4] == ["server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert f"file://{tmp_path}/mlartifacts" in mlflow.command
    for server, port in ((mlflow, "5001"), (prefect, "4201")):
        assert Path(server.command[0]).exists()
        assert server.command[server.command.index("--host") + 1] == "127.0.0.1"
        assert server.command[server.command.index("--port") + 1] == port

    assert prefect.environment == {"PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:4201/api"}  # what its page asks

    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere:4200/api")
    assert [server.name for server in ui.servers(5001, 4201)] == ["mlflow"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    with pytest.raises(UserError, match="nothing to start"):
        ui.servers(5001, 4201)


def test_addresses_are_printed_and_an_interrupt_ends_both(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    script = f"""
import sys
from pathlib import Path
from flows.ui import Server, serve
command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
try:
    serve([Server(str(port), port, [*command, str(port)]) for port in {ports}], Path({str(tmp_path)!r}))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    addresses = {process.stdout.readline().split()[1] for _ in ports}
    assert addresses == {f"http://127.0.0.1:{port}" for port in ports}
    for address in addresses:
        assert urllib.request.urlopen(address).status == 200
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert not any(map(ui._answers, ports))


def test_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use; choose another one with --mlflow-port"):
            ui.serve([Server("mlflow", port, ["false"])], tmp_path)


def test_server_that_does_not_stay_up_ends_the_other(tmp_path: Path) -> None:
    stays, port = free_port(), free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(stays)]
    fails = [sys.executable, "-c", "import sys, time; time.sleep(0.5); sys.exit('no luck')"]
    before = time.monotonic()
    with pytest.raises(UserError, match=r"the prefect server exited or did not start; see .*prefect.log"):
        ui.serve([Server("mlflow", stays, command), Server("prefect", port, fails)], tmp_path)
    assert time.monotonic() - before < 30
    assert (tmp_path / "prefect.log").read_text() == "no luck\n"
    assert not ui._answers(stays)
