from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays, write_arrays
from avdistill.data.index import read_index, write_index
from avdistill.data.packed import Store
from avdistill.data.sources import vggsounder as labels
from avdistill.pipeline.errors import UserError
from avdistill.reporting import vggsounder_tables
from avdistill.reporting.figures import NoDataError
from avdistill.reporting.figures.clips import loudness
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.vggsounder_tables import (
    LABEL,
    MORE_TRUTHS,
    SPEECH,
    TRUTHS,
    label_sets,
    relevance,
    vggsounder_table,
)
from models.label_sets import f1_at_1, mixed_classes
from stages import figures, report
from tests.helpers.synthetic import CLASSES, stage, suite_params, write_suite

UNLABELLED, SILENT = "bouncing/g4_c0", "circling/g4_c0"
MAN = "male speech, man speaking"
# Of a few clips: class, what is heard, what is seen, music, static image, voice-over; then own, clean, music,
# own_heard, shared, own_speechless, clean_speechless.
CLIPS = [
    ("a", "a|b", "a|b|c", "no", "yes", "no", 1, 1, 1, 1, 1, 1, 1),
    ("a", "a|b", "a", "no", "no", "no", 1, 0, 1, 1, 1, 1, 0),
    ("a", "a", "a", "yes", "no", "no", 1, 0, 0, 1, 1, 1, 0),
    ("a", "a", "b", "no", "no", "no", 0, 0, 1, 1, 0, 0, 0),
    ("b", "a", "a|b", "no", "no", "no", 0, 1, 1, 0, 1, 0, 1),
    ("b", "a", "a", "no", "no", "yes", None, 0, 1, None, 1, None, None),
    ("a", "", "a", "no", "no", "no", 0, None, 1, 0, 0, 0, None),
    ("a", "", "c", "yes", "no", "no", None, 0, 0, None, 0, None, 0),
    ("a", f"a|{MAN}", "a", "no", "no", "no", 1, 0, 1, 1, 1, None, None),
]


def rows_of(clips: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame([clip[:6] for clip in clips], columns=["class", *labels.COLUMNS])


def test_label_sets():
    sets = label_sets(rows_of(CLIPS), {"a": 0, "b": 2}, 3)
    assert sets["visible"].int().tolist()[:2] == [[1, 0, 1], [1, 0, 0]], "c is no class of the dataset"
    assert sets["audible"].int().tolist()[3:5] == [[1, 0, 0], [1, 0, 0]]
    assert sets["both"].int().tolist()[3:5] == [[0, 0, 0], [1, 0, 0]]
    assert sets["any"].any(1).tolist() == [True] * 7 + [False, True]


def test_relevance():
    found = relevance(rows_of(CLIPS))
    assert list(found) == [*TRUTHS, *MORE_TRUTHS]
    for place, name in enumerate(found, 6):
        expected = [np.nan if clip[place] is None else float(clip[place]) for clip in CLIPS]
        np.testing.assert_array_equal(found[name].numpy(), expected, name)


def test_the_real_labels_have_the_known_counts(shared_data: Path):
    wheel = shared_data / "annotations" / labels.WHEEL
    if not wheel.exists():
        pytest.skip(f"no {labels.WHEEL} at hand")
    names = pd.read_csv(shared_data / "annotations/vggsound_test.csv", header=None, names=["file", "class"])
    clips = pd.DataFrame({"id": names["file"].str.removesuffix(".mp4"), "class": names["class"], "split": "test"})
    clips = labels.add(clips, labels.read(wheel))
    clips = clips[clips["audible"] + clips["visible"] != ""]
    classes = {name: label for label, name in enumerate(sorted(set(names["class"])))}
    sets = label_sets(clips, classes, len(classes))
    counts = {name: (int(truth.any(1).sum()), int(truth.sum())) for name, truth in sets.items()}
    assert counts == {
        "visible": (12_405, 23_159),
        "audible": (14_957, 36_150),
        "both": (11_998, 21_914),
        "any": (15_069, 37_395),
    }
    alone = sets["visible"].sum(1)[sets["visible"].any(1)] == 1
    assert alone.double().mean().item() == pytest.approx(0.475, abs=5e-4), "clips with one label that is seen"
    modality = Counter(
        (own in heard.split("|")) + 2 * (own in seen.split("|"))
        for own, heard, seen in clips[["class", "audible", "visible"]].itertuples(index=False)
    )
    assert modality == {3: 8_481, 1: 3_035, 2: 389, 0: 3_164}, "VGGSound's own label: both, heard, seen, absent"
    heard_only = (sets["audible"] & ~sets["visible"]).sum(0)
    speech = [heard_only[classes[name]].item() for name in (MAN, "female speech, woman speaking")]
    assert speech == [2_409, 1_031]
    belongs = relevance(clips)
    truths = {name: (int((truth == 1).sum()), int((truth == 0).sum())) for name, truth in belongs.items()}
    assert set(classes) > SPEECH
    assert truths == {
        "own": (8_481, 3_424),
        "clean": (5_227, 9_747),
        "music": (12_014, 3_055),
        "own_heard": (11_516, 389),
        "shared": (11_998, 3_071),
        "own_speechless": (5_488, 2_324),
        "clean_speechless": (4_432, 5_006),
    }
    labels_of = torch.tensor(clips["class"].map(classes).to_numpy())
    for name, mixed in (("own", 213), ("music", 181)):
        known = ~belongs[name].isnan()
        assert len(mixed_classes(belongs[name][known] == 1, labels_of[known])) == mixed
    single = f1_at_1(torch.nn.functional.one_hot(labels_of, len(classes)).double(), sets["visible"])
    assert single == pytest.approx(0.499, abs=5e-4)
    assert pytest.approx(0.698, abs=5e-4) == 2 * 12_405 / (12_405 + 23_159), "any single label has at most"
    own = sets["visible"][range(len(clips)), clips["class"].map(classes).tolist()]
    assert own[sets["visible"].any(1)].double().mean().item() == pytest.approx(0.715, abs=5e-4)


def write_labels(params: Params) -> None:
    """Add labels and one group per clip to the index, and the arrays of the stages before the report."""
    rng = np.random.default_rng(5)
    path = params.index("made")
    index = read_index(path)
    labelled = (index["split"] == "test") & (index["id"] != UNLABELLED)
    for column in ("audible", "visible"):
        also = rng.choice([*CLASSES, "a class of others"], len(index))
        own = np.where(rng.random(len(index)) < 0.7, index["class"] + "|", "")
        index[column] = np.where(labelled, own + also.astype(object), "")
        index[column] = ["|".join(dict.fromkeys(text.split("|"))) for text in index[column]]
    for column in labels.FLAGS:
        index[column] = np.where(labelled, np.where(rng.random(len(index)) < 0.3, "yes", "no"), "")
    write_index(path, index.assign(group=index["id"]))
    ids, heard = index["id"].to_numpy("U")[::-1], (index["audio"] == "yes").to_numpy()[::-1]
    write_arrays(
        params.path("teacher_features", "made_A") / "features.npz",
        ids=ids,
        features=rng.random((len(ids), 4)).astype(np.float32),
        mask=heard & (ids != SILENT),
    )
    write_arrays(
        params.path("teacher_head", "made_A") / "logits.npz",
        ids=ids,
        logits=rng.normal(size=(len(ids), len(CLASSES))).astype(np.float32),
    )
    for path in sorted(params.path("evaluate").glob("*/*/seed-*.npz")):
        arrays = read_arrays(path)
        probabilities = rng.dirichlet(np.ones(len(CLASSES)), len(arrays["ids"])).astype(np.float32)
        features = rng.random((len(arrays["ids"]), 4)).astype(np.float32)
        write_arrays(path, **(arrays | {"probabilities": probabilities, "features": features}))


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    made = suite_params(tmp_path_factory.mktemp("suite"), figures={})
    write_suite(made)
    write_labels(made)
    # As on VGGSound, all runs can have an audio teacher, whether they use it or not.
    jobs = {name: job.model_copy(update={"A": "made_A"}) for name, job in made.jobs.items()}
    return made.model_copy(update={"jobs": jobs})


@pytest.fixture(scope="module")
def table(params: Params) -> pd.DataFrame:
    return vggsounder_table(EvaluatedSuite(params)).set_index(["run", "measure", "on"])


def outputs(params: Params, run: str, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """The labelled clips of a run, and their probabilities."""
    index = read_index(params.index("made")).set_index("id")
    arrays = read_arrays(params.evaluated(run) / f"seed-{seed}.npz")
    kept = arrays["ids"] != UNLABELLED
    return index.loc[arrays["ids"][kept]], arrays["probabilities"][kept]


def truth_of(rows: pd.DataFrame, *columns: str) -> np.ndarray:
    return np.array(
        [[any(name in row[c].split("|") for c in columns) for name in CLASSES] for _, row in rows.iterrows()]
    )


def test_recognition_by_hand(params: Params, table: pd.DataFrame):
    hit, single, precision, lost, repaired, unheard = [], [], [], [], [], []
    head = read_arrays(params.path("teacher_head", "made_A") / "logits.npz")
    for seed in range(5):
        rows, kd = outputs(params, "kd", seed)
        _, base = outputs(params, "uni_modal", seed)
        seen, either = truth_of(rows, "visible"), truth_of(rows, "visible", "audible")
        kept, every = seen.any(1), range(len(rows))
        hit.append(seen[every, kd.argmax(1)][kept].mean())
        single.append(f1_score(seen[kept], np.eye(6, dtype=bool)[kd.argmax(1)][kept], average="micro"))
        precision.append(np.mean([average_precision_score(seen[kept, k], kd[kept, k]) for k in range(6)]))
        ours, theirs = either[every, kd.argmax(1)], either[every, base.argmax(1)]
        lost.append((theirs & ~ours)[either.any(1)].mean())
        repaired.append((ours & ~theirs)[either.any(1)].mean())
        judged = pd.DataFrame(head["logits"], head["ids"]).loc[rows.index].to_numpy().argmax(1)
        known = either.any(1) & (rows.index != SILENT)
        unheard.append((either[every, judged] & ~ours)[known].mean())
    found = table.loc["kd"]
    expected = {("hit@1", "visible"): hit, ("F1@1", "visible"): single, ("AP", "visible"): precision}
    expected |= {("kappa_V", "any"): lost, ("repairs", "any"): repaired, ("kappa_A", "any"): unheard}
    for key, values in expected.items():
        assert found.loc[key, "value"] == pytest.approx(np.mean(values), abs=1e-9), key
        assert found.loc[key, "value_seeds"] == 5
    assert found.loc[("hit@1", "visible"), "clips"] == kept.sum() < len(rows)
    assert found.loc[("AP", "visible"), "classes"] == 6
    assert "kappa_V" not in table.loc["uni_modal"].index
    of_label, own = table.loc[LABEL], seen[every, rows["label"]][kept]
    assert of_label.loc[("hit@1", "visible"), "value"] == pytest.approx(own.mean())
    assert of_label.loc[("F1@1", "visible"), "value"] == pytest.approx(2 * own.sum() / (kept.sum() + seen.sum()))
    assert len(of_label) == 6 and (of_label["value_seeds"] == 0).all()
    clips = found.loc[("kappa_A", "any"), "clips"]
    assert clips == either.any(1).sum() - sum(rows.index == SILENT), "the teacher does not hear one"


def test_clip_scores_by_hand(params: Params, table: pd.DataFrame):
    scores = pd.read_csv(params.path("evaluate", "mnf_csc") / "scores.csv").query(
        "run == 'mnf_csc' and split == 'test'"
    )
    rows, _ = outputs(params, "mnf_csc", 0)
    music = (rows["background_music"] == "no").drop(SILENT)  # the teacher does not hear it
    areas = []
    for _, mine in scores.groupby("seed"):
        tau = mine.set_index("id")["tau"].reindex(music.index).dropna()
        areas.append(roc_auc_score(music[tau.index], tau))
    found = table.loc[("mnf_csc", "auroc/tau", "music")]
    assert found["value"] == pytest.approx(np.mean(areas), abs=1e-9)
    assert found["value_low"] < found["value"] < found["value_high"]
    assert found["clips"] == len(tau)
    gain, plain = table.loc[("mnf_csc", "gain/tau", "own")], table.loc[("mnf_csc", "auroc/cosine", "own")]
    assert gain["value"] == pytest.approx(table.loc[("mnf_csc", "auroc/tau", "own"), "value"] - plain["value"])
    assert gain["value_low"] < gain["value"] < gain["value_high"]


def test_intervals_are_over_source_videos_and_areas_within_classes(params: Params):
    """A resample has one of two videos twice or both; the classes are joined to two with enough clips of both kinds."""
    path = params.index("made")
    index = read_index(path)
    video = pd.Series(np.arange(len(index)) % 2, index=index["id"])
    joined = index.assign(group=[f"video {number}" for number in video], label=index["label"] // 3)
    write_index(path, joined)
    try:
        found = vggsounder_table(EvaluatedSuite(params)).set_index(["run", "measure", "on"])
    finally:
        write_index(path, index)
    rows, _ = outputs(params, "uni_modal", 0)
    rows = rows.drop(SILENT)
    head = read_arrays(params.path("teacher_head", "made_A") / "logits.npz")
    certainty = -entropy(np.exp(pd.DataFrame(head["logits"], head["ids"]).loc[rows.index].astype(float)), axis=1)
    still, number = (rows["background_music"] == "no").to_numpy(), video[rows.index].to_numpy()
    areas = [roc_auc_score(still[kept], certainty[kept]) for kept in (number == 0, number == 1, number >= 0)]
    interval = found.loc[("uni_modal", "auroc/head_certainty", "music"), ["value", "value_low", "value_high"]]
    assert interval.tolist() == pytest.approx([areas[2], min(areas), max(areas)], abs=1e-6)
    assert max(areas) - min(areas) > 0.01
    label = joined.set_index("id").loc[rows.index, "label"].to_numpy()
    within = [roc_auc_score(still[label == own], certainty[label == own]) for own in (0, 1)]
    row = found.loc[("uni_modal", "within/head_certainty", "music"), ["value", "classes"]]
    assert row.tolist() == pytest.approx([np.mean(within), 2], abs=1e-6)


def test_plain_scores_by_hand(params: Params, table: pd.DataFrame):
    ears = read_arrays(params.path("teacher_features", "made_A") / "features.npz")
    head = read_arrays(params.path("teacher_head", "made_A") / "logits.npz")
    rows, _ = outputs(params, "uni_modal", 0)
    place = pd.Index(ears["ids"]).get_indexer(rows.index)
    valid = ears["mask"][place]
    p = np.exp(head["logits"][place].astype(float))
    p /= p.sum(1, keepdims=True)
    still = (rows["background_music"] == "no")[valid]
    found = table.loc["uni_modal"]
    certainty, of_label = (p * np.log(p)).sum(1)[valid], p[range(len(p)), rows["label"]][valid]
    for name, values in {"head_certainty": certainty, "head_label": of_label}.items():
        assert found.loc[(f"auroc/{name}", "music"), "value"] == pytest.approx(roc_auc_score(still, values), abs=1e-9)
    areas = {"cosine": [], "agreement": []}
    for seed in range(5):
        _, probabilities = outputs(params, "uni_modal", seed)
        arrays = read_arrays(params.path("evaluate", "uni_modal") / f"uni_modal/seed-{seed}.npz")
        s, t = arrays["features"][arrays["ids"] != UNLABELLED].astype(float), ears["features"][place].astype(float)
        cosine = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
        areas["cosine"].append(roc_auc_score(still, cosine[valid]))
        areas["agreement"].append(roc_auc_score(still, (p * probabilities).sum(1)[valid]))
    for name, values in areas.items():
        assert found.loc[(f"auroc/{name}", "music"), "value"] == pytest.approx(np.mean(values), abs=1e-6)
        assert found.loc[(f"auroc/{name}", "music"), "clips"] == valid.sum()
    assert not any(name.startswith("auroc/") for name in table.loc["kd"].index.get_level_values(0))


def test_the_report_has_a_section(params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    report.main(stage("report", params))
    folder = params.path("report")
    written = pd.read_csv(folder / "tables/vggsounder.csv")
    assert {"dataset", "run", "measure", "on", "value", "value_low", "value_high", "clips"} <= set(written.columns)
    page = (folder / "index.html").read_text()
    assert "VGGSounder 1.0 (Zverev et al., ICCV 2025)" in page
    recognised = (folder / "tables/vggsounder.md").read_text()
    assert recognised.count("\n| ") == 2 + 5 + 1, "one row per run, and one of VGGSound's label"
    sound = (folder / "tables/vggsounder-sound.md").read_text()
    assert (
        "| mnf\\_csc | τ | " in sound and "| mnf\\_csc | mask | " in sound and "| uni\\_modal | cos(s, t) | " in sound
    )
    assert "nan" not in recognised + sound
    before = written
    report.main(stage("report", params))
    pd.testing.assert_frame_equal(pd.read_csv(folder / "tables/vggsounder.csv"), before)


def test_loudness_is_one_of_the_plain_scores(params: Params):
    drawn = loudness(params, "made")
    index = read_index(params.index("made")).set_index("id")
    store = Store(params.path("spectrogram", "made"))
    heard = index[(index["background_music"] != "") & (index["audio"] == "yes")]
    assert sorted(drawn.data["id"]) == sorted(heard.index)
    for row in drawn.data.to_dict("records")[:5]:
        power = np.mean(10 ** (np.asarray(store[row["id"]], dtype=float) / 10))
        assert row["loudness"] == pytest.approx(10 * np.log10(power), abs=1e-3)
    path = params.path("figures") / "loudness_made.csv"
    path.parent.mkdir(exist_ok=True)
    drawn.data.to_csv(path, index=False)
    try:
        found = vggsounder_table(EvaluatedSuite(params)).set_index(["run", "measure", "on"])
    finally:
        path.unlink()
    rows, _ = outputs(params, "uni_modal", 0)
    rows = rows.assign(loudness=drawn.data.set_index("id")["loudness"]).drop(SILENT).dropna()
    expected = roc_auc_score(rows["background_music"] == "no", rows["loudness"])
    assert found.loc[("uni_modal", "auroc/loudness", "music"), "value"] == pytest.approx(expected)
    assert found.loc[("uni_modal", "auroc/loudness", "music"), "clips"] == len(rows)


def test_without_labels_there_is_no_loudness(tmp_path: Path):
    params = suite_params(tmp_path, figures={})
    write_suite(params)
    with pytest.raises(NoDataError, match="made has no labels of VGGSounder"):
        loudness(params, "made")


def test_the_loudness_is_drawn_where_the_labels_are():
    origin = {"kind": "vggsound", "source": "x", "vggsounder": True}
    params = suite_params(Path("out"))
    assert "loudness_made" not in figures.wanted(params)
    raw = params.model_dump(mode="json")
    raw["datasets"]["made"]["origin"] = origin
    assert "loudness_made" in figures.wanted(Params.model_validate(raw))


def test_runs_on_different_clips_are_not_compared(params: Params):
    suite = EvaluatedSuite(params)
    path = params.path("evaluate", "kd") / "kd/seed-1.npz"
    before = path.read_bytes()
    write_arrays(path, **{name: values[:-1] for name, values in read_arrays(path).items()})
    try:
        with pytest.raises(UserError, match=r"seed-1\.npz: expected the clips of the other runs and seeds"):
            vggsounder_table(suite)
    finally:
        path.write_bytes(before)


def test_each_file_is_read_once(params: Params, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []

    def remembering(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        read.append(path)
        return read_arrays(path, names)

    suite = EvaluatedSuite(params)
    monkeypatch.setattr(vggsounder_tables, "read_arrays", remembering)
    vggsounder_table(suite)
    outputs_of = [path for path in read if path.name.startswith("seed-")]
    assert len(outputs_of) == len(set(outputs_of)) > len(params.runs())


def test_without_labels_there_is_no_table(tmp_path: Path):
    params = suite_params(tmp_path, figures={})
    write_suite(params)
    report.main(stage("report", params))
    assert not list((tmp_path / "report/tables").glob("vggsounder*"))
    assert "VGGSounder" not in (tmp_path / "report/index.html").read_text()


def test_each_seed_is_compared_with_its_draw_of_the_teacher(params: Params):
    for stage_name, file, array in (
        ("teacher_features", "features.npz", "features"),
        ("teacher_head", "logits.npz", "logits"),
    ):
        folder = params.path(stage_name, "made_A")
        arrays = read_arrays(folder / file)
        write_arrays(folder / "draw-1" / file, **(arrays | {array: arrays[array][:, ::-1] + 1}))
    teacher = params.teachers["ear"].model_copy(update={"draws": 2})
    suite = EvaluatedSuite(params.model_copy(update={"teachers": {"ear": teacher}}))
    rows, _ = outputs(params, "kd", 0)
    heard = vggsounder_tables.heard_by(suite, suite.job("kd"), rows, range(3))
    assert heard[1].features.allclose(heard[0].features.flip(1) + 1, atol=1e-6) and heard[2] is heard[0]
    assert heard[1].probabilities.allclose(heard[0].probabilities.flip(1))
    found = vggsounder_table(suite).set_index(["run", "measure", "on"]).loc["kd"]
    for name in ("kappa_V", "kappa_A"):
        assert found.loc[(name, "any"), "value_seeds"] == 2, "the seeds of a draw count as one"
