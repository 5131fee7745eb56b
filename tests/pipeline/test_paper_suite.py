"""The paper suite on replicas of the papers' four datasets, of the teachers, the published features and VGGSounder,
with the real DVC. test_paper_more.py has its further datasets.

One web server has what the official sites have: real names, layouts, archives and lists, with little made videos.
The tests of this file go on from each other's state, in the order in which they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import average_precision_score, roc_auc_score

from avdistill.data.datasets import ucf51
from avdistill.data.sources import archives, vggsounder
from tests.helpers.packed import write_rar
from tests.helpers.serving import Server, serve
from tests.pipeline.conftest import Checkout, index_of, paper_checkout
from tests.pipeline.sites import CCL, CHIRPING, CNN14, LABELLED, MARCHING, ODD, Sites, shrink

pytestmark = pytest.mark.e2e

# Of both papers, on every dataset, with features that are computed, published, of noisy sound and of pictures.
JOBS = ("uni_modal", "mnf_csc", "noise_0db", "activitynet-kd", "tagging-kd", "chen-ccl", "large-crd")
JOBS += ("large-uni_modal", "large-mnf_csc")
RUNS = {"mnf_csc": ("mnf_csc",), "chen-ccl": ("chen-ccl-A", "chen-ccl-no_jsd-A")}


def replica_params(raw: dict[str, Any], url: str, checksums: dict[str, str]) -> None:
    """The real params with mirrors on loopback, fewer jobs and little to do."""
    raw["jobs"]["chen-ccl"]["I"] = "none"
    shrink(raw, url, checksums, JOBS, RUNS)
    for name, place in {"ucf51": "ucf101", "kinetics_sounds": "kinetics/400"}.items():
        raw["datasets"][name]["origin"]["mirror"] = f"{url}/{place}"
    for name in ("activitynet", "vggsound"):
        raw["datasets"][name]["origin"] |= {"video_url": f"{url}/watch/{{id}}.mp4", "pause": 0}
    raw["features"]["ucf51_published"]["source"] = f"{url}{CCL}"
    raw["recipes"]["xia_kinetics"] |= {"frames": 64, "stride": 64}
    raw["report"]["cost"] = ["mnf_csc"]
    raw["report"]["figures"] = {"attention": {"run": "mnf_csc", "clips": 2}, "heard": "ucf51_audio"}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    return Sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def web(sites: Sites) -> Iterator[Server]:
    with serve(sites.folder) as server:
        yield server


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory, root: Path, sites: Sites, web: Server) -> Checkout:
    made = paper_checkout(
        tmp_path_factory.mktemp("checkout"), root, lambda raw: replica_params(raw, web.url, sites.checksums)
    )
    # The checksum of the one official wheel is in the code; this copy of the code has the replica's.
    code = made.folder / "avdistill/data/sources/vggsounder.py"
    code.write_text(code.read_text().replace(vggsounder.SHA256, sites.checksums["vggsounder"]))
    return made


def ran(output: str) -> set[str]:
    """Stages that DVC ran, except the one that it always runs."""
    return set(re.findall(r"Running stage 'paper/dvc\.yaml:([^']+)'", output)) - {"code"}


def test_a_checkpoint_with_a_wrong_checksum_is_refused(paper: Checkout, web: Server) -> None:
    path = web.folder / CNN14.lstrip("/")
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    output = paper.dvc("repro", "paper/dvc.yaml:teachers@cnn14", check=False)
    path.write_bytes(right)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in output
    assert re.fullmatch(
        rf"error: {re.escape(web.url + CNN14)}: expected md5 \w+, found \w+; the downloaded file was deleted", errors[0]
    )
    assert not (paper.folder / "out/paper/teachers/cnn14").exists()
    assert not list((paper.folder / "out").rglob("*.pth*"))


def test_from_download_to_report(paper: Checkout, web: Server) -> None:
    archive = f"/ucf101/{ucf51.ARCHIVE}"
    half = (web.folder / archive.lstrip("/")).stat().st_size // 2
    web.limits[archive] = iter([half])
    paper.repro("paper/dvc.yaml")
    asked = [wanted for path, wanted in web.requests if path == archive]
    assert asked == [None, f"bytes={half}-"], "the download did not go on where the connection had ended"
    assert web.count(f"/vggsound/{vggsounder.WHEEL}") == 1
    assert not list((paper.folder / "out/paper/.partial").glob("*"))


@pytest.mark.parametrize("dataset", ODD)
def test_every_clip_is_accounted_for(paper: Checkout, sites: Sites, dataset: str) -> None:
    index, odd = index_of(paper, dataset), ODD[dataset]
    assert set(index.index) == sites.clips[dataset]
    for name, (status, audio, reason) in odd.items():
        assert index.loc[name, ["status", "audio"]].tolist() == [status, audio], name
        assert index.loc[name, "reason"].startswith(reason), (name, index.loc[name, "reason"])
    usual = index.drop(list(odd))
    assert set(usual["status"]) == {"ok"} and set(usual["audio"]) == {"yes"} and set(usual["reason"]) == {""}
    assert set(index["split"]) == {"train", "val", "test"}
    assert index.groupby("group")["split"].nunique().max() == 1


def test_the_report_has_the_tables(paper: Checkout, web: Server) -> None:
    out = paper.folder / "out/paper"
    raw = yaml.safe_load((paper.folder / "paper/params.yaml").read_text())
    assert set(raw["report"]["tables"]) == {"xia_1", "xia_3", "chen_3"}
    page = (out / "report/index.html").read_text()
    for name, table in raw["report"]["tables"].items():
        assert table["title"] in page
        ours = pd.read_csv(out / f"report/tables/{name}.csv")
        assert set(table["rows"].values()) <= set(ours["run"])
    for name, job in raw["jobs"].items():
        metrics = pd.read_csv(out / f"evaluate/{name}/metrics.csv")
        assert set(metrics["run"]) == set(job["runs"])
        assert metrics[metrics["metric"] == "accuracy"]["value"].between(0, 1).all()
    counts = pd.read_csv(out / "report/tables/dataset-vggsound.csv").set_index("split")
    assert counts.loc["all", ["clips", "unavailable"]].tolist() == [23, 2]


def clip_array(path: Path, name: str) -> pd.DataFrame:
    """An array that a stage wrote, of the clips with VGGSounder's labels: one row a clip."""
    with np.load(path) as arrays:
        return pd.DataFrame(arrays[name], index=arrays["ids"]).loc[list(LABELLED)].astype(float)


def truth_of(*modalities: str) -> np.ndarray:
    """Which of the two classes are labels of a clip with one of the modalities: one row a clip."""
    classes = (CHIRPING, MARCHING)
    return np.array([[clip.labels.get(name) in modalities for name in classes] for clip in LABELLED.values()])


def hit(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether the class with the largest score of each clip is true."""
    return truth[range(len(truth)), scores.argmax(1)]


def expect(paper: Checkout, expected: dict[tuple[str, str, str], tuple[float, int]]) -> None:
    """Compare the report's table with values and counts of clips, by run, measure and label set or truth."""
    table = pd.read_csv(paper.folder / "out/paper/report/tables/vggsounder.csv").set_index(["run", "measure", "on"])
    found = table.loc[list(expected), ["value", "clips"]]
    np.testing.assert_allclose(found, list(expected.values()), atol=1e-6, err_msg=str(found))


def test_recognition_is_measured_on_vggsounders_labels(paper: Checkout) -> None:
    """What the labels in sites.py make of the probabilities that stage evaluate wrote."""
    out = paper.folder / "out/paper"
    base = "large-uni_modal"
    runs = (base, "large-crd", "large-mnf_csc")
    made = {run: clip_array(out / f"evaluate/{run}/{run}/seed-0.npz", "probabilities").to_numpy() for run in runs}
    made["head"] = clip_array(out / "teacher_head/vggsound_audio/logits.npz", "logits").to_numpy()

    expected = {}
    # By hand: how often VGGSound's own label is right, the clips, their labels.
    own = {"visible": (5, 7, 8), "audible": (5, 6, 7), "both": (3, 4, 4)}
    for (on, (right, clips, labels)), kinds in zip(own.items(), (("V", "AV"), ("A", "AV"), ("AV",)), strict=True):
        truth, kept = truth_of(*kinds), truth_of(*kinds).any(1)
        for run in runs:
            expected[run, "AP", on] = average_precision_score(truth[kept], made[run][kept]), clips
        for run, hits in {"VGGSound's label": right, **{run: hit(made[run], truth).sum() for run in runs}}.items():
            expected[run, "hit@1", on] = hits / clips, clips
            expected[run, "F1@1", on] = 2 * hits / (clips + labels), clips
    correct = {name: hit(scores, truth_of("A", "V", "AV")) for name, scores in made.items()}
    heard = [name != "nosound-vid_000001" for name in LABELLED]
    for run in runs[1:]:
        expected[run, "kappa_V", "any"] = (correct[base] & ~correct[run]).mean(), 8
        expected[run, "repairs", "any"] = (correct[run] & ~correct[base]).mean(), 8
        expected[run, "kappa_A", "any"] = (correct["head"] & ~correct[run])[heard].mean(), 7
    expect(paper, expected)
    shown = (out / "report/tables/vggsounder.md").read_text()
    assert "| VGGSound's label | 71.4 | 83.3 | 75.0 | 66.7 | 76.9 | 75.0 |" in shown


def test_clip_scores_are_compared_with_whether_the_sound_belongs(paper: Checkout) -> None:
    """What the truths in sites.py make of the scores, features and loudness that other stages wrote."""
    out, run = paper.folder / "out/paper", "large-mnf_csc"
    heard = [name for name in LABELLED if name != "nosound-vid_000001"]
    scores = pd.read_csv(out / f"evaluate/{run}/scores.csv").set_index("id").loc[heard, ["tau", "mask"]]
    student = clip_array(out / f"evaluate/{run}/{run}/seed-0.npz", "features")
    teacher = clip_array(out / "teacher_features/vggsound_audio/features.npz", "features")
    lengths = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
    scores["cosine"] = (student * teacher).sum(axis=1) / lengths
    scores["loudness"] = pd.read_csv(out / "figures/loudness_vggsound.csv").set_index("id")["loudness"]
    assert scores.nunique().min() > 4, "clips whose scores are equal tell nothing"

    clips = pd.DataFrame(LABELLED.values(), index=LABELLED).loc[heard]
    truths = {"own": clips["own"], "clean": clips["clean"], "music": ~clips["music"]}
    truths |= {f"{name}_speechless": clips[name][~clips["speech"]] for name in ("own", "clean")}
    counts = {"own": 6, "clean": 6, "music": 7, "own_speechless": 4, "clean_speechless": 4}
    expected = {}
    for on, truth in truths.items():
        known = truth.dropna().astype(bool)
        for name, values in scores.items():
            expected[run, f"auroc/{name}", on] = roc_auc_score(known, values[known.index]), counts[on]
    expect(paper, expected)
    page = (out / "report/index.html").read_text()
    assert "VGGSounder 1.0" in page and "Does the sound belong?" in page
    shown = (out / "report/tables/vggsounder-sound.md").read_text().replace("**", "")
    for name, symbol in {"tau": "τ", "mask": "mask", "cosine": "cos(s, t)"}.items():
        area = expected[run, f"auroc/{name}", "own"][0]
        assert f"| large-mnf\\_csc | {symbol} | {area:.2f}" in shown


def test_the_teachers_are_those_of_the_sites(paper: Checkout, web: Server, sites: Sites) -> None:
    out = paper.folder / "out/paper"
    described = json.loads((out / "teachers/cnn14/teacher.json").read_text())
    assert described["source"] == web.url + CNN14 and described["classes"][0] == "Speech"
    assert json.loads((out / "teachers/resnet50/teacher.json").read_text())["checksum"] == sites.checksums["resnet50"]
    # The clip that is silent here has no published vector.
    with np.load(out / "teacher_features/ucf51_published/features.npz") as features:
        assert features["mask"].sum() == len(sites.clips["ucf51"]) - len(ODD["ucf51"])
    with np.load(out / "teacher_features/vggsound_audio/features.npz") as features:
        silent = set(features["ids"][~features["mask"]])
    assert silent == set(ODD["vggsound"])


def test_a_second_repro_runs_nothing(paper: Checkout, web: Server) -> None:
    before, asked = (paper.folder / "paper/dvc.lock").read_text(), len(web.requests)
    assert not ran(paper.dvc("repro", "paper/dvc.yaml"))
    assert (paper.folder / "paper/dvc.lock").read_text() == before
    assert len(web.requests) == asked


def test_a_folder_that_the_user_has_is_used_in_place(paper: Checkout, web: Server, tmp_path: Path) -> None:
    before, asked = index_of(paper, "ucf51"), len(web.requests)
    for archive in (ucf51.ARCHIVE, ucf51.LISTS):
        archives.unpack(web.folder / "ucf101" / archive, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    own = {"videos": str(tmp_path), "source": str(tmp_path)}
    origin = {"kind": "ucf51", "split": 1, **own}
    paper.change("datasets", "ucf51", "origin", value=origin, file="paper/params.yaml")
    output = paper.make("check-videos", "SUITE=paper")
    assert ran(output) == {"check", "download@ucf51", "split@ucf51"}
    assert index_of(paper, "ucf51").equals(before)
    assert not list((paper.folder / "out/paper/download/ucf51").rglob("*.avi")), "the videos were copied"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    assert len(web.requests) == asked
    assert "ucf51: 28 clips: 26 ok, 1 excluded, 1 corrupt" in output
    assert "kinetics_sounds: 22 clips: 1 corrupt, 20 ok, 1 unavailable" in output


def test_an_archive_that_writes_elsewhere_is_refused(paper: Checkout, web: Server) -> None:
    write_rar(web.folder / f"evil/{ucf51.ARCHIVE}", {"../../../../../v_Archery_g01_c01.avi": b"evil"})
    origin = {"kind": "ucf51", "source": "avdistill/data/datasets/unwatched", "mirror": f"{web.url}/evil"}
    paper.change("datasets", "ucf51", "origin", value=origin, file="paper/params.yaml")
    done = paper.run("python", "-m", "stages", "download", "paper/params.yaml", "ucf51", check=False)
    assert done.returncode == 1 and "refused, the path leads out of the folder" in done.stdout.splitlines()[-1]
    assert not list(paper.folder.rglob("v_Archery_g01_c01.avi"))
