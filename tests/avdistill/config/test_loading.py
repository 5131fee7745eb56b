from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdistill.config.loading import load
from avdistill.config.schema import Job
from avdistill.pipeline.errors import UserError, nearest
from tests.helpers.whole import whole_suite


@pytest.fixture(scope="module")
def embedded(root: Path) -> dict[str, Any]:
    return whole_suite(root)


@pytest.mark.parametrize("suite", ["params.yaml", "findings/params.yaml", "own/params.yaml", "paper/params.yaml"])
def test_the_suites_of_the_repository_are_valid_and_name_their_own_file(root: Path, suite: str) -> None:
    params = load(root / suite)
    assert params.suite.file == suite
    assert params.runs()


def test_the_params_of_a_document_are_valid(root: Path) -> None:
    for name in ("params", "wrong_labels"):
        assert load(root / f"docs/three_classes/{name}.yaml").suite.file == "own/params.yaml"


def test_outputs_lie_under_stage_and_item(root: Path) -> None:
    params = load(root / "params.yaml")
    assert params.path("train", "kd") == Path("out/avsynth/train/kd")
    assert params.path("report") == Path("out/avsynth/report")


def set_(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


ORIGIN = ("datasets", "avsynth", "origin")
SETTING = {"title": "t", "baseline": "uni_modal", "runs": {"KD": "kd"}, "A": "avsynth_audio"}
MISTAKES = {
    "unknown section": (set_("recipe", value={}), ["recipe", "did you mean 'recipes'?"]),
    "unknown key of a recipe": (set_("recipes", "small", "epoch", value=3), ["recipes.small.epoch", "'epochs'"]),
    "unknown key of an origin": (set_(*ORIGIN, "sead", value=3), ["datasets.avsynth.origin.sead", "'seed'"]),
    "unknown kind of dataset": (set_(*ORIGIN, "kind", value="folderr"), ["datasets.avsynth.origin", "'folder'"]),
    "needed key misspelt": (
        set_("jobs", "kd", value={"metod": "kd", "dataset": "avsynth", "input": "x", "recipe": "small"}),
        ["jobs.kd.metod: unknown key", "did you mean 'method'?"],
    ),
    "no kind of dataset": (drop(*ORIGIN, "kind"), ["datasets.avsynth.origin.kind: missing", "valid: ", "folder"]),
    "unknown student": (
        set_("recipes", "small", "student", value="r2plus1d_1"),
        ["recipes.small.student", "'r2plus1d_18'"],
    ),
    "type": (set_("recipes", "small", "epochs", value="many"), ["recipes.small.epochs", "integer", "'many'"]),
    "range": (set_("recipes", "small", "lr", value=-1), ["recipes.small.lr", "greater than 0", "-1"]),
    "not a number": (set_("recipes", "small", "lr", value=float("nan")), ["recipes.small.lr"]),
    "order": (set_("recipes", "small", "scale", value=[1.0, 0.5]), ["recipes.small", "low <= high"]),
    "missing key": (drop("jobs", "kd", "recipe"), ["jobs.kd.recipe", "missing"]),
    "missing section": (drop("jobs"), ["jobs", "missing"]),
    "dataset": (set_("jobs", "kd", "dataset", value="avsynt"), ["jobs.kd.dataset", "did you mean 'avsynth'?"]),
    "recipe": (set_("jobs", "kd", "recipe", value="smal"), ["jobs.kd.recipe", "did you mean 'small'?"]),
    "features": (set_("jobs", "kd", "A", value="avsynth_adio"), ["jobs.kd.A", "did you mean 'avsynth_audio'?"]),
    "input": (set_("jobs", "kd", "input", value="frame/avsynth"), ["jobs.kd.input", "'frames/avsynth'"]),
    "teacher": (
        set_("features", "avsynth_audio", "teacher", value="audi"),
        ["features.avsynth_audio.teacher", "'audio'"],
    ),
    "input of a teacher": (
        set_("features", "avsynth_audio", "input", value="frames/avsynth"),
        ["features.avsynth_audio.input", "audio input"],
    ),
    "teacher that the job has not": (
        set_("jobs", "uni_modal", "runs", "uni_modal", value={"teachers": "A"}),
        ["jobs.uni_modal.runs.uni_modal.teachers", "jobs.uni_modal.A"],
    ),
    "letters": (
        set_("jobs", "kd", "runs", "kd", value={"teachers": "B"}),
        ["jobs.kd.runs.kd.teachers", "valid: A, AI, I"],
    ),
    "truth without a column": (
        set_("teachers", "audio", value={"kind": "truth"}),
        ["teachers.audio: column: missing", "index.csv"],
    ),
    "truth with weights": (
        set_("teachers", "audio", value={"kind": "truth", "column": "relevant", "weights": "avsynth"}),
        ["teachers.audio: weights: a teacher of kind truth has a column and no other settings"],
    ),
    "column of a network": (
        set_("teachers", "audio", "column", value="relevant"),
        ["teachers.audio: column: only a teacher of kind truth"],
    ),
    "draws of a checkpoint": (
        set_("teachers", "audio", value={"kind": "cnn14", "weights": "panns:Cnn14_mAP=0.431", "draws": 2}),
        ["teachers.audio: draws: expected 1, because 'panns:Cnn14_mAP=0.431' is not trained here, found 2"],
    ),
    "draws of truth": (
        set_("teachers", "oracle", "draws", value=2),
        ["teachers.oracle: draws: a teacher of kind truth has a column and no other settings"],
    ),
    "other numbers of draws": (
        lambda raw: [raw["teachers"][name].update(draws=draws) for name, draws in (("audio", 7), ("motion", 3))],
        ["teachers.motion.draws: expected 1, or 7 as audio has, found 3"],
    ),
    "no draw": (set_("teachers", "audio", "draws", value=0), ["teachers.audio.draws", "greater than or equal to 1"]),
    "network without weights": (drop("teachers", "audio", "weights"), ["teachers.audio: weights: missing"]),
    "input of truth": (
        set_("teachers", "audio", value={"kind": "truth", "column": "relevant"}),
        ["features.avsynth_audio.input", "input for kind truth 'spectrogram/avsynth'", "split/avsynth"],
    ),
    "truth of another dataset": (
        set_(
            "teachers",
            value={"audio": {"kind": "truth", "column": "relevant"}, "image": {"kind": "truth", "column": "x"}},
        ),
        ["features.avsynth_audio.input", "split/avsynth"],
    ),
    "shuffled without a teacher": (
        set_("jobs", "uni_modal", "runs", "uni_modal", value={"shuffled": "other_class"}),
        ["jobs.uni_modal.runs.uni_modal: shuffled needs a teacher"],
    ),
    "run twice": (set_("jobs", "kd", "runs", value={"uni_modal": {"teachers": "A"}}), ["uni_modal", "too"]),
    "seed twice": (set_("jobs", "kd", "seeds", value=[0, 1, 0]), ["jobs.kd.seeds", "twice"]),
    "no seed": (set_("jobs", "kd", "seeds", value=[]), ["jobs.kd.seeds", "at least 1"]),
    "more repeats than seeds": (
        set_("jobs", "kd", "runs", "kd", "repeats", value=4),
        ["jobs.kd.runs.kd.repeats", "at most 3"],
    ),
    "no run": (set_("jobs", "kd", "runs", value={}), ["jobs.kd.runs", "at least 1"]),
    "run in the report": (
        set_("report", "baseline", value="unimodal"),
        ["report.baseline", "did you mean 'uni_modal'?"],
    ),
    "job of a study": (
        set_("studies", value={"x": {"title": "X", "jobs": ["kdd"]}}),
        ["studies.x.jobs", "did you mean 'kd'?"],
    ),
    "study without jobs": (set_("studies", value={"x": {"title": "X", "jobs": []}}), ["studies.x.jobs"]),
    "job in no study": (
        set_("studies", value={"x": {"title": "X", "jobs": ["kd"]}}),
        ["studies", "is in no study"],
    ),
    "proposed run": (set_("report", "proposed", value="mnf_cs"), ["report.proposed", "did you mean 'mnf_csc'?"]),
    "run whose cost is asked": (set_("report", "cost", value=["kdd"]), ["report.cost", "did you mean 'kd'?"]),
    "run of a setting": (
        set_("report", "settings", value={"main": SETTING | {"runs": {"KD": "kdd"}}}),
        ["report.settings.main.runs.KD", "did you mean 'kd'?"],
    ),
    "baseline of a setting": (
        set_("report", "settings", value={"main": SETTING | {"baseline": "unimodal"}}),
        ["report.settings.main.baseline", "did you mean 'uni_modal'?"],
    ),
    "teacher of a setting": (
        set_("report", "settings", value={"main": SETTING | {"A": "avsynth_audo"}}),
        ["report.settings.main.A", "features entry", "did you mean 'avsynth_audio'?"],
    ),
    "key of a setting": (
        set_("report", "settings", value={"main": SETTING | {"run": "kd"}}),
        ["report.settings.main.run: unknown key", "'runs'"],
    ),
    "setting without runs": (
        set_("report", "settings", value={"main": SETTING | {"runs": {}}}),
        ["report.settings.main.runs", "at least 1"],
    ),
    "name of a setting": (
        set_("report", "settings", value={"a/b": SETTING}),
        ["report: settings: 'a/b' is not a valid name"],
    ),
    "suite file that a shell would run": (
        set_("suite", "file", value="params.yaml; touch x"),
        ["suite.file", "should match pattern", "touch x"],
    ),
    "outputs outside": (set_("suite", "out", value="out/../../home"), ["suite.out", "should match pattern"]),
    "name of the suite": (set_("suite", "name", value="../x"), ["suite.name", "should match pattern"]),
    "name of a job that a shell would run": (
        set_(
            "jobs",
            "$(touch x)",
            value={
                "method": "kd",
                "dataset": "avsynth",
                "input": "x",
                "recipe": "small",
                "seeds": [0],
                "runs": {"r": {}},
            },
        ),
        ["jobs: '$(touch x)' is not a valid name"],
    ),
    "name of a dataset that leads out": (
        lambda raw: raw["datasets"].update({"../x": raw["datasets"]["avsynth"]}),
        ["datasets: '../x' is not a valid name"],
    ),
    "key of the figures": (
        set_("report", "figures", "training_curve", value={}),
        ["report.figures.training_curve", "'training_curves'"],
    ),
    "key of a figure": (
        set_("report", "figures", "attention", value={"run": "mnf_csc", "clip": 4}),
        ["report.figures.attention.clip", "'clips'"],
    ),
    "run in a figure": (
        set_("report", "figures", "embedding", value=["uni_modal", "mnf_cs"]),
        ["report.figures.embedding", "did you mean 'mnf_csc'?"],
    ),
    "features in a figure": (
        set_("report", "figures", "heard", value="avsynth_audo"),
        ["report.figures.heard", "'avsynth_audio'"],
    ),
    "mixed sound in a figure": (
        set_("report", "figures", "heard", value="avsynth_audio_0db"),
        ["report.figures.heard", "mix_noise/avsynth_0db", "spectrogram/"],
    ),
    "a number as a key": (
        set_("report", "figures", "noise", value={"MNF": {"clean": "mnf_csc", 10: "noise_10db-mnf"}}),
        ["report.figures.noise.MNF.10", "write '10' in quotes"],
    ),
    "ratio of a noise curve": (
        set_("report", "figures", "noise", value={"MNF": {"clean": "mnf_csc-no_contrast", "10": "noise_0db-mnf"}}),
        ["report.figures.noise.MNF.10", "noise_0db-mnf", "0.0"],
    ),
    "noise that is not clean": (
        set_("report", "figures", "noise", value={"MNF": {"clean": "noise_0db-mnf"}}),
        ["report.figures.noise.MNF.clean", "0.0"],
    ),
    "path in a name": (set_("teachers", "../x", value={"kind": "cnn14", "weights": "avsynth"}), ["teachers", "'../x'"]),
    "shell in a name": (set_("jobs", "x; true", value={}), ["jobs"]),
    "section of a wrong type": (set_("jobs", value=[1, 2]), ["jobs", "dictionary"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, embedded: dict[str, Any], name: str) -> None:
    change, expected = MISTAKES[name]
    raw = copy.deepcopy(embedded)
    change(raw)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        load(file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [1", "not valid YAML"), ("- 1", "expected a mapping"), ("", "expected a mapping"), ("a: 1\n\tb: 2", "YAML")],
)
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=expected):
        load(file)


def powers(begin: str, link: str) -> str:
    """Nine aliases of nine aliases of nine …, nine times: a few hundred bytes that stand for 9**9 values."""
    lines = [begin, *(link.format(n, ",".join([f"*a{n - 1}"] * 9)) for n in range(1, 10))]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (powers("a0: &a0 [x]", "a{0}: &a{0} [{1}]"), "line 6: more than 100000 values"),
        (powers("a0: &a0 {k: 1}", "a{0}: &a{0} {{<<: [{1}]}}"), "line 6: more than 100000 values"),
        ("a:\n  - &a {b: *a}\n", r"line 2: '\*a' contains itself"),
        ("a: " + "[" * 200_000, "line 1: more than 50 levels"),
        ("a: 1" + ":1" * 400_000, "line 1: a value of more than 10000 characters"),
        ("#" * 1_000_001, "1000001 characters; expected at most 1000000"),
    ],
    ids=["aliases", "merges", "loop", "depth", "number", "size"],
)
def test_a_file_that_is_made_to_harm(tmp_path: Path, text: str, expected: str) -> None:
    """Each of these took all memory or minutes, or crashed the process."""
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^{file}: {expected}"):
        load(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such params file"):
        load(tmp_path / "none.yaml")


def test_nearest_falls_back_to_all_choices() -> None:
    assert nearest("zzz", ["kd", "ccl"]) == "valid: ccl, kd"
    assert nearest("x", []) == "valid: none"


def test_runs_of_one_figure_are_trained_alike(tmp_path: Path, embedded: dict[str, Any]) -> None:
    raw = copy.deepcopy(embedded)
    raw.pop("studies", None)
    raw["recipes"]["ear"] = raw["recipes"]["small"] | {"student": "resnet10_audio"}
    raw["jobs"]["ear"] = raw["jobs"]["uni_modal"] | {
        "input": "spectrogram/avsynth", "recipe": "ear", "init": "none", "runs": {"ear": {}},
    }  # fmt: skip
    file = tmp_path / "params.yaml"
    for figure, value, expected in (
        ("large", ["uni_modal", "ear"], "expected the same input for all runs of a figure"),
        ("gain_per_class", ["ear"], "ear has input 'spectrogram/avsynth', uni_modal has 'frames/avsynth'"),
        ("attention", {"run": "ear"}, "expected a run with input frames/"),
    ):
        raw["report"]["figures"] = {figure: value}
        file.write_text(yaml.safe_dump(raw))
        with pytest.raises(UserError, match=expected) as caught:
            load(file)
        assert f"report.figures.{figure}" in str(caught.value)
    raw["report"]["figures"] = {
        "noise": {"MNF": {"clean": "mnf_csc-no_contrast", "0": "noise_0db-mnf"}},
        "heard": "avsynth_audio",
        "embedding": ["ear"],
    }
    file.write_text(yaml.safe_dump(raw))
    assert load(file).report.figures.noise == {"MNF": {"clean": "mnf_csc-no_contrast", 0.0: "noise_0db-mnf"}}


def test_runs_of_a_setting_differ_in_their_method_alone(tmp_path: Path, embedded: dict[str, Any]) -> None:
    raw = copy.deepcopy(embedded)
    raw.pop("studies", None)
    raw["recipes"]["slow"] = raw["recipes"]["small"]
    raw["datasets"]["other"] = raw["datasets"]["avsynth"]
    raw["features"]["other_audio"] = {"dataset": "other", "teacher": "audio", "input": "spectrogram/other"}
    raw["jobs"]["slow"] = raw["jobs"]["uni_modal"] | {"recipe": "slow", "runs": {"slow": {}}}
    file = tmp_path / "params.yaml"
    for setting, expected in (
        (SETTING | {"baseline": "slow"}, "kd has recipe 'small', slow has 'slow'; .* for all runs of a setting"),
        (SETTING | {"A": "other_audio"}, "other_audio is of dataset 'other', expected 'avsynth'"),
    ):
        raw["report"]["settings"] = {"main": setting}
        file.write_text(yaml.safe_dump(raw))
        with pytest.raises(UserError, match=expected) as caught:
            load(file)
        assert "report.settings.main" in str(caught.value)


@pytest.mark.parametrize("suite", ["findings", "own", "paper"])
def test_the_graph_of_every_suite_is_the_same(root: Path, suite: str) -> None:
    assert (root / suite / "dvc.yaml").read_text() == (root / "dvc.yaml").read_text(), "run `make graph`"
    assert not (root / suite / "dvc.yaml").is_symlink(), "DVC does not follow links in commits"


def test_a_password_in_an_address_is_refused_and_not_shown(root: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load((root / "paper/params.yaml").read_text())
    raw["datasets"]["ucf51"]["origin"]["mirror"] = "https://me:secret@mirror.example/files"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"datasets\.ucf51\.origin\.mirror: ") as refused:
        load(tmp_path / "params.yaml")
    assert "secret" not in str(refused.value)


def test_a_run_has_the_first_seeds_of_its_cell(embedded: dict[str, Any]) -> None:
    runs = {"crd-A": {"teachers": "A"}} | {
        f"crd-{teachers}": {"teachers": teachers, "repeats": 1} for teachers in ("I", "AI")
    }
    job = Job.model_validate(embedded["jobs"]["crd"] | {"runs": runs})
    assert job.seeds == job.seeds_of("crd-A") == (0, 1, 2)
    assert job.seeds_of("crd-I") == (0,)
    assert job.trainings() == [("crd-A", 0), ("crd-A", 1), ("crd-A", 2), ("crd-I", 0), ("crd-AI", 0)]
