"""Stages on other machines: what they fetch, what comes back, and the entries of dvc.lock."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from avdistill.config.loading import load
from avdistill.data.files import write_json
from avdistill.pipeline import code
from avdistill.pipeline.errors import UserError
from flows import machines
from flows.dvc import Dvc
from flows.lock import merge, merged
from flows.machines import Machines, below, fetched, only_missing, returned
from tests.flows import project

GRAPH = {"check": set[str](), "frames@x": {"check"}, "train@kd": {"frames@x"}, "train@ccl": {"check"}}
GRAPH |= {"report": {"train@kd", "train@ccl"}}


def entry(path: str, md5: str) -> dict[str, Any]:
    return {"cmd": "true", "outs": [{"path": path, "hash": "md5", "md5": md5, "size": 1}]}


def test_a_stage_fetches_what_it_depends_on_and_no_more() -> None:
    outputs = ["out/code", "out/train/kd", "out/train/ccl", "out/trainer", "out/frames/x"]
    assert fetched(["out/code/train/kd.json"], outputs) == ["out/code/train/kd.json"]
    assert fetched(["out/train"], outputs) == ["out/train/ccl", "out/train/kd"]
    assert fetched(["out/frames/x", "out/code/a.json"], outputs) == ["out/code/a.json", "out/frames/x"]
    assert fetched([], outputs) == []
    with pytest.raises(UserError, match="own/videos: missing"):
        fetched(["own/videos"], outputs)


def test_videos_and_frames_stay_away_unless_they_are_asked_for() -> None:
    stages = ["paper/dvc.yaml:download@x", "paper/dvc.yaml:frames@x", "train@kd", "report"]
    assert returned(stages, set()) == ["train@kd", "report"]
    assert returned(stages, {"paper/dvc.yaml:frames@x"}) == stages[1:]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([{"changed outs": {"out/frames/x": "deleted"}}], True),
        ([{"changed deps": {"out/frames": "deleted"}}, {"changed outs": {"out/a": "deleted"}}], True),
        ([{"changed deps": {"out/frames": "deleted", "out/train": "modified"}}], False),
        ([{"changed outs": {"out/a": "not in cache"}}], True),
        ([{"changed outs": {"out/a": "modified"}}], False),
        (["changed command"], False),
        (["always changed"], False),
    ],
)
def test_data_that_is_elsewhere_is_no_change(differences: list[Any], expected: bool) -> None:
    assert only_missing(differences) is expected


def test_below() -> None:
    assert below(GRAPH, "frames@x") == {"train@kd", "report"}
    assert below(GRAPH, "report") == set()


def test_entries_are_merged_and_stale_ones_dropped() -> None:
    lock = {"schema": "2.0", "stages": {"a": entry("a", "1"), "b": entry("b", "1"), "c": entry("c", "1")}}
    new = merged(lock, {"a": entry("a", "2"), "d": entry("d", "1")}, {"b"})
    assert new == {"schema": "2.0", "stages": {"a": entry("a", "2"), "c": entry("c", "1"), "d": entry("d", "1")}}
    assert merged(lock, {"b": entry("b", "2")}, {"b"})["stages"]["b"] == entry("b", "2"), "made again since"
    assert merged({}, {"a": entry("a", "1")}) == {"schema": "2.0", "stages": {"a": entry("a", "1")}}


def test_dvc_reads_a_merged_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that DVC has recorded in one checkout makes another one up to date, but for the missing data."""
    repo = project.make(tmp_path / "repo")
    for name, value in project.environment(repo).items():
        monkeypatch.setenv(name, value)
    with Dvc(repo) as dvc:
        for stage in dvc.graph():
            dvc.repro(stage, lambda _: None)
        entries, before = dvc.recorded(), (repo / "dvc.lock").read_text()
        (repo / "dvc.lock").unlink()
        assert set(dvc.status()) == set(entries)
        halves = [dict(list(entries.items())[:2]), dict(list(entries.items())[2:])]
        threads = [threading.Thread(target=merge, args=(repo / "dvc.lock", half)) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dvc.status() == {} and dvc.recorded() == entries
        assert yaml.safe_load(before) == yaml.safe_load((repo / "dvc.lock").read_text())
        assert dvc.missing("train@kd") == []
        shutil.rmtree(repo / "out")
        shutil.rmtree(repo / ".dvc/cache")
        status = dvc.status()
        assert set(status) == set(entries) and all(map(only_missing, status.values()))


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machines:
    """The first machine, with a dvc.lock in which all stages are recorded."""
    (tmp_path / ".dvc").mkdir()
    recorded = {stage: entry(f"out/{stage}", "1") for stage in GRAPH}
    merge(tmp_path / "dvc.lock", recorded)
    monkeypatch.setattr(machines, "check_pool", lambda *_: None)
    dvc = SimpleNamespace(root=tmp_path, recorded=lambda _: recorded, push=lambda _: None, stopping=False)
    params: Any = SimpleNamespace(datasets={}, teachers={}, device="auto")
    made = Machines("cluster", cast(Dvc, dvc), "dvc.yaml", params, GRAPH)
    made.prepare()
    return made


def answer(monkeypatch: pytest.MonkeyPatch, md5: str) -> list[dict[str, Any]]:
    """Workers that answer with an output of this digest; returns what they are sent."""
    sent = list[dict[str, Any]]()

    def run(flow: str, pool: str, name: str, parameters: dict[str, Any], gpu: bool, *_: Any) -> Any:
        sent.append(parameters | {"gpu": gpu})
        return SimpleNamespace(state=SimpleNamespace(name="Ran"))

    monkeypatch.setattr(machines, "run_in_pool", run)
    made = lambda _: {"entry": entry(f"out/{sent[-1]['stage']}", md5), "mlflow_run": "0123"}  # noqa: E731
    monkeypatch.setattr(machines, "_result", made)
    return sent


def test_a_worker_gets_what_is_upstream_and_its_entry_comes_back(
    first: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent = answer(monkeypatch, "2")
    assert first.run("train@kd", print) == "ran"
    assert first.run("frames@x", print) == "ran"
    assert sent[0]["upstream"] == {"frames@x": entry("out/frames@x", "1")} and sent[0]["gpu"]
    assert not sent[1]["gpu"]
    assert first.unchanged == set() and first.makers["train", "kd"] == "0123"
    first.write()
    stages = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]
    assert stages["frames@x"] == entry("out/frames@x", "2")
    assert "report" not in stages, "its dependencies have changed, and nobody here could tell by the missing data"
    assert stages["check"] == entry("out/check", "1")


def test_an_evaluation_gets_what_its_training_has_read(first: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    first.graph = {**GRAPH, "evaluate@kd": {"train@kd"}}
    first._entries["train@kd"]["deps"] = [{"path": "out/frames@x", "md5": "1"}]
    sent = answer(monkeypatch, "1")
    first.run("evaluate@kd", print)
    assert set(sent[0]["upstream"]) == {"train@kd", "frames@x"} and sent[0]["further"] == ["out/frames@x"]


def test_a_stage_that_never_ran_has_to_run(first: Machines) -> None:
    away = [{"changed deps": {"out/train": "deleted"}}, {"changed outs": {"out/report": "deleted"}}]
    status = {"report": away, "export": away, "train@kd": [{"changed deps": {"out/code/train/kd.json": "modified"}}]}
    assert first.changed(status) == {"export", "train@kd"}, "export is not in dvc.lock"


def test_the_same_outputs_again_leave_what_is_below(
    first: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer(monkeypatch, "1")
    first.run("frames@x", print)
    assert first.unchanged == {"frames@x"}
    first.write()
    assert set(yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]) == set(GRAPH)


def test_data_that_only_this_machine_has_is_refused(
    first: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    monkeypatch.setattr(machines, "git", lambda *_: "")
    monkeypatch.setattr(machines, "sources", lambda _: [Path("videos"), Path("not_there")])
    params: Any = SimpleNamespace(suite=SimpleNamespace(file="own/params.yaml"))
    with pytest.raises(UserError, match=r"pool: videos is not in git.* absolute path in own/params\.yaml"):
        Machines("cluster", first.dvc, "dvc.yaml", params, GRAPH)
    monkeypatch.setattr(machines, "git", lambda *_: "videos/a.mp4")
    Machines("cluster", first.dvc, "dvc.yaml", params, GRAPH)


def test_other_packages_than_those_of_the_first_machine_are_refused(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    params = load(root / "params.yaml")
    params = params.model_copy(update={"suite": params.suite.model_copy(update={"out": str(tmp_path)})})
    found = code.describe("evaluate", "kd", params)
    write_json(tmp_path / "code/evaluate/kd.json", found)
    machines.check_code(params, "evaluate@kd")
    found["packages"]["torch"] = "0.4.1"
    write_json(tmp_path / "code/evaluate/kd.json", found)
    with pytest.raises(UserError, match=r"packages torch: 2\..* on this machine, 0\.4\.1 on the first"):
        machines.check_code(params, "evaluate@kd")
