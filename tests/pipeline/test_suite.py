"""The whole graph with the real DVC, from made videos to the report, on a suite of seconds.

The tests of this file go on from each other's state, in the order in which they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from avdistill.pipeline import warm
from tests.pipeline.conftest import Checkout

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Checkout:
    """A checkout with all suites, in which nothing has run."""
    return Checkout(tmp_path_factory.mktemp("suites"), root, ("findings", "own", "paper"))


def metrics(checkout: Checkout) -> dict[str, str]:
    """All metrics of all students, as the bytes that are on disk."""
    folder = checkout.folder / "out/avsynth/evaluate"
    return {path.parent.name: path.read_text() for path in sorted(folder.glob("*/metrics.csv"))}


def ran(output: str) -> set[str]:
    """Stages that DVC ran, but for the one that it always runs."""
    return set(re.findall(r"Running stage '([^']+)'", output)) - {"code"}


def test_make_repro_makes_the_report(checkout: Checkout) -> None:
    output = checkout.make("repro")
    out = checkout.folder / "out/avsynth"
    page = (out / "report/index.html").read_text()
    assert "MNF+CSC" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert output.rstrip().endswith(f"report: {out / 'report/index.html'}")
    params = yaml.safe_load((checkout.folder / "params.yaml").read_text())
    assert set(metrics(checkout)) == set(params["jobs"])
    for name, job in params["jobs"].items():
        table = pd.read_csv(out / "evaluate" / name / "metrics.csv")
        assert set(table["run"]) == set(job["runs"]) and set(table["seed"]) == set(job["seeds"])
        assert table[table["metric"] == "accuracy"]["value"].between(0, 1).all()
    assert not list((out / ".partial").glob("*"))


def test_each_seed_has_its_draw_of_the_audio_teacher(checkout: Checkout) -> None:
    out = checkout.folder / "out/avsynth"
    made = ("teachers/audio/{}weights.pt", "teacher_features/avsynth_audio/{}features.npz")
    for name in (*made, "teacher_head/avsynth_audio/{}logits.npz"):
        assert (out / name.format("")).read_bytes() != (out / name.format("draw-1/")).read_bytes(), name
    assert not list(out.glob("teach*/*image/draw-*"))
    assert "other seeds, test clips and trainings of audio" in (out / "report/index.html").read_text()


def test_make_power_has_a_row_per_claim(checkout: Checkout) -> None:
    claims = yaml.safe_load((checkout.folder / "params.yaml").read_text())["report"]["claims"]
    rows = [line.split() for line in checkout.make("power").splitlines()]
    assert {row[0] for row in rows if row} >= {"claim", *claims} and len(claims) > 10
    page = (checkout.folder / "out/avsynth/report/index.html").read_text()
    assert page.index(claims["X1"]["claim"]) < page.index("Table 1 of Xia")


def test_second_repro_changes_nothing(checkout: Checkout) -> None:
    before = (checkout.folder / "dvc.lock").read_text()
    output = checkout.dvc("repro")
    assert not ran(output)
    assert (checkout.folder / "dvc.lock").read_text() == before


def test_metrics_params_and_plots_show_in_dvc(checkout: Checkout) -> None:
    # Of suites that were never run DVC warns before it shows the others.
    shown = json.loads("{" + checkout.dvc("metrics", "show", "--json").partition("{")[2])[""]["data"]
    assert "out/metrics/avsynth.json" in shown and all(Path(name).parent == Path("out/metrics") for name in shown)
    assert 0 <= shown["out/metrics/avsynth.json"]["data"]["proposed"]["accuracy"] <= 100
    checkout.run("git", "add", ".")
    checkout.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "ran")
    checkout.change("recipes", "small", "lr", value=0.001)
    assert "recipes.small.lr" in checkout.dvc("params", "diff")
    checkout.run("git", "checkout", "-q", "params.yaml")
    checkout.dvc("metrics", "diff")
    assert "ERROR" not in checkout.dvc("plots", "show", "--out", "plots")
    page = (checkout.folder / "plots/index.html").read_text()
    for plot in ("claims", "confusion", "curves", "noise"):
        assert f"out/plots/{plot}/avsynth.csv" in page or f"out_plots_{plot}_avsynth_csv" in page, plot
    assert "uni_modal" in page
    assert "ERROR" not in checkout.dvc("plots", "diff", "--out", "plots")


def test_mlflow_has_a_run_for_every_stage(checkout: Checkout) -> None:
    checkout.make("sync")
    rows = json.loads(checkout.run("python", "-c", LIST_RUNS).stdout.splitlines()[-1])
    stages = set(checkout.dvc("stage", "list", "--name-only").split())
    assert {row["dvc.stage"] for row in rows} == {stage for stage in stages if "/" not in stage}
    seeds = [row for row in rows if row.get("run") == "mnf_csc" and row["stage"] == "train"]
    assert sorted((row["seed"], row["draw"]) for row in seeds) == [("0", "0"), ("1", "1")]
    assert all(row["status"] == "FINISHED" for row in rows)


LIST_RUNS = """
import json
from mlflow import MlflowClient
from avdistill.tracking.shared import tracking_uri
client = MlflowClient(tracking_uri())
runs = client.search_runs([client.get_experiment_by_name("avsynth").experiment_id], max_results=1000)
print(json.dumps([{**run.data.tags, "status": run.info.status, "draw": run.data.params.get("draw")} for run in runs]))
"""


def test_the_exported_model_is_followed_back_to_the_lock(checkout: Checkout, tmp_path: Path) -> None:
    """The folder, and its copy in MLflow's registry, where the test before this one has sent it."""
    folder = "out/avsynth/export/avsynth"
    for model in (folder, "models:/student-avsynth@best"):
        assert "export@avsynth of dvc.lock; " in checkout.make("verify", f"MODEL={model}")
    shutil.copytree(checkout.folder / folder, tmp_path / "model")
    (tmp_path / "model" / "student.pt2").write_bytes(b"another")
    done = checkout.run("make", "verify", f"MODEL={tmp_path / 'model'}", check=False)
    assert done.returncode and f"{tmp_path / 'model'}: changed since its export: student.pt2" in done.stdout


def test_make_flow_finds_everything_done(checkout: Checkout, tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": ""}
    output = checkout.run("make", "flow", **home).stdout
    assert "skipped" in output and not ran(output)
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        artifacts = dict(database.execute("select key, data from artifact").fetchall())
    assert set(artifacts) == {"stages-avsynth", "report-avsynth"}
    assert "MNF+CSC" in artifacts["report-avsynth"]


def test_mlflow_projects(checkout: Checkout) -> None:
    for arguments in (["-e", "repro"], ["-e", "evaluate", "-P", "job=kd"]):
        output = checkout.run("mlflow", "run", "mlflow_project", *arguments, "--env-manager", "local").stdout
        assert "didn't change" in output or "up to date" in output


def test_a_study_reruns_with_one_command(checkout: Checkout) -> None:
    checkout.change("jobs", "noise_0db", "seeds", value=[0])
    output = checkout.make("study", "STUDY=noise")
    assert ran(output) == {"check", "train@noise_0db", "evaluate@noise_0db", "cost", "figures", "report"}


def test_the_paper_suite_can_be_tried(suites: Checkout) -> None:
    """What `make paper-quick` asks of DVC exists. The suite itself runs in test_paper_suite.py."""
    asked = suites.make("--dry-run", "paper-quick")
    targets = re.findall(r"(paper/dvc\.yaml:\S+)", asked)
    assert targets and set(targets) <= set(suites.dvc("stage", "list", "paper/dvc.yaml", "--name-only").split())
    raw = yaml.safe_load((suites.folder / "paper/params.yaml").read_text())
    recipes = re.findall(r"paper/params\.yaml:recipes\.(\w+)\.epochs=\d", asked)
    assert recipes and set(recipes) <= set(raw["recipes"])


def test_make_findings_runs_that_suite(suites: Checkout) -> None:
    asked = suites.make("--dry-run", "findings")
    out = yaml.safe_load((suites.folder / "findings/params.yaml").read_text())["suite"]["out"]
    assert "repro findings/dvc.yaml" in asked and f"{out}/report/index.html" in asked


@contextmanager
def edited(checkout: Checkout, file: str, old: str, new: str) -> Iterator[None]:
    """A file of the checkout, changed for a while."""
    path = checkout.folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    yield
    path.write_text(text)


def test_changed_predictions_are_evaluated_again(checkout: Checkout) -> None:
    with edited(checkout, "avdistill/training/inference.py", "features / counts", "features / counts + 1"):
        assert "evaluate@kd: code avdistill/training/inference.py" in checkout.make("why", "STAGE=evaluate")
        # Trained again, since training selects by predictions, with the same weights; evaluated again all the same.
        assert {"train@kd", "evaluate@kd"} <= ran(checkout.repro("evaluate@kd"))
    checkout.repro()
    assert checkout.make("why").rstrip().endswith("all stages are up to date")


def test_words_alone_rerun_nothing(checkout: Checkout) -> None:
    with (
        edited(checkout, "avdistill/data/sources/http.py", "import ", "# brings files\nimport "),
        edited(checkout, "avdistill/data/datasets/avsynth.py", '"""', '"""Other words. '),
        edited(checkout, "avdistill/reporting/page.py", '"""', '"""Other words. '),
    ):
        assert ran(checkout.repro()) == set()


def test_another_version_of_a_package_is_a_reason(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "installed = metadata.version\n"
        "metadata.version = lambda name: '9.9' if name == 'scipy' else installed(name)\n"
    )
    own = {"PYTHONPATH": str(tmp_path), warm.VARIABLE: "off"}
    told = checkout.run("make", "why", **own).stdout.splitlines()
    assert [line for line in told if ": package " in line] and all("upstream" in l or "scipy: 1." in l for l in told)
    assert {line.partition(":")[0] for line in told} >= {"figures", "report"}
    assert not any(line.startswith(("train@", "evaluate@", "frames@")) for line in told)


def test_changed_params_are_told_with_both_values(checkout: Checkout) -> None:
    file = checkout.folder / "params.yaml"
    good = file.read_text()
    checkout.change("recipes", "tagging", "lr", value=0.0123)
    told = checkout.make("why", "STAGE=train@tagging-mnf_csc")
    file.write_text(good)
    assert re.search(r"train@tagging-mnf_csc: params recipes\.tagging\.lr: 0\.0\d+ -> 0\.0123", told), told


METHOD = '''"""Halved: the labels alone, at half their weight.

    L = CE(z^s, y) / 2
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models.distillers.base import Distiller, Sizes
from models.outputs import StudentOutput, TeacherBatch


class Halved(Distiller):
    """Half of the cross-entropy."""

    accepts = ("",)

    def __init__(self, sizes: Sizes, *, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = weight

    def terms(self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor) -> dict:
        return {"ce": self.weight * F.cross_entropy(student.logits, labels)}
'''


def test_a_changed_run_and_a_new_method_train_their_jobs_and_nothing_else(checkout: Checkout) -> None:
    """The method as CONTRIBUTING.md says: one file, one entry in params."""
    before = metrics(checkout)
    checkout.change("jobs", "kd", "runs", "kd", "options", value={"temperature": 2.0})
    (checkout.folder / "models/distillers/halved.py").write_text(METHOD)
    job = yaml.safe_load((checkout.folder / "params.yaml").read_text())["jobs"]["uni_modal"]
    checkout.change("jobs", "halved", value=job | {"method": "halved", "runs": {"halved": {"teachers": ""}}})
    studies = yaml.safe_load((checkout.folder / "params.yaml").read_text())["studies"]
    name = next(iter(studies))
    checkout.change("studies", name, "jobs", value=[*studies[name]["jobs"], "halved"])
    cells = {f"{stage}@{job}" for stage in ("train", "evaluate") for job in ("kd", "halved")}
    assert ran(checkout.repro()) == {"check", *cells, "export@avsynth", "cost", "figures", "report"}
    assert "halved" in (checkout.folder / "out/avsynth/report/index.html").read_text()
    after = metrics(checkout)
    assert {name for name in before if after[name] != before[name]} <= {"kd"}


def test_a_killed_training_goes_on_and_ends_at_the_same_bits(checkout: Checkout) -> None:
    """Killed with SIGKILL, twice; then run again; compared with a training that nobody disturbed."""
    checkout.change("jobs", "mnf_csc", "seeds", value=[7, 8])
    weights = checkout.folder / "out/avsynth/.partial/train-mnf_csc"
    finished = 0
    for more in (2, 2):
        process = subprocess.Popen(
            ["dvc", "repro", "train@mnf_csc"],
            cwd=checkout.folder,
            env=checkout.environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while len(list(weights.glob("*/seed-*.pt"))) < finished + more and time.monotonic() < deadline:
            assert process.poll() is None, "it was to be killed in the middle"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert len(list(weights.glob("*/seed-*.pt"))) >= finished + more, "finished runs are kept"
        finished += more
    kept = {path: path.stat().st_mtime_ns for path in weights.glob("*/seed-*.pt")}
    assert "train@mnf_csc" in ran(checkout.dvc("repro", "evaluate@mnf_csc"))
    assert not weights.exists()
    final = checkout.folder / "out/avsynth/train/mnf_csc"
    assert all((final / path.relative_to(weights)).stat().st_mtime_ns == time for path, time in kept.items())
    interrupted = metrics(checkout)
    stages = [f"{stage}@{job}" for job in ("mnf_csc", "uni_modal") for stage in ("train", "evaluate")]
    assert ran(checkout.repro("--force", "--single-item", *stages)) == set(stages)
    assert metrics(checkout) == interrupted


BAD = {
    "unknown method": (("jobs", "kd", "method"), "kdd", "did you mean 'kd'?"),
    "unknown option": (("jobs", "mnf_csc", "runs", "mnf_csc", "options"), {"margn": 0.2}, "margin"),
    "option of a wrong type": (("jobs", "mnf_csc", "runs", "mnf_csc", "options"), {"margin": "wide"}, "margin"),
    "missing teacher": (("teachers", "audio", "weights"), "nowhere.pth", "nowhere.pth"),
    "missing folder": (
        ("datasets", "avsynth", "origin"),
        {"kind": "folder", "source": "nowhere"},
        "nowhere",
    ),
}

BY_DVC = ("unknown method", "missing folder")  # whose graph DVC builds, and not


@pytest.mark.parametrize("name", BAD)
def test_wrong_params_end_at_once_with_one_line(checkout: Checkout, name: str) -> None:
    keys, value, expected = BAD[name]
    file = checkout.folder / "params.yaml"
    good = file.read_text()
    try:
        checkout.change(*keys, value=value)
        done = checkout.run("python", "-m", "stages", "check", "params.yaml", check=False)
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        assert done.returncode != 0
        assert len(lines) == 1 and expected in lines[0] and lines[0].startswith("error: params.yaml: "), done.stdout
        if name in BY_DVC:
            done = checkout.run("dvc", "repro", check=False)
            assert done.returncode != 0
            assert ran(done.stdout) <= {"check"}
    finally:
        file.write_text(good)


def test_folders_without_classes_or_with_one_class(checkout: Checkout) -> None:
    file = checkout.folder / "params.yaml"
    good = file.read_text()
    videos = checkout.folder / "videos"
    videos.mkdir()
    try:
        checkout.change("datasets", "avsynth", "origin", value={"kind": "folder", "source": "videos"})
        done = checkout.run("python", "-m", "stages", "check", "params.yaml", check=False)
        assert done.returncode == 1 and "class" in done.stdout and "videos" in done.stdout
        (videos / "only").mkdir()
        (videos / "only" / "a.mp4").write_bytes(b"")
        done = checkout.run("python", "-m", "stages", "check", "params.yaml", check=False)
        assert done.returncode == 1 and "only" in done.stdout
    finally:
        file.write_text(good)


@pytest.mark.parametrize("suite", ["findings/dvc.yaml", "paper/dvc.yaml", "own/dvc.yaml"])
def test_the_other_suites_load(suites: Checkout, suite: str) -> None:
    stages = suites.dvc("stage", "list", suite, "--name-only").split()
    assert f"{suite}:report" in stages and any("train@" in stage for stage in stages)
