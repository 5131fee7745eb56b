"""The graph tells the truth: what a stage depends on is what it can import."""

from __future__ import annotations

import modulefinder
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from avdistill.config.items import ITEMS
from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.pipeline import code
from avdistill.pipeline.stage import STAGES
from models.distillers import methods
from tests.helpers.whole import whole_suite

# A stage with an item of the suite.
EXAMPLES = {
    "split": "avsynth",
    "frames": "avsynth",
    "spectrogram": "avsynth",
    "mix_noise": "avsynth_0db",
    "teachers": "audio",
    "teacher_features": "avsynth_audio",
    "teacher_head": "avsynth_audio",
    "train": "mnf_csc",
    "evaluate": "mnf_csc",
    "export": "avsynth",
}


@pytest.fixture(scope="module")
def params(root: Path) -> Params:
    return Params.model_validate(whole_suite(root))


@pytest.fixture
def copy(tmp_path: Path, root: Path) -> Path:
    """The project's code, to be edited."""
    for package in code.OURS:
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1) if old else text + new)
    code.read.cache_clear()


def changed(folder: Path, params: Params, stage: str, before: dict[str, Any]) -> bool:
    return code.describe(stage, EXAMPLES.get(stage), params, folder) != before


def test_every_stage_of_the_graph_depends_on_its_code(root: Path) -> None:
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert set(stages) == set(STAGES) == {file.stem for file in (root / "stages").glob("[a-z]*.py")}
    for name, stage in stages.items():
        if name == "code":
            assert stage["always_changed"], "nothing else tells when a package was upgraded"
            continue
        item = {"": "", "exports": "/${item}"}.get(ITEMS[name], "/${key}")
        entry = stage.get("do", stage)
        assert f"${{suite.out}}/code/{name}{item}.json" in entry["deps"], name
        assert stage.get("foreach", "") == (f"${{{ITEMS[name]}}}" if ITEMS[name] else "")


@pytest.mark.parametrize("stage", [stage for stage in ITEMS if stage != "download"])
def test_no_module_that_a_stage_can_import_is_missing(stage: str, params: Params, root: Path) -> None:
    """Python's own modulefinder, which reads bytecode instead of syntax trees, finds no module that we do not."""
    entries = code.entry_points(stage, EXAMPLES.get(stage), params)
    finder = modulefinder.ModuleFinder(path=[str(root)])
    for entry in entries:
        finder.import_hook(entry, None, ["*"])
    theirs = {
        name for name, module in finder.modules.items() if name.partition(".")[0] in code.OURS and module.__file__
    }
    ours = set(code.describe(stage, EXAMPLES.get(stage), params)["modules"])
    followed = {name for name in theirs - ours if not any(f"{name}.".startswith(f"{inert}.") for inert in code.INERT)}
    # modulefinder also follows what inert modules import, and imports that only type checkers read.
    reached = set().union(*(code.read(name).imports for name in ours)) & followed
    assert not reached
    only_by_inert = {name for name in followed if not any(name in finder_imports(finder, other) for other in ours)}
    assert followed == only_by_inert


def finder_imports(finder: modulefinder.ModuleFinder, name: str) -> set[str]:
    """Modules of ours that a module imports at run time, by its bytecode."""
    file = finder.modules[name].__file__
    assert file is not None
    program = compile(Path(file).read_text(), file, "exec")
    found: set[str] = set()
    waiting = [program]
    while waiting:
        current = waiting.pop()
        waiting += [constant for constant in current.co_consts if hasattr(constant, "co_code")]
        for what, args in finder.scan_opcodes(current):
            if what == "absolute_import":
                names, module = args
                found |= {module, *(f"{module}.{each}" for each in names or ())}
    return found - type_checking(Path(file))


def type_checking(file: Path) -> set[str]:
    """What a module imports for type checkers alone."""
    text = file.read_text()
    block = text.partition("if TYPE_CHECKING:\n")[2]
    lines = []
    for line in block.splitlines():
        if line and not line.startswith(" "):
            break
        lines.append(line.split())
    return {word for words in lines if words[:1] == ["from"] for word in (words[1], f"{words[1]}.{words[-1]}")}


def test_inert_modules_exist() -> None:
    assert all(code.module_file(name) for name in code.INERT)


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        # Found by trying: each of these had left a stage with results of the code before.
        ("avdistill/training/inference.py", "student.eval()", "student.train()", ("train", "evaluate", "export")),
        ("avdistill/data/loader.py", "side = min(", "side = max(", ("teacher_features", "train", "evaluate", "export")),
        ("models/distillers/mnf_csc.py", "", "X = 1\n", ("train", "evaluate")),
        (
            "avdistill/data/media/frames.py",
            "TICK = 1e-6",
            "TICK = 1e-5",
            ("split", "frames", "spectrogram", "mix_noise"),
        ),
        ("avdistill/reporting/results.py", "CONFIDENCE = 0.95", "CONFIDENCE = 0.9", ("report", "figures")),
        ("avdistill/reporting/templates/report.html.jinja", "<", "< ", ("report",)),
        ("models/teachers/audioset_classes.txt", "Speech", "Talk", ("teachers",)),
    ],
)
def test_a_change_of_code_reaches_the_stages_that_use_it(
    copy: Path, params: Params, file: str, old: str, new: str, stages: tuple[str, ...]
) -> None:
    code.read.cache_clear()
    before = {stage: code.describe(stage, EXAMPLES.get(stage), params, copy) for stage in stages}
    others = {"teacher_head"} - set(stages)
    unmoved = {stage: code.describe(stage, EXAMPLES.get(stage), params, copy) for stage in others}
    edit(copy, file, old, new)
    assert all(changed(copy, params, stage, before[stage]) for stage in stages)
    assert not any(changed(copy, params, stage, unmoved[stage]) for stage in others)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("avdistill/data/sources/http.py", "import ", "# a comment\nimport "),
        ("avdistill/data/sources/http.py", "", "X = 1\n"),
        ("avdistill/data/datasets/vggsound.py", "", "X = 1\n"),
        ("avdistill/reporting/page.py", '"""', '"""Another docstring. '),
        ("avdistill/training/inference.py", '"""', '"""Another docstring. '),
        ("avdistill/tracking/mirror.py", "", "X = 1\n"),
    ],
)
def test_what_cannot_change_results_reruns_nothing(copy: Path, params: Params, file: str, old: str, new: str) -> None:
    code.read.cache_clear()
    stages = [stage for stage in ITEMS if stage not in ("check", "download")]
    before = {stage: code.describe(stage, EXAMPLES.get(stage), params, copy) for stage in stages}
    edit(copy, file, old, new)
    assert [stage for stage in stages if changed(copy, params, stage, before[stage])] == []


def test_a_method_concerns_its_own_cells_only(copy: Path, params: Params) -> None:
    code.read.cache_clear()
    before = {name: code.describe("train", name, params, copy) for name in params.jobs}
    edit(copy, "models/distillers/kd.py", "", "X = 1\n")
    moved = {name for name in params.jobs if code.describe("train", name, params, copy) != before[name]}
    assert moved == {name for name, job in params.jobs.items() if job.method == "kd"} != set()


def test_every_method_is_followed(params: Params) -> None:
    for name, job in params.jobs.items():
        assert f"models.distillers.{job.method}" in code.describe("train", name, params)["modules"]
    assert {job.method for job in params.jobs.values()} == set(methods())


def test_a_download_depends_on_no_code_but_what_makes_it_here(root: Path, params: Params) -> None:
    paper = load(root / "paper/params.yaml")
    for name in paper.datasets:
        assert code.describe("download", name, paper) == {"modules": {}, "files": {}, "packages": {}}
    assert "avdistill.data.synthesis.sounds" in code.describe("download", "avsynth", params)["modules"]


def test_an_edit_of_the_video_reader_trains_no_teacher(params: Params) -> None:
    for stage, item in (("teachers", "audio"), ("teachers", "motion"), ("teacher_features", "avsynth_audio")):
        assert not any(
            name.startswith("avdistill.data.media") for name in code.describe(stage, item, params)["modules"]
        )


@pytest.mark.parametrize(
    ("package", "stages"),
    [
        ("torch", {"teachers", "teacher_features", "teacher_head", "train", "evaluate", "export", "cost"}),
        ("av", {"split", "frames", "spectrogram", "mix_noise"}),
        ("decord", {"split", "frames", "spectrogram", "mix_noise"}),
        ("scikit-learn", {"evaluate"}),
        ("scipy", {"report", "figures"}),
    ],
)
def test_versions_of_packages_count(
    params: Params, monkeypatch: pytest.MonkeyPatch, package: str, stages: set[str]
) -> None:
    before = {stage: code.describe(stage, EXAMPLES.get(stage), params) for stage in stages}
    monkeypatch.setattr(code, "installed", lambda name: "0.0" if name == package else code_installed(name))
    for stage in stages:
        after = code.describe(stage, EXAMPLES.get(stage), params)
        assert after["packages"][package] == "0.0" != before[stage]["packages"][package]
        assert after["modules"] == before[stage]["modules"]


code_installed = code.installed
