"""Ablations: what points change, how they run apart from the workspace, and what becomes of their numbers."""

from __future__ import annotations

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline.errors import UserError
from avdistill.reporting import ablation_page
from avdistill.reporting.ablation_page import Ablation
from flows import devices, points
from flows.dvc import Dvc, StoppedError
from flows.grid import axes
from tests.flows import project

ROOT = Path(__file__).resolve().parents[2]
T_975 = {1: 12.706204736432095, 2: 4.302652729911275}  # Student's t, by degrees of freedom


@pytest.fixture(scope="module")
def params() -> Params:
    return load(ROOT / "params.yaml")


Grid = dict[str, Any]


def made(params: Params, runs: list[str], grid: Grid, seeds: list[int] | None = None) -> list[points.Point]:
    return points.points("x", params, runs, axes(grid), seeds)


def found(params: Params, runs: list[str], grid: Grid, seeds: list[int] | None = None) -> Params:
    """The params of the first point."""
    return points.validated(made(params, runs, grid, seeds)[0].params)


JOB = ("jobs", "ablation-mnf_csc")
OPTIONS = (*JOB, "runs", "ablation-mnf_csc", "options")


@pytest.mark.parametrize(
    ("run", "grid", "path", "expected"),
    [
        ("mnf_csc", {"jobs.mnf_csc.runs.mnf_csc.options.delta": [0.3]}, (*OPTIONS, "delta"), 0.3),
        ("mnf_csc", {"jobs.*.options.delta": [0.3]}, (*OPTIONS, "delta"), 0.3),
        ("mnf_csc", {"losses": {"triplet": {"jobs.*.contrast": False}}}, (*OPTIONS, "contrast"), False),
        ("mnf_csc", {"jobs.mnf_csc.A": ["avsynth_audio_0db"]}, (*JOB, "A"), "avsynth_audio_0db"),
        ("uni_modal", {"recipes.*.train_groups": [3]}, ("recipes", "small", "train_groups"), 3),
        ("uni_modal", {"recipes.small.lr": [1e-5]}, ("recipes", "small", "lr"), 1e-5),
        (
            "uni_modal",
            {"datasets.avsynth.origin.relevant": [0.25]},
            ("datasets", "avsynth", "origin", "relevant"),
            0.25,
        ),
        ("noise_0db-mnf", {"noise_mixes.avsynth_0db.snr_db": [-5]}, ("noise_mixes", "avsynth_0db", "snr_db"), -5),
    ],
)
def test_what_a_point_changes(params: Params, run: str, grid: Grid, path: tuple[str, ...], expected: Any) -> None:
    value: Any = found(params, [run], grid, [3, 4]).model_dump(mode="json")
    job = value["jobs"][points.job_of(run)]
    assert job["seeds"] == [3, 4]
    assert list(job["runs"]) == [points.job_of(run)]
    for part in path:
        value = value[part]
    assert value == expected


def test_a_point_of_a_shuffled_run_is_shuffled(params: Params) -> None:
    for run, expected in (("mnf_csc", None), ("mnf_csc-uninformed", "within_class")):
        job = found(params, [run], {"jobs.*.options.delta": [0.1]}).jobs[f"ablation-{run}"]
        assert job.runs[f"ablation-{run}"].shuffled == expected
        assert job.seeds == params.jobs["mnf_csc"].seeds


def test_a_star_sets_the_option_of_every_run_that_has_it(params: Params) -> None:
    runs = ["uni_modal", "kd", "mnf_csc"]
    jobs = found(params, runs, {"jobs.*.options.weight": [7.0]}).jobs
    options = {run: jobs[f"ablation-{run}"].runs[f"ablation-{run}"].options for run in runs}
    assert options == {"uni_modal": {}, "kd": {"weight": 7.0}, "mnf_csc": {"weight": 7.0}}
    assert jobs["ccl"] == params.jobs["ccl"]


def test_settings_that_the_report_names_can_vary() -> None:
    suite = load(ROOT / "findings/params.yaml")
    assert suite.report.figures.noise  # which names the ratios of the suite's own mixes
    point = found(suite, ["noise_0db-mnf"], {"noise_mixes.avsynth_0db.snr_db": [20]})
    assert point.noise_mixes["avsynth_0db"].snr_db == 20
    assert point.report.model_fields_set == {"baseline"}
    # The student from which another one learns is trained with the setting, too.
    smooth = found(suite, ["kd_noise-self"], {"jobs.uni_modal.runs.uni_modal.options.label_smoothing": [0.1]})
    assert smooth.jobs["uni_modal"].runs["uni_modal"].options == {"label_smoothing": 0.1}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "grid: nothing varies; expected keys"),
        ({"recipes.small.lr": 0.1}, r"grid: recipes.small.lr: expected \[value, …\] or .* found 0.1"),
        ({"losses": {"both": 1}}, r"grid: losses: expected .* found \{'both': 1\}"),
        ({"run": {"a": {"recipes.small.lr": 1}}}, "grid: run: expected a name that is not a column"),
        ({"recipes.small.lrr": [1]}, "grid: recipes.small.lrr: expected a key .* did you mean 'lr'"),
        ({"recipe.small.lr": [1]}, "did you mean 'recipes'"),
        ({"recipes.small": [1]}, "grid: recipes.small: expected a key of params with a value; valid: batch, "),
        ({"recipes.small.lr.low": [1]}, "grid: recipes.small.lr.low: expected a key of params"),
        ({"jobs.kd.runs.kd.options.margin": [1]}, "grid: jobs.kd.runs.kd.options.margin: .* valid: .*temperature"),
        ({"jobs.*.options.temprature": [1]}, "grid: .*: expected a key that the runs use; did you mean '.*ture'"),
        ({"recipes.small.lr": [-1]}, r"grid: lr -1: recipes.small.lr: .* greater than 0 \(found -1\)"),
        ({"recipes.small.schedule": ["cosin"]}, "grid: schedule cosin: .* did you mean 'cosine'"),
        ({"jobs.kd.A": ["avsynth_audo"]}, "grid: A avsynth_audo: jobs.kd.A: .* did you mean 'avsynth_audio'"),
        ({"jobs.*.options.temperature": [1, 0]}, "grid: temperature 0: .* above 0"),
        ({"noise_mixes.avsynth_0db.snr_db": [0]}, "grid: noise_mixes.avsynth_0db.snr_db: has no effect on the runs kd"),
        ({"jobs.mnf_csc.A": ["avsynth_audio_0db"]}, "has no effect on the runs kd; did you mean 'jobs.kd.A'"),
        ({"suite.out": ["x"]}, "grid: suite.out: has no effect on the runs kd; valid: datasets.avsynth, "),
        ({"jobs.*.weight": [1], "jobs.kd.runs.kd.options.weight": [1]}, "sets jobs.kd.runs.kd.options.weight a second"),
    ],
)
def test_a_wrong_grid_is_refused(params: Params, grid: Grid, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(params, ["kd"], grid)


def test_unknown_runs_are_refused(params: Params) -> None:
    with pytest.raises(UserError, match="did you mean 'mnf_csc'"):
        made(params, ["mnfcsc"], {"jobs.*.options.delta": [0.1]})


def test_a_key_may_have_an_effect_at_some_points_only(params: Params) -> None:
    sound = {"clean": {"jobs.kd.A": "avsynth_audio"}, "mixed": {"jobs.kd.A": "avsynth_audio_0db"}}
    assert len(made(params, ["kd"], {"sound": sound, "noise_mixes.avsynth_0db.snr_db": [0, 10]})) == 4


def test_labels_are_the_last_parts_of_keys_and_values_as_they_are_written() -> None:
    grid = {"recipes.a.lr": [1], "recipes.b.lr": [1, 1], "x.seconds": [None, True], "losses": {"none": {"k": 1}}}
    found = {label: list(axis.values) for label, axis in axes(grid).items()}
    assert found == {"a.lr": [1], "b.lr": [1], "x.seconds": ["null", "true"], "losses": ["none"]}
    assert axes({"a.scale": [[0.5, 1]]})["scale"].values == {"[0.5, 1]": {"a.scale": [0.5, 1]}}


def test_names_follow_settings_and_what_they_apply_to(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "workspace_digest", lambda: "a")

    def names(seeds: list[int]) -> list[str]:
        grid = {"jobs.*.delta": [0.1, 0.2], "recipes.small.scale": [[0.5, 1]]}
        return [point.name for point in made(params, ["mnf_csc"], grid, seeds)]

    first = names([0])
    assert [name.rpartition("-")[0] for name in first] == ["x-delta-0.1-scale-_0.5_1_", "x-delta-0.2-scale-_0.5_1_"]
    assert names([0]) == first
    assert not set(names([1])) & set(first)
    monkeypatch.setattr(points, "workspace_digest", lambda: "b")
    assert not set(names([0])) & set(first)
    (point,) = made(load(ROOT / "paper/params.yaml"), ["mnf_csc"], {"jobs.*.delta": [0.1]}, [0])
    assert point.targets == ["paper/dvc.yaml:evaluate@ablation-mnf_csc"]


def test_measurements_are_read_with_the_settings_of_their_points(tmp_path: Path) -> None:
    from flows.ablations import _measured

    (tmp_path / "points").mkdir()
    (tmp_path / "points/p.csv").write_text("run,seed,metric,value,point,seconds\nNA,0,accuracy,0.5,p,\n")
    table = _measured(tmp_path, [points.Point("p", {"small.lr": "null"}, {}, []), points.Point("q", {}, {}, [])])
    assert table.loc[0, ["run", "small.lr"]].to_list() == ["NA", "null"] and np.isnan(table.loc[0, "seconds"])


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = project.make(tmp_path / "repo")
    for name, value in project.environment(made).items():
        monkeypatch.setenv(name, value)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@localhost")
    (made / "paper/dvc.yaml").unlink()  # DVC does not follow links in commits
    subprocess.run(["git", "add", "--all"], cwd=made, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "start"], cwd=made, check=True)
    monkeypatch.chdir(made)
    return made


def test_a_point_leaves_the_workspace_alone(repo: Path) -> None:
    """With real DVC: the point has the uncommitted change, the workspace keeps it and nothing else."""
    (repo / "mood/kd").write_text("better")
    (repo / "mood/mnf_csc").write_text("ill")
    suite = load("params.yaml")
    content = yaml.safe_load((repo / "params.yaml").read_text())
    content["recipes"]["small"]["epochs"] = 7
    wanted = points.Point("p1", {}, content, ["train@kd"])
    with Dvc() as dvc:
        with points.checkout(suite, dvc) as there:
            folder = there.root
            points.run_point(there, "dvc.yaml", wanted, print, {})
            assert (folder / "out/small/train/kd").read_text() == "train@kd better"
            dvc.fetch_experiments(folder.as_uri(), ["p1"], data=False)
        assert not folder.exists()
        assert dvc.experiments() == {"p1"}
        assert dvc.read(Path("out/small/train/kd"), "p1") == "train@kd better"
        assert yaml.safe_load(dvc.read(Path("params.yaml"), "p1"))["recipes"]["small"]["epochs"] == 7
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert status.split() == ["M", "mood/kd", "M", "mood/mnf_csc"]
    assert not (repo / "out").exists()


def test_the_users_own_data_is_linked(repo: Path, params: Params) -> None:
    (repo / "own").mkdir()
    (repo / "own/videos").mkdir()
    (repo / ".gitignore").write_text("/out/\n/own/videos\n")
    origin = {"kind": "folder", "source": "own/videos"}
    dataset = params.datasets["avsynth"].model_dump() | {"origin": origin}
    suite = Params.model_validate(params.model_dump(exclude_unset=True) | {"datasets": {"avsynth": dataset}})
    with Dvc() as dvc, points.checkout(suite, dvc) as there:
        assert (there.root / "own/videos").resolve() == (repo / "own/videos").resolve()


def test_whoever_is_stopped_waits_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.gpus("cpu") == []
    with devices.held([], lambda: True):
        pass  # a CPU needs no limit, and no server
    asked: list[Any] = []

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def upsert_global_concurrency_limit_by_name(self, name: str, limit: int) -> None:
            asked.append((name, limit))

    def taken(names: list[str], **_: Any) -> Any:
        asked.append(names)
        raise TimeoutError

    monkeypatch.setattr(devices, "get_client", lambda sync_client: Client())
    monkeypatch.setattr(devices, "concurrency", taken)
    with pytest.raises(StoppedError), devices.held(["GPU-b", "GPU-a"], lambda: len(asked) > 3):
        pytest.fail("the GPUs are taken")
    assert asked == [("gpu-a", 1), ("gpu-b", 1), ["gpu-a", "gpu-b"], ["gpu-a", "gpu-b"]]


def measured(grid: dict[str, list[Any]], accuracy: dict[tuple[Any, ...], dict[str, list[float]]]) -> pd.DataFrame:
    """Rows as points write them, from accuracies by seed, by settings and run."""
    return pd.DataFrame(
        [
            {"point": "-".join(map(str, place)), "seconds": 10.0, "run": run, "seed": seed, "metric": "accuracy"}
            | {"value": value}
            | dict(zip(grid, place, strict=True))
            for place, runs in accuracy.items()
            for run, values in runs.items()
            for seed, value in enumerate(values)
        ]
    )


def test_numbers_of_an_ablation(tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"delta": [0.1, 0.5]}
    base, low, high = [0.50, 0.52, 0.48], [0.51, 0.51, 0.50], [0.60, 0.63, 0.58]
    rows = measured(grid, {(0.1,): {"base": base, "ours": low}, (0.5,): {"base": base, "ours": high}})
    asked = Ablation("delta", ("base", "ours"), "base", "accuracy", grid, {"delta": "δ"})
    table = ablation_page.write(asked, rows, tmp_path)
    ours = table[table["run"] == "ours"].set_index("delta")
    for delta, values in ((0.1, low), (0.5, high)):
        gains = 100 * (np.array(values) - np.array(base))
        half = T_975[2] * gains.std(ddof=1) / np.sqrt(3)
        expected = [100 * np.mean(values), gains.mean(), gains.mean() - half, gains.mean() + half]
        found = ours.loc[delta, ["accuracy", "gain", "gain_low", "gain_high"]].astype(float)
        np.testing.assert_allclose(found, expected, rtol=1e-9)  # SciPy's quantile has ten digits
    assert ours.loc[0.5, "p"] < 0.05 < ours.loc[0.1, "p"]
    assert ablation_page.best(asked, table)["delta"] == 0.5
    page = (tmp_path / "index.html").read_text()
    assert "ours at delta 0.5" in page and "data:image/png;base64," in page
    assert "http" not in page  # nothing from elsewhere
    written = pd.read_csv(tmp_path / "results.csv")
    np.testing.assert_array_equal(written["accuracy"], table["accuracy"])


def test_seeds_of_an_ablation_that_share_teachers_count_as_one() -> None:
    grid: dict[str, list[Any]] = {"delta": [0.1]}
    rows = measured(grid, {(0.1,): {"base": [0.5, 0.4, 0.6, 0.5], "ours": [0.7, 0.5, 0.8, 0.5]}})
    asked = Ablation("delta", ("base", "ours"), "base", "accuracy", grid, {}, draws=2)
    ours = ablation_page.summarise(asked, rows).set_index("run").loc["ours"]
    assert ours[["accuracy", "gain"]].tolist() == pytest.approx([62.5, 12.5])
    assert ours["accuracy_seeds"] == ours["gain_seeds"] == 2
    assert ours["gain_high"] - ours["gain"] == pytest.approx(T_975[1] * np.std([20, 5], ddof=1) / np.sqrt(2), rel=1e-4)


def test_a_map_of_two_things(tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"relevant": [0.0, 1.0], "train_groups": [2, 5, 10]}
    accuracy = {(r, n): {"base": [0.4, 0.5], "ours": [0.4 + r * n / 100, 0.51]} for r in (0.0, 1.0) for n in (2, 5)}
    asked = Ablation("map", ("base", "ours"), "base", "accuracy", grid, {})
    table = ablation_page.summarise(asked, measured(grid, accuracy))
    figure = ablation_page.draw(asked, table)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array()[:2], [[0.5, 1.5], [0.5, 3.0]])  # rows: groups; columns: relevant
    assert np.isnan(np.asarray(image.get_array().filled(np.nan))[2]).all()  # points that are not there


def test_words_are_an_axis_and_one_seed_has_no_interval(tmp_path: Path) -> None:
    grid: dict[str, list[Any]] = {"losses": ["both", "none"]}
    asked = Ablation("losses", ("ours",), None, "accuracy", grid, {})
    table = ablation_page.write(
        asked, measured(grid, {("both",): {"ours": [0.5]}, ("none",): {"ours": [0.4]}}), tmp_path
    )
    assert table["accuracy_low"].isna().all()
    assert ablation_page.best(asked, table)["losses"] == "both"
    assert "50.0 †" in (tmp_path / "index.html").read_text()


def test_deployments_name_what_is_there() -> None:
    from flows.ablations import ablate, ablations, point
    from flows.machines import stage
    from flows.paper import reproduce

    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    there = {"flows/ablations.py:ablate": ablate, "flows/paper.py:reproduce": reproduce}
    for entry in described["deployments"]:
        there[entry["entrypoint"]].validate_parameters(entry["parameters"])
        assert all(schedule["active"] is False for schedule in entry["schedules"])
        if "ablations" in entry["entrypoint"]:
            assert entry["parameters"]["name"] == entry["name"]
            given = entry["parameters"]
            assert given["labels"].keys() == given["grid"].keys()
            made(load(ROOT / "params.yaml"), [*given["runs"], given["baseline"]], given["grid"])
    assert len(ablations()) >= 5
    far = yaml.safe_load((ROOT / "deploy/prefect.yaml").read_text())
    there = {"flows/ablations.py:point": point, "flows/machines.py:stage": stage}
    for entry in far["deployments"]:
        assert entry["tags"] == [there[entry["entrypoint"]].name]
        assert entry["work_pool"] == {"name": entry["name"]}
    assert len(far["deployments"]) == 2 * len(there)


def test_a_point_has_all_cores_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.logging import disable_run_logger

    from flows import ablations

    seen = dict[str, str]()
    nothing = SimpleNamespace(fetch_run_cache=lambda: None, push_experiment=lambda *_: None, stopping=False)
    monkeypatch.setattr(ablations, "Dvc", lambda: nullcontext(nothing))
    monkeypatch.setattr(ablations, "run_point", lambda *given, **_: seen.update(given[4]))
    monkeypatch.setattr(ablations, "cores", lambda: 48)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"device": "cpu"}
    with disable_run_logger():
        assert ablations.point.fn("x", "dvc.yaml", raw, ["evaluate@kd"]).is_completed()
    assert seen["AV_CORES"] == "48"


def test_form_explains_itself() -> None:
    from prefect.exceptions import ParameterTypeError
    from prefect.utilities.callables import parameter_schema
    from pydantic import ValidationError

    from flows.ablations import ablate

    schema = parameter_schema(ablate)
    assert all(entry["description"] for entry in schema.properties.values())
    assert schema.required == ["name", "runs", "grid"]
    for wrong in ({"grid": [1]}, {"seeds": []}, {"workers": 0}, {"labels": ["x"]}):
        with pytest.raises((ParameterTypeError, ValidationError)):
            ablate.validate_parameters({"name": "x", "runs": ["kd"], "grid": {}, **wrong})


@pytest.mark.parametrize(
    ("pairs", "grid", "seeds"),
    [
        ([], [0.03, 0.07, 0.2, 0.5], None),
        (["recipes.small.lr=[0.003,0.01]", "seeds=[0,1]"], [0.03, 0.07, 0.2, 0.5], [0, 1]),
        (["jobs.*.options.delta=[0.1]"], [0.1], None),
    ],
)
def test_the_command_line_changes_parameters_and_values_of_the_grid(
    monkeypatch: pytest.MonkeyPatch, pairs: list[str], grid: list[float], seeds: list[int] | None
) -> None:
    from flows import ablations

    asked: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["ablations", "delta", *pairs])
    monkeypatch.setattr(ablations.command, "run", lambda _, **given: asked.update(given) or SimpleNamespace(message=""))
    ablations._main()
    assert asked["grid"]["jobs.*.options.delta"] == grid
    assert asked["grid"].get("recipes.small.lr") == ([0.003, 0.01] if seeds else None)
    assert asked.get("seeds") == seeds and asked["runs"] == ["mnf_csc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dleta"], "there is no ablation 'dleta'; did you mean 'delta'"),
        (["delta", "worker=4"], "worker=4: expected KEY=VALUE; did you mean 'workers'"),
        (["gradients", "loses=[1]"], "loses=.*did you mean 'losses'"),
        (["delta", "recipes.small.lr"], "recipes.small.lr: expected KEY=VALUE"),
    ],
)
def test_the_command_line_refuses_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    from flows.ablations import _main

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["ablations", *arguments])
    with pytest.raises(SystemExit, match=message):
        _main()


def test_files_for_clusters_are_whole() -> None:
    template = json.loads((ROOT / "deploy/kubernetes/pool.json").read_text())
    text = json.dumps(template["job_configuration"])
    known = template["variables"]["properties"]
    used = {part.partition(" }}")[0] for part in text.split("{{ ")[1:]}
    assert used == known.keys()
    assert all(variable["description"] for variable in known.values())
    for script in ("worker.sh", "servers.sh", "slurm.sbatch"):
        assert subprocess.run(["sh", "-n", ROOT / "deploy" / script]).returncode == 0
