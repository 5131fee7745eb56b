from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from avdistill.data.packed import Store
from avdistill.pipeline.errors import UserError
from benchmarks import __main__ as command
from benchmarks import data, harness, made_up, pipeline, retrieval, scaling, table, training
from benchmarks.harness import Benchmark, Measured, Option, Setting

MACHINE = {
    "system": "Linux x86_64",
    "processor": "Some CPU",
    "vectors": "AVX512",
    "cores": 2,
    "memory_gib": 8,
    "gpu": None,
    "versions": {"python": "3.11", "torch": "2"},
}


def setting(folder: Path) -> Setting:
    return Setting(quick=True, device="cpu", folder=folder)


def row(value: float, unit: str = "x", date: str = "2026-01-02") -> dict[str, object]:
    return {"value": value, "unit": unit, "date": date, "took_s": 1.0, "detail": {"ours_s": 0.5, "sizes": [1, 2]}}


def entry(name: str, unit: str = "x", needs: Option | None = None, limit: str = "", **goals: float | None) -> Benchmark:
    def function(setting: Setting) -> Measured:
        """How it
        is measured."""
        return Measured(1.0, {})

    return Benchmark(name, function, f"what {name} is", "", unit, goals, needs, limit)  # type: ignore[arg-type]


def plain(page: str) -> str:
    """Dashes as keyboards have them."""
    return page.replace("\N{EN DASH}", "-")


def test_ways_take_turns_after_a_first_call_that_is_not_timed() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = harness.alternate(ways, repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert min(seconds["a"] + seconds["b"]) >= 0


def test_a_speedup_is_the_median_of_neighbouring_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine gets slower and slower: medians of each way alone would compare different times.
    seconds = {"ours": [1.0, 10.0, 100.0], "baseline": [2.0, 30.0, 500.0]}
    monkeypatch.setattr(harness, "alternate", lambda ways, repeats: seconds)
    value, detail = harness.speedup(lambda: None, lambda: None, 3)
    assert value == 3
    assert detail == {"ours_s": 10, "baseline_s": 30, "lowest": 2, "highest": 5}


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_growth_finds_the_exponent(power: float) -> None:
    value, detail = harness.growth(lambda size: 3 * size**power, [10, 100, 1000])
    assert value == pytest.approx(power)
    assert detail["seconds"] == pytest.approx([3 * size**power for size in (10, 100, 1000)])


def test_more_is_better_of_a_speedup_alone() -> None:
    assert entry("a", "x", cpu=1.4).keeps(1.5, "cpu") is True
    assert entry("a", "x", cpu=1.4).keeps(1.3, "cpu") is False
    assert entry("a", "s", cpu=3).keeps(2.0, "cpu") is True
    assert entry("a", "s", cpu=3).keeps(4.0, "cpu") is False
    assert entry("a", "s", cpu=None).keeps(4.0, "cpu") is None
    assert entry("a", "s", cpu=3).keeps(4.0, "gpu") is None


def test_rows_stay_while_machine_and_versions_do(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    assert harness.read(path) == {}
    harness.keep(path, MACHINE, {"a": row(1.0), "b": row(2.0)})
    harness.keep(path, MACHINE, {"b": row(3.0, date="2026-02-03")})
    kept = json.loads(path.read_text())
    assert {name: found["value"] for name, found in kept["rows"].items()} == {"a": 1.0, "b": 3.0}
    assert kept["rows"]["b"]["date"] == "2026-02-03" and kept["machine"] == MACHINE
    newer = MACHINE | {"versions": {"python": "3.11", "torch": "3"}}
    harness.keep(path, newer, {"b": row(4.0)})
    assert list(json.loads(path.read_text())["rows"]) == ["b"]


def test_the_table_has_a_column_for_each_kind_of_machine() -> None:
    known = {
        "fast": entry("fast", "x", cpu=1.4, gpu=5.0, limit="nothing"),
        "slow": entry("slow", "s", cpu=3.0, limit="disks turn"),
        "grows": entry("grows", "exponent", cpu=None),
    }
    cpu = {"machine": MACHINE, "rows": {"fast": row(1.634), "slow": row(4.5, "s"), "grows": row(1.019, "exponent")}}
    page = plain(table.page(known, {"cpu": cpu, "gpu": {}}))
    lines = [line for line in page.splitlines() if line.startswith("| what")]
    assert lines == [
        "| what | against | goal CPU | CPU | goal GPU | GPU |",
        "| what fast is | - | ≥ 1.4x | 1.63x | ≥ 5x |  |",
        "| what slow is | - | ≤ 3 s | (4.5 s) | - | - |",  # missed, and not for a GPU
        "| what grows is | - | - | n^1.02 | - | - |",
    ]
    assert "CPU (2026-01-02): Some CPU, AVX512, 2 cores, 8 GiB, Linux x86_64, python 3.11, torch 2" in page
    assert "GPU: not measured yet" in page
    assert "**what fast is** (`fast`). How it is measured." in page
    assert "- CPU, 2026-01-02: ours_s 0.5; sizes 1, 2" in page
    assert page.count("what limits it") == 1 and "- CPU, what limits it: disks turn" in page
    gpu = {"machine": MACHINE | {"gpu": "Some GPU"}, "rows": {"fast": row(7.0)}}
    assert "| what fast is | - | ≥ 1.4x | 1.63x | ≥ 5x | 7x |" in plain(table.page(known, {"cpu": cpu, "gpu": gpu}))


def test_a_run_writes_both_files_and_names_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"good": entry("good", cpu=1), "bad": entry("bad", cpu=1), "suite": entry("suite", needs="suite", cpu=1)}
    known["before"] = entry("before", needs="against", cpu=1)
    asked: list[str] = []

    def run(chosen: list[Benchmark], *_: object) -> dict[str, object]:
        asked.extend(one.name for one in chosen)
        return {one.name: row(1.5) for one in chosen if one.name == "good"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(harness, "declared", lambda: known)
    monkeypatch.setattr(harness, "run", run)
    with pytest.raises(UserError, match="1 of 2 benchmarks failed: bad"):
        command.main([])
    assert asked == ["good", "bad"]
    assert json.loads((tmp_path / "benchmarks/results/cpu.json").read_text())["rows"]["good"]["value"] == 1.5
    assert "| what good is | - | ≥ 1x | 1.5x |" in plain((tmp_path / "docs/benchmarks.md").read_text())
    command.main(["--quick", "--only", "good"])
    assert (tmp_path / "out/benchmarks/benchmarks.md").exists()
    with pytest.raises(UserError, match="--only goood: there is no such benchmark; did you mean 'good'"):
        command.main(["--only", "goood"])
    with pytest.raises(UserError, match="--only suite: requires --suite"):
        command.main(["--only", "suite"])
    with pytest.raises(UserError, match="--only before: requires --against"):
        command.main(["--only", "before"])
    with pytest.raises(UserError, match="--against: requires --suite"):
        command.main(["--against", "HEAD"])
    ran: list[object] = []
    monkeypatch.setattr(pipeline, "run_suite", lambda tell, before: ran.append(before))
    asked.clear()
    for more in ([], ["--against", "HEAD~1"]):
        with pytest.raises(UserError, match="failed: bad"):
            command.main(["--suite", *more])
    assert ran == [None, "HEAD~1"]
    assert asked == ["good", "bad", "suite", "good", "bad", "suite", "before"]


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(chosen: list[Benchmark], *_: object) -> dict[str, object]:
        if any(one.name == "slow" for one in chosen):
            raise KeyboardInterrupt
        return {one.name: row(1.5) for one in chosen}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(harness, "declared", lambda: {name: entry(name, cpu=1) for name in ("good", "slow")})
    monkeypatch.setattr(harness, "run", run)
    with pytest.raises(KeyboardInterrupt):
        command.main([])
    assert list(json.loads((tmp_path / "benchmarks/results/cpu.json").read_text())["rows"]) == ["good"]
    assert "| what good is | - | ≥ 1x | 1.5x |" in plain((tmp_path / "docs/benchmarks.md").read_text())


def test_a_benchmark_that_fails_leaves_the_others_alone() -> None:
    told: list[str] = []
    known = harness.declared()
    broken = entry("there_is_no_such_benchmark", cpu=1)
    rows = harness.run([broken, known["retrieval_memory_vggsound"]], "cpu", True, told.append)
    assert list(rows) == ["retrieval_memory_vggsound"] and rows["retrieval_memory_vggsound"]["value"] >= 0
    assert any(line.startswith("there_is_no_such_benchmark: failed: KeyError") for line in told)


def test_every_benchmark_says_how_it_is_measured() -> None:
    known = harness.declared()
    assert {"step_r2plus1d_10", "frames_in", "cnn14_features", "suite_time", "evaluation_against_clips"} <= set(known)
    for name, one in known.items():
        assert one.function.__doc__ and one.goals, name
        assert one.unit in ("x", "%", "s", "min", "GiB", "exponent"), name


# Those that start processes of their own are run by themselves below, or cost seconds.
QUICK = [
    "step_r2plus1d_10",
    "step_r2plus1d_18",
    "step_embedded",
    "waiting_for_data",
    "frames_in",
    "decoding",
    "cnn14_features",
    "retrieval_ucf51",
    "training_against_clips",
    "index_against_clips",
    "evaluation_against_clips",
]


@pytest.mark.parametrize("name", QUICK)
def test_benchmarks_run(name: str, tmp_path: Path) -> None:
    if name == "frames_in":
        pytest.importorskip("h5py")
    if name == "decoding":
        pytest.importorskip("decord")
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        value, detail = harness.declared()[name].function(setting(tmp_path))
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
    assert np.isfinite(value) and (value > 0 or harness.declared()[name].unit != "x")
    json.dumps(detail)


def test_the_plain_loop_is_contiguous_and_the_trainer_is_not(tmp_path: Path) -> None:
    trainer = training.papers_size(setting(tmp_path), "r2plus1d_10")
    weights = [
        one.get_parameter("layer1.0.conv1.0.0.weight") for one in (trainer.student, training.PlainLoop(trainer).student)
    ]
    assert [weight.is_contiguous() for weight in weights] == [False, True]
    assert torch.equal(*weights)
    torch.use_deterministic_algorithms(False)


def test_the_two_steps_are_told_apart_when_they_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before timing is one: a student's loss without its contrast is not let pass."""
    monkeypatch.setattr(training, "calibrated_contrast", lambda student, *_: student.sum() * 0)
    with pytest.raises(AssertionError, match="loss"):
        training.step_of(setting(tmp_path), "r2plus1d_10")


def test_the_loop_over_queries_counts_as_its_definition_does() -> None:
    queries, gallery = torch.eye(3)[:2], torch.tensor([[1.0, 0.1, 0], [0.9, 0.5, 0], [0, 1, 0.1], [0, 0, 1]])
    labels, gallery_labels = torch.tensor([0, 5]), torch.tensor([0, 1, 0, 0])
    found = retrieval.loop_over_queries(queries, labels, gallery, gallery_labels)
    assert found["R@1"] == 0.5 and found["R@10"] == 0.5  # class 5 is not in the gallery
    # The first query ranks 0, 1, then 2 and 3 (equally far): hits at places 1, 3 and 4.
    assert found["mAP@100/released"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_a_made_up_suite_is_the_same_each_time(tmp_path: Path) -> None:
    recipe = {"frames": 4, "size": 16, "batch": 4, "width": 0.125}
    suites = [made_up.suite(tmp_path / name, 8, (5, 18, 20), recipe) for name in "ab"]
    stores = [Store(params.path("frames", "noise")) for params in suites]
    assert len(stores[0]) == 8 + made_up.VAL
    assert all(np.array_equal(stores[0][name], stores[1][name]) for name in stores[0])
    trainer = made_up.trainer(suites[0], "cpu")
    assert len(trainer.clips) == 8 and trainer.teachers["A"].mask.sum() == 7
    torch.use_deterministic_algorithms(False)


def test_clouds_are_pictures_of_their_seed() -> None:
    clip = data.smooth_clip(6, 20, 30, seed=1)
    assert clip.shape == (6, 20, 30, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, data.smooth_clip(6, 20, 30, seed=1))
    assert not np.array_equal(clip, data.smooth_clip(6, 20, 30, seed=2))
    assert clip.std() > 20 and not np.array_equal(clip[0], clip[5])


def test_seconds_by_stage_leave_nested_runs_out(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table runs (run_uuid, start_time, end_time)")
        connection.execute("create table tags (run_uuid, key, value)")
        for number, (stage, milliseconds, nested) in enumerate(
            [("train", 4000, False), ("train", 3000, True), ("train", 2500, False), ("report", 7000, False)]
        ):
            connection.execute("insert into runs values (?, 100, ?)", (str(number), 100 + milliseconds))
            connection.execute("insert into tags values (?, 'stage', ?)", (str(number), stage))
            if nested:
                connection.execute("insert into tags values (?, 'mlflow.parentRunId', '0')", (str(number),))
    assert pipeline.stage_seconds(tmp_path / "mlflow.db") == {"report": 7.0, "train": 6.5}


def test_rows_of_the_suite_come_from_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: dict[str, object] = {"before": "abc1234", "before_s": 1200.0}
    times |= {"repro_s": 600.0, "repro_busy_s": 1000.0, "no_op_s": [2.0, 3.0, 9.0], "flow_s": 420, "flow_busy_s": 800}
    stages = {"train": 300.0, "evaluate": 150.0, "figures": 50.0}
    monkeypatch.setattr(pipeline, "SUITE", tmp_path / "suite.json")
    pipeline.SUITE.write_text(json.dumps({**times, "stages_s": stages}))
    monkeypatch.setattr(pipeline, "cores", lambda: 2)
    ways = (pipeline.suite_time, pipeline.suite_against_before, pipeline.suite_overhead, pipeline.suite_no_op)
    values = [way(setting(tmp_path)).value for way in (*ways, pipeline.suite_by_flow)]
    assert values == pytest.approx([10, 50, 25, 3, 70])
    detail = pipeline.suite_by_flow(setting(tmp_path)).detail
    assert detail["with_no_core_ever_idle_%"] == pytest.approx(100 * 400 / 600)


def test_a_stub_graph_has_two_stages_a_run(tmp_path: Path) -> None:
    folder = scaling.stub_graph(tmp_path / "graph", 2)
    scaling.dvc(folder, "repro", "--quiet")
    assert sorted(path.name for path in folder.glob("out/*/*")) == ["run000", "run000", "run001", "run001"]
    assert (folder / "out/evaluate/run001").read_text() == "1\n"
    assert (folder / "report").read_text().split() == ["run000", "run001"]


def test_each_stage_starts(tmp_path: Path) -> None:
    value, detail = pipeline.start_of_a_stage(setting(tmp_path))
    assert 0 < value < 60 and list(detail["by_stage_s"]) == ["code"]


def test_a_copy_of_the_repository_has_what_git_would_have(tmp_path: Path) -> None:
    folder = pipeline.copy_repository(tmp_path / "copy")
    assert (folder / "dvc.yaml").exists() and (folder / "paper/dvc.yaml").exists() and (folder / ".git").is_dir()
    assert not (folder / "out").exists() and not (folder / "dvc.lock").exists()


def test_the_repository_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git = ["git", "-C", str(origin), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    for text in ("old", "new"):
        (origin / "file").write_text(text)
        (origin / "dvc.lock").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", text], check=True)
    monkeypatch.setattr(pipeline, "ROOT", origin)
    folder = pipeline.clone_repository(tmp_path / "before", "HEAD~1")
    assert (folder / "file").read_text() == "old" and not (folder / "dvc.lock").exists()
    with pytest.raises(UserError, match=r"--against HEAD~2: .*HEAD~2"):
        pipeline.clone_repository(tmp_path / "never", "HEAD~2")
