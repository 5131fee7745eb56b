"""The flow `reproduce` with real DVC and a real Prefect server of its own, on a small repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.tracking.journal import ledger
from avdistill.tracking.mirror import _client, sync
from flows.paper import Outcome, table
from tests.flows import project
from tests.flows.test_dvc import alive, mood, wait_for
from tests.helpers.whole import whole_suite

pytestmark = pytest.mark.e2e

GRAPH = {
    "check": set[str](),
    "train@kd": {"check"},
    "train@mnf_csc": {"check"},
    "report": {"train@kd", "train@mnf_csc"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """Starting it takes seconds: one for all tests.

    Prefect 3 leaves a hook that fails in every process forked from this one later, which then ends with code 1, such
    as the workers of a DataLoader in whatever test comes next. So the hooks are put back."""
    from prefect.testing.utilities import prefect_test_harness

    hooks = list(threading._threading_atexits)  # type: ignore[attr-defined]
    with prefect_test_harness(server_startup_timeout=120):
        yield
    threading._threading_atexits[:] = hooks  # type: ignore[attr-defined]


@pytest.fixture
def repo(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    made = project.make(tmp_path / "repo")
    for name, value in project.environment(made).items():
        if name != "PREFECT_HOME":
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(made)
    yield made
    _client.cache_clear()


def reproduce(*arguments: Any) -> Any:
    from flows.paper import reproduce

    return reproduce(*arguments, return_state=True)


def ask(kind: str, flow_run_id: Any) -> list[dict[str, Any]]:
    """What the server holds of a flow run."""
    from prefect.client.orchestration import get_client

    chosen = {"any_": [str(flow_run_id)]}
    body = {"logs": {"flow_run_id": chosen}} if kind == "logs" else {"flow_runs": {"id": chosen}}
    with get_client(sync_client=True) as client:
        return list(client.request("POST", f"/{kind}/filter", json=body).json())


def rows(flow_run_id: Any) -> dict[str, list[str]]:
    """The table of the flow run: the jobs of each stage."""
    (artifact,) = ask("artifacts", flow_run_id)
    lines = [[job.strip() for job in line.strip("|").split("|")] for line in artifact["data"].splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def states(flow_run_id: Any) -> dict[str, str]:
    return {stage: jobs[0] for stage, jobs in rows(flow_run_id).items()}


def test_ran_skipped_cached_and_the_runs_that_made_them(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AV_TRACKING", "on")
    for job in ("kd", "mnf_csc"):
        mood(repo, job, "waits for the other")  # which would take for ever if they did not run side by side
    first = reproduce("dvc.yaml", 2)
    assert first.is_completed(), first.message
    flow_run_id = first.state_details.flow_run_id
    assert states(flow_run_id) == dict.fromkeys(GRAPH, "ran")
    assert {run["name"] for run in ask("task_runs", flow_run_id)} == set(GRAPH)
    (flow_run,) = ask("flow_runs", flow_run_id)
    assert flow_run["name"].startswith("small 20")
    run_id = ledger(load("params.yaml"))["train", "kd"]
    assert f"[{run_id[:8]}](http://127.0.0.1:5000/#/runs/{run_id})" in rows(flow_run_id)["train@kd"]
    assert _client().get_run(run_id).data.tags["prefect.flow_run_id"] == str(flow_run_id)

    # From here on without a process for each delivery: that one brought everything over has been seen.
    from flows import paper

    monkeypatch.setenv("AV_TRACKING", "off")
    monkeypatch.setattr(paper, "_sync", lambda params, log: sync(params))
    second = reproduce("dvc.yaml", 2)
    assert states(second.state_details.flow_run_id) == dict.fromkeys(GRAPH, "skipped")
    assert second.message == "4 stages: 4 skipped"

    mood(repo, "kd", "better")
    assert states(reproduce("dvc.yaml").state_details.flow_run_id) == {
        "check": "skipped", "train@kd": "ran", "train@mnf_csc": "skipped", "report": "ran"
    }  # fmt: skip
    assert ledger(load("params.yaml"))["train", "kd"] != run_id
    mood(repo, "kd", "waits for the other")
    back = reproduce("dvc.yaml").state_details.flow_run_id
    assert states(back)["train@kd"] == "cached"
    assert run_id in rows(back)["train@kd"][-1]  # the run that made what is there now, not the newest


def test_the_stage_that_always_runs_is_shown_as_run(repo: Path) -> None:
    raw = yaml.safe_load((repo / "dvc.yaml").read_text())
    command = raw["stages"]["check"]["cmd"].replace("check", "code")
    raw["stages"]["code"] = {
        "wdir": "${suite.root}",
        "cmd": command,
        "always_changed": True,
        "outs": ["${suite.out}/code"],
    }
    raw["stages"]["check"]["deps"] = ["${suite.out}/code"]
    (repo / "dvc.yaml").write_text(yaml.safe_dump(raw))
    assert states(reproduce("dvc.yaml", 1, ["check"]).state_details.flow_run_id) == {"code": "ran", "check": "ran"}
    again = reproduce("dvc.yaml", 1, ["check"])
    assert states(again.state_details.flow_run_id) == {"code": "ran", "check": "skipped"}
    assert again.message == "2 stages: 1 ran, 1 skipped"


def test_failure_stops_only_what_depends_on_it(repo: Path) -> None:
    mood(repo, "kd", "ill")
    state = reproduce("paper/dvc.yaml", 2)
    assert state.is_failed()
    expected = "failed: paper/dvc.yaml:train@kd (params.yaml: too ill to train). 4 stages: 2 ran, 1 failed, 1 not run"
    assert state.message == expected
    assert states(state.state_details.flow_run_id) == {
        "paper/dvc.yaml:check": "ran",
        "paper/dvc.yaml:train@kd": "failed: params.yaml: too ill to train",
        "paper/dvc.yaml:train@mnf_csc": "ran",
        "paper/dvc.yaml:report": "not run",
    }
    deadline = time.monotonic() + 60  # Prefect sends logs in batches
    while not any("feels ill" in line["message"] for line in ask("logs", state.state_details.flow_run_id)):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_bad_input_is_one_line(repo: Path) -> None:
    state = reproduce("dvc.yaml", 2, ["tran@kd"])
    assert state.is_failed()
    assert state.message == "targets: there is no stage or study 'tran@kd'; did you mean 'train@kd'?"
    text = (repo / "params.yaml").read_text()
    (repo / "params.yaml").write_text(text.replace("suite:", "suit:"))
    state = reproduce()
    assert state.is_failed()
    assert state.message.startswith("params.yaml: suit: unknown key; did you mean 'suite'?")
    for arguments in (("params.yaml",), ("dvc.yaml", 0)):
        assert reproduce(*arguments).is_failed()


def test_cancelled_from_outside(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `prefect flow-run cancel` does it; no worker is there to end the run."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    from flows import scheduler

    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.2)
    mood(repo, "kd", "asleep")
    seen: list[str] = []

    def cancel_when_it_sleeps(*arguments: Any) -> bool:
        if not seen and (repo / "pids").exists() and (repo / "pids").read_text():
            seen.append((repo / "pids").read_text())
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(scheduler.flow_run.id, Cancelling())
        return looked()

    looked: Callable[[], bool] = scheduler.cancelled
    monkeypatch.setattr(scheduler, "cancelled", cancel_when_it_sleeps)
    state = reproduce("dvc.yaml", 1, ["train@kd"])
    assert state.is_cancelled()
    assert len(seen) == 1
    assert alive(seen[0]) == []


def test_signal_ends_everything(repo: Path, tmp_path: Path) -> None:
    """On the command line, with Prefect's files in a folder of its own: nothing of the stage is left."""
    mood(repo, "kd", "asleep")
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.paper", "dvc.yaml", "train@kd"], stdout=log, stderr=log, env=environment
        )
    pids = wait_for(repo / "pids")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert alive(pids) == []


def test_select() -> None:
    from flows.paper import select

    assert select(GRAPH, None) == GRAPH
    assert set(select(GRAPH, ["train@kd"])) == {"check", "train@kd"}
    assert set(select(GRAPH, ["train"])) == {"check", "train@kd", "train@mnf_csc"}
    assert list(select(GRAPH, ["report"])) == list(GRAPH)
    paper = {
        f"paper/dvc.yaml:{stage}": {f"paper/dvc.yaml:{above}" for above in upstream}
        for stage, upstream in GRAPH.items()
    }
    assert set(select(paper, ["train@kd"])) == {"paper/dvc.yaml:check", "paper/dvc.yaml:train@kd"}
    with pytest.raises(UserError, match="did you mean 'report'"):
        select(GRAPH, ["reprt"])


def test_select_a_study() -> None:
    from flows.paper import select

    graph: dict[str, set[str]] = {"paper/dvc.yaml:train@kd": set(), "paper/dvc.yaml:train@ccl": set()}
    graph |= {f"paper/dvc.yaml:evaluate@{job}": {f"paper/dvc.yaml:train@{job}"} for job in ("kd", "ccl")}
    studies = {"chen": ["paper/dvc.yaml:evaluate@ccl"], "train": ["paper/dvc.yaml:evaluate@ccl"]}
    assert set(select(graph, ["chen"], studies)) == {"paper/dvc.yaml:train@ccl", "paper/dvc.yaml:evaluate@ccl"}
    assert set(select(graph, ["train"], studies)) == {"paper/dvc.yaml:train@kd", "paper/dvc.yaml:train@ccl"}, (
        "a stage's name comes first"
    )
    with pytest.raises(UserError, match="did you mean 'chen'"):
        select(graph, ["chenn"], studies)


def test_form_explains_itself() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.paper import reproduce

    schema = parameter_schema(reproduce)
    assert set(schema.properties) == {"suite", "workers", "targets", "pool"}
    assert all(entry["description"] for entry in schema.properties.values())
    assert not schema.required


def test_the_command_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.paper import _main

    monkeypatch.setattr(sys, "argv", ["flows.paper", "--help"])
    with pytest.raises(SystemExit):
        _main()
    assert "--workers" in capsys.readouterr().out


def test_tables_of_the_report_come_in_the_order_of_the_params(root: Path, tmp_path: Path) -> None:
    from flows.paper import report_tables

    params = Params.model_validate(whole_suite(root))
    params = params.model_copy(update={"suite": params.suite.model_copy(update={"out": str(tmp_path)})})
    assert report_tables(params) == ""
    tables = tmp_path / "report/tables"
    tables.mkdir(parents=True)
    gains = ("chen_2-gains-R@1", "chen_2-gains-R@10", "chen_2-gains-R@5", "xia_1-gains")
    for name in ("claims", "settings", *gains, "xia_1-scores"):
        (tables / f"{name}.md").write_text(f"of {name}")
    lines = [line for line in report_tables(params).splitlines() if line]
    assert lines == [
        "of claims",
        "of settings",
        "## Table 1, action recognition and video retrieval",
        "of xia_1-gains",
        "## Table 2, video retrieval",
        "of chen_2-gains-R@1",
        "of chen_2-gains-R@5",
        "of chen_2-gains-R@10",
    ]


def test_links_of_the_table_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/")
    made = table({"train@kd": Outcome("ran", 1.0)}, {"train@kd": "0123456789"})
    assert made.splitlines()[-1].endswith("[01234567](https://mlflow.example/#/runs/0123456789) |")
