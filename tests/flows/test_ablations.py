"""Ablations: what points change, how they run apart from the workspace, and what becomes of their numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
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
from flows.dvc import Dvc, StoppedError, hydra
from tests.flows import project

ROOT = Path(__file__).resolve().parents[2]
T_975 = {1: 12.706204736432095, 2: 4.302652729911275}  # Student's t, by degrees of freedom


@pytest.fixture(scope="module")
def params() -> Params:
    return load(ROOT / "params.yaml")


def applied(params: Params, changed: dict[str, Any], tmp_path: Path) -> Params:
    """The suite with the changes of a point, as `stages.check` would read it."""
    raw = params.model_dump(mode="json", exclude_unset=True)
    for key, value in changed.items():
        *path, last = key.split(".")
        entry = raw
        for part in path:
            entry = entry.setdefault(part, {})
        entry[last] = value
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(raw))
    return load(file)


JOB = ("jobs", "ablation-mnf_csc")
OPTIONS = (*JOB, "runs", "ablation-mnf_csc", "options")


@pytest.mark.parametrize(
    ("run", "settings", "key", "value"),
    [
        ("mnf_csc", {"delta": 0.3}, (*OPTIONS, "delta"), 0.3),
        ("mnf_csc", {"losses": "triplet"}, (*OPTIONS, "contrast"), False),
        ("mnf_csc", {"teacher": "avsynth_audio_0db"}, (*JOB, "A"), "avsynth_audio_0db"),
        ("uni_modal", {"train_groups": 3}, ("recipes", "small", "train_groups"), 3),
        ("uni_modal", {"relevant": 0.25}, ("datasets", "avsynth", "origin", "relevant"), 0.25),
        ("uni_modal", {"informed": 0.5}, ("datasets", "avsynth", "origin", "informed"), 0.5),
        ("noise_0db-mnf", {"snr_db": -5.0}, ("noise_mixes", "ablation-avsynth_0db", "snr_db"), -5.0),
    ],
)
def test_what_a_point_changes(
    params: Params, tmp_path: Path, run: str, settings: dict[str, Any], key: tuple[str, ...], value: Any
) -> None:
    changed = points.changes(params, [run], settings, [3, 4])
    found: Any = applied(params, changed, tmp_path).model_dump(mode="json")
    job = found["jobs"][points.job_of(run)]
    assert job["seeds"] == [3, 4]
    assert list(job["runs"]) == [points.job_of(run)]
    for part in key:
        found = found[part]
    assert found == value


def test_a_point_of_a_shuffled_run_is_shuffled(params: Params, tmp_path: Path) -> None:
    job = params.jobs["mnf_csc"]
    run = job.runs["mnf_csc"].model_copy(update={"shuffled": "other_class"})
    other = params.model_copy(
        update={"jobs": params.jobs | {"mnf_csc": job.model_copy(update={"runs": job.runs | {"mnf_csc": run}})}}
    )
    for suite, expected in ((params, None), (other, "other_class")):
        changed = points.changes(suite, ["mnf_csc"], {"delta": 0.1}, None)
        ablated = applied(params, changed, tmp_path).jobs["ablation-mnf_csc"]
        assert ablated.runs["ablation-mnf_csc"].shuffled == expected


def test_noise_goes_to_a_mix_beside_the_suites_own(params: Params, tmp_path: Path) -> None:
    changed = points.changes(params, ["noise_0db-mnf", "uni_modal"], {"snr_db": 20.0}, None)
    found = applied(params, changed, tmp_path)
    assert found.noise_mixes["avsynth_0db"].snr_db == 0
    features = found.features[found.jobs["ablation-noise_0db-mnf"].A]
    assert found.noise_mixes[features.input.removeprefix("mix_noise/")].snr_db == 20
    assert found.jobs["ablation-uni_modal"].A == "none"


def test_settings_that_change_nothing_are_refused(params: Params) -> None:
    with pytest.raises(UserError, match=r"^delta: has no effect on the runs uni_modal"):
        points.changes(params, ["uni_modal"], {"delta": 0.1}, None)
    with pytest.raises(UserError, match="snr_db"):
        points.changes(params, ["mnf_csc"], {"snr_db": 0.0}, None)
    with pytest.raises(UserError, match="did you mean 'mnf_csc'"):
        points.points("x", params, ["mnfcsc"], {"delta": [0.1]}, None)


def test_names_follow_settings_and_what_they_apply_to(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(points, "workspace_digest", lambda: "a")

    def names(seeds: list[int]) -> list[str]:
        grid = {"delta": [0.1, 0.2], "margin": [0.0]}
        return [point.name for point in points.points("d", params, ["mnf_csc"], grid, seeds)]

    first = names([0])
    assert [name.rpartition("-")[0] for name in first] == ["d-delta-0.1-margin-0.0", "d-delta-0.2-margin-0.0"]
    assert names([0]) == first
    assert not set(names([1])) & set(first)
    monkeypatch.setattr(points, "workspace_digest", lambda: "b")
    assert not set(names([0])) & set(first)
    (point, _) = points.points("d", load(ROOT / "paper/params.yaml"), ["mnf_csc"], {"delta": [0.1, 0.2]}, [0])
    assert point.targets == ["paper/dvc.yaml:evaluate@ablation-mnf_csc"]
    assert all(key.startswith("paper/params.yaml:") for key in point.changes)


def test_values_in_the_grammar_of_hydra(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides  # what DVC itself reads them with

    value = {"a": [1, 2.5, -0.001], "b": {}, "c": None, "d": True, "e": "it's, {x}: \\ 'y'", "f-g": {"h": "none"}}
    (tmp_path / "p.yaml").write_text("kept: 1\n")
    apply_overrides(tmp_path / "p.yaml", [f"++new.key={hydra(value)}"])
    assert yaml.safe_load((tmp_path / "p.yaml").read_text()) == {"kept": 1, "new": {"key": value}}


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
    wanted = points.Point("p1", {}, {"params.yaml:recipes.small.epochs": 7}, ["train@kd"])
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
    from flows.paper import reproduce

    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    there = {"flows/ablations.py:ablate": ablate, "flows/paper.py:reproduce": reproduce}
    for entry in described["deployments"]:
        there[entry["entrypoint"]].validate_parameters(entry["parameters"])
        assert all(schedule["active"] is False for schedule in entry["schedules"])
        if "ablations" in entry["entrypoint"]:
            assert entry["parameters"]["name"] == entry["name"]
            params = load(ROOT / "params.yaml")
            given = entry["parameters"]
            grid = {axis: values for axis, values in given.items() if axis in points.AXES}
            runs = [*given["runs"], given["baseline"]]
            for axis, values in grid.items():
                points.changes(params, runs, {axis: values[0]}, None)
    assert len(ablations()) >= 5
    far = yaml.safe_load((ROOT / "deploy/prefect.yaml").read_text())
    assert {entry["entrypoint"] for entry in far["deployments"]} == {"flows/ablations.py:point"}
    assert point.name == "point"


def test_form_explains_itself() -> None:
    from prefect.exceptions import ParameterTypeError
    from prefect.utilities.callables import parameter_schema
    from pydantic import ValidationError

    from flows.ablations import ablate

    schema = parameter_schema(ablate)
    assert all(entry["description"] for entry in schema.properties.values())
    assert schema.required == ["name", "runs"]
    assert set(points.AXES) <= schema.properties.keys()
    for wrong in ({"snr_db": ["loud"]}, {"relevant": [1.5]}, {"workers": 0}, {"losses": ["all"]}):
        with pytest.raises((ParameterTypeError, ValidationError)):
            ablate.validate_parameters({"name": "x", "runs": ["kd"], **wrong})


def test_files_for_clusters_are_whole() -> None:
    template = json.loads((ROOT / "deploy/kubernetes/pool.json").read_text())
    text = json.dumps(template["job_configuration"])
    known = template["variables"]["properties"]
    used = {part.partition(" }}")[0] for part in text.split("{{ ")[1:]}
    assert used == known.keys()
    assert all(variable["description"] for variable in known.values())
    for script in ("worker.sh", "servers.sh", "slurm.sbatch"):
        assert subprocess.run(["sh", "-n", ROOT / "deploy" / script]).returncode == 0
