"""Runs on VGGSounder's labels: recognition of what is seen and heard, and detection of sound that belongs.

One table, in the rows of which `measure` is taken on the label set or truth `on`:

  hit@1, F1@1   share of clips whose top-1 class is among their labels; micro-F1 of that class as the only label
  AP            average precision, mean over classes
  kappa_V       share of clips that the student without a teacher hits and this run misses (`repairs`: the reverse)
  kappa_A       share of clips that the audio teacher's head hits and this run misses
  auroc/…       area under the ROC curve of a clip score, high where the sound belongs
  gain/…        auroc/… less that of the score `cosine`
  within/…      auroc among the clips of one class, mean over the classes with at least 5 clips of both kinds

Label sets: `visible`, `audible`, `both` (labels that are seen and heard) and `any`, on which kappa is measured. Labels
that are no classes of the dataset are left out; a clip counts if it keeps a label. The rows of the run LABEL measure
VGGSound's own label as the prediction.

Truths, with VGGSound's own label y: `own`, y is seen and heard (against seen or heard only); `clean`, every heard label
is seen, without background music and voice-over (against a label that is only heard, music or voice-over); `music`, no
background music (against music); `own_heard`, y is heard (against seen only); `shared`, some label is seen and heard
(against none). Most labels that are only heard are speech, so `own_speechless` and `clean_speechless` are `own` and
`clean` without the clips in which speech is heard.

Clip scores: those of the method, and plain ones, for which nothing is trained: `cosine` of the student's and the
teacher's features as they are; of the teacher's head, the probability of y (`head_label`) and the negative entropy
(`head_certainty`); the probability that head and student, sampled independently, name one class (`agreement`); the
`loudness` of the sound, from stage figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from avdistill.config.schema import Job
from avdistill.config.types import NO_TEACHER
from avdistill.data.draws import draw_of, of_draw
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index
from avdistill.data.sources.vggsounder import COLUMNS, SEPARATOR
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results
from avdistill.reporting.results import Interval, by_draw, interval_columns, student_interval
from avdistill.reporting.suite import EvaluatedSuite

if TYPE_CHECKING:
    from torch import Tensor

SETS = ("visible", "audible", "both")
TRUTHS = ("own", "clean", "music")
MORE_TRUTHS = ("own_heard", "shared", "own_speechless", "clean_speechless")
SPEECH = {"male speech, man speaking", "female speech, woman speaking", "child speech, kid speaking"}  # of the 309
LABEL = "VGGSound's label"  # stands for a run
RESAMPLES, SEED = 1000, 0  # of the bootstrap over source videos


class EvaluatedClips(NamedTuple):
    """What one trained student made of the N labelled test clips: rows of the index, probabilities (N, C), features."""

    rows: pd.DataFrame
    probabilities: Tensor
    features: Tensor


class HeardClips(NamedTuple):
    """What an audio teacher made of the same clips: features (N, Dt), its head's probabilities (N, C), mask (N,)."""

    features: Tensor
    probabilities: Tensor
    mask: Tensor


def vggsounder_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return all measures of the evaluated runs on datasets with VGGSounder's labels; empty if there are none.

    The intervals of auroc and within are over source videos (percentiles of the bootstrap), the others over seeds."""
    rows = []
    for dataset in suite.params.datasets:
        path = suite.params.index(dataset)
        index = read_index(path) if path.exists() else pd.DataFrame()
        if not set(COLUMNS) <= set(index.columns):
            continue
        index, loudness = index.set_index("id"), loudness_of(suite, dataset)
        read = lru_cache(maxsize=2)(partial(by_seed, suite, index=index))  # a run, and the baseline of all runs
        labelled: list[dict[str, Any]] = []
        for run in suite.evaluated:
            clips = read(run) if suite.job(run).dataset == dataset else {}
            if clips:
                if not labelled:
                    own = of_label(next(iter(clips.values())), index)
                    labelled = [{"dataset": dataset, "run": LABEL, **measure} for measure in own]
                mlflow = {f"mlflow_{stage}": ids for stage, ids in suite.mlflow_ids(run).items()}
                measures = (*recognition(suite, run, read, index), *detection(suite, run, clips, loudness))
                rows += [{"dataset": dataset, "run": run, **measure, **mlflow} for measure in measures]
        rows += labelled
    return pd.DataFrame(rows)


def by_seed(suite: EvaluatedSuite, run: str, index: pd.DataFrame) -> dict[int, EvaluatedClips]:
    """Return the labelled test clips of a run by seed, without trainings that diverged; `index` has all clips by id.

    Raises UserError if the seeds were evaluated on different clips."""
    import torch

    found: dict[int, EvaluatedClips] = {}
    labelled = index.index[index["audible"] + index["visible"] != ""]
    folder = suite.params.evaluated(run)
    for seed in suite.seeds(run):
        path = folder / f"seed-{seed}.npz"
        if path.exists():
            arrays = read_arrays(path, ("ids", "probabilities", "features"))
            chosen = np.isin(arrays["ids"], labelled.to_numpy(dtype=str))
            rows = index.loc[arrays["ids"][chosen]]
            tensors = (torch.from_numpy(arrays[name][chosen]) for name in ("probabilities", "features"))
            found[seed] = EvaluatedClips(rows, *tensors)
            check_same(found[seed], next(iter(found.values())), path)
    return {seed: clips for seed, clips in found.items() if len(clips.rows)}


def check_same(clips: EvaluatedClips, others: EvaluatedClips, path: Path) -> None:
    """Raise UserError, naming `path`, if two students were evaluated on different clips."""
    if clips.rows.index.tolist() != others.rows.index.tolist():
        raise UserError(f"{path}: expected the clips of the other runs and seeds; run stage evaluate again")


def heard_by(suite: EvaluatedSuite, job: Job, rows: pd.DataFrame, seeds: Iterable[int]) -> dict[int, HeardClips]:
    """Return what the audio teacher that a job has with each seed made of clips; empty if the job names none.

    `rows` are the clips' rows of the index."""
    if job.A == NO_TEACHER:
        return {}
    draws = {seed: draw_of(suite.params, seed, suite.params.features[job.A].teacher) for seed in seeds}
    heard = {draw: heard_by_draw(suite, job, rows, draw) for draw in set(draws.values())}
    return {seed: heard[draw] for seed, draw in draws.items()}


def heard_by_draw(suite: EvaluatedSuite, job: Job, rows: pd.DataFrame, draw: int) -> HeardClips:
    """Return what a draw of the audio teacher of a job made of clips (rows of the index)."""
    import torch

    part, path = of_draw(draw), suite.params.path
    stored = read_arrays(path("teacher_features", job.A) / part / "features.npz", ("ids", "features", "mask"))
    head = read_arrays(path("teacher_head", job.A) / part / "logits.npz", ("ids", "logits"))
    row, judged = (pd.Index(arrays["ids"]).get_indexer(rows.index) for arrays in (stored, head))
    if min(row.min(), judged.min()) < 0:
        raise UserError(f"teacher_features/{job.A}: no row for some test clips; run stage teacher_features again")
    features, logits = torch.from_numpy(stored["features"][row]), torch.from_numpy(head["logits"][judged])
    return HeardClips(features.double(), logits.double().softmax(1), torch.from_numpy(stored["mask"][row]))


def label_sets(rows: pd.DataFrame, classes: dict[str, int], count: int) -> dict[str, Tensor]:
    """Return the labels of clips as bool (N, `count`), by label set; `classes` are the class numbers by name."""
    import torch

    found = {}
    for name in ("visible", "audible"):
        found[name] = torch.zeros(len(rows), count, dtype=torch.bool)
        for row, text in enumerate(rows[name]):
            found[name][row, [classes[label] for label in text.split(SEPARATOR) if label in classes]] = True
    both, either = found["visible"] & found["audible"], found["visible"] | found["audible"]
    return found | {"both": both, "any": either}


def relevance(rows: pd.DataFrame) -> dict[str, Tensor]:
    """Return whether the sound of clips belongs, by truth: 1 (yes), 0 (no) or NaN (left out), float64 (N,).

    `rows` are the clips' rows of the index."""
    import torch

    found = []
    for row in rows.to_dict("records"):
        heard, seen = ({*row[name].split(SEPARATOR)} - {""} for name in ("audible", "visible"))
        listed = (row["class"] in heard) + (row["class"] in seen)
        music, voice = (row[flag] == "yes" for flag in ("background_music", "voice_over"))
        own = listed - 1.0 if listed else np.nan
        clean = 0.0 if heard - seen or music or voice else 1.0 if heard else np.nan
        own_heard = float(row["class"] in heard) if listed else np.nan
        speechless = np.nan if voice or heard & SPEECH else 1.0
        found.append(
            (own, clean, 1.0 - music, own_heard, float(bool(heard & seen)), own * speechless, clean * speechless)
        )
    names = (*TRUTHS, *MORE_TRUTHS)
    return dict(zip(names, torch.tensor(found, dtype=torch.float64).reshape(-1, len(names)).T, strict=True))


def loudness_of(suite: EvaluatedSuite, dataset: str) -> pd.Series:
    """Return the loudness (dB) of the labelled test clips by id, from stage figures; empty if it wrote none."""
    path = suite.params.path("figures") / f"loudness_{dataset}.csv"
    if not path.exists():
        return pd.Series(dtype=float)
    return results.read_table(path, ("id", "loudness")).set_index("id")["loudness"]


def measure(name: str, on: str, interval: Interval, clips: int, classes: float = np.nan) -> dict[str, Any]:
    """Return a row of the table without dataset and run; `classes`, over which a mean is taken, is NaN if it is not."""
    return {"measure": name, "on": on, **interval_columns("value", interval), "clips": clips, "classes": classes}


def of_label(clips: EvaluatedClips, index: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield hit@1 and F1@1 of VGGSound's own label of clips as the prediction; `index` has all clips by id.

    There is no interval: no seed is involved."""
    import torch
    from torch.nn import functional

    from models import label_sets as metrics

    labels = torch.tensor(clips.rows["label"].to_numpy(dtype=int))
    own = functional.one_hot(labels, clips.probabilities.shape[1]).double()
    truth = label_sets(clips.rows, classes_of(index), own.shape[1])
    for on in SETS:
        hit, count = metrics.hits(own, truth[on]).nanmean().item(), int(truth[on].any(1).sum())
        for name, value in (("hit@1", hit), ("F1@1", metrics.f1_at_1(own, truth[on]))):
            yield measure(name, on, Interval(value, np.nan, np.nan, 0), count)


def classes_of(index: pd.DataFrame) -> dict[str, int]:
    """Return the number of each class by name."""
    return dict(zip(index["class"], index["label"], strict=True))


def recognition(
    suite: EvaluatedSuite, run: str, read: Callable[[str], dict[int, EvaluatedClips]], index: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Yield hit@1, F1@1, AP, kappa and repairs of a run.

    `read` returns a run's clips by seed, `index` has all clips by id."""
    from models import label_sets as metrics

    def mean(values: dict[int, float]) -> Interval:
        return student_interval(by_draw(pd.Series(values, dtype=float), suite.draws))

    clips = read(run)
    first = next(iter(clips.values()))
    truth = label_sets(first.rows, classes_of(index), first.probabilities.shape[1])
    for on in SETS:
        count = int(truth[on].any(1).sum())
        hit = {seed: metrics.hits(each.probabilities, truth[on]).nanmean().item() for seed, each in clips.items()}
        yield measure("hit@1", on, mean(hit), count)
        single = {seed: metrics.f1_at_1(each.probabilities, truth[on]) for seed, each in clips.items()}
        yield measure("F1@1", on, mean(single), count)
        precision = {
            seed: metrics.average_precision(each.probabilities, truth[on]).nanmean().item()
            for seed, each in clips.items()
        }
        yield measure("AP", on, mean(precision), count, int(truth[on].any(0).sum()))
    student = {seed: metrics.hits(each.probabilities, truth["any"]) for seed, each in clips.items()}
    if base := suite.baseline_of(run):
        before = {}
        for seed, each in read(base).items():
            check_same(each, first, suite.params.evaluated(base))
            before[seed] = metrics.hits(each.probabilities, truth["any"])
        pairs = {seed: (before[seed], student[seed]) for seed in student if seed in before}
        count = int(truth["any"].any(1).sum())
        yield measure("kappa_V", "any", mean({seed: metrics.lost(*pair) for seed, pair in pairs.items()}), count)
        yield measure("repairs", "any", mean({seed: metrics.lost(*pair[::-1]) for seed, pair in pairs.items()}), count)
        values = {}
        for seed, heard in heard_by(suite, suite.job(run), first.rows, student).items():
            head = metrics.hits(heard.probabilities, truth["any"])
            values[seed] = metrics.lost(head[heard.mask], student[seed][heard.mask])
            count = int((truth["any"].any(1) & heard.mask).sum())
        if values:
            yield measure("kappa_A", "any", mean(values), count)


def detection(
    suite: EvaluatedSuite, run: str, clips: dict[int, EvaluatedClips], loudness: pd.Series
) -> Iterator[dict[str, Any]]:
    """Yield the AUROCs of the clip scores of a run with scores of its own, or without a baseline to compare with.

    `loudness` of the clips by id; empty if it is not known."""
    import torch

    from models import label_sets as metrics

    method = own_scores(suite, run)
    if method.empty and suite.baseline_of(run):
        return
    first = next(iter(clips.values()))
    heard = heard_by(suite, suite.job(run), first.rows, clips)
    level = torch.tensor(loudness.reindex(first.rows.index).to_numpy(dtype=float))
    found: dict[str, list[Tensor]] = {}
    for seed, each in clips.items():
        mine = method[method["seed"] == seed].set_index("id").drop(columns="seed").reindex(first.rows.index)
        scores = {str(name): torch.tensor(mine[name].to_numpy(dtype=float)) for name in mine}
        untrained = plain_scores(each, heard[seed]) if heard else {}
        if len(loudness):
            untrained["loudness"] = level
        for name, values in {**untrained, **scores}.items():
            found.setdefault(name, []).append(values)
    labels, groups = (torch.from_numpy(first.rows[name].factorize(sort=True)[0]) for name in ("label", "group"))
    once = torch.ones(len(first.rows), 1)  # the clips themselves, before their resamples
    weights = torch.cat([once, metrics.bootstrap_weights(groups, RESAMPLES, SEED)], dim=1)
    # All scores are compared on the same clips: those that have every score.
    scored = ~torch.stack([values.isnan() for several in found.values() for values in several] or [labels < 0]).any(0)
    for on, truth in relevance(first.rows).items():
        kept = scored & ~truth.isnan()
        positive, own, weight, count = truth[kept] == 1, labels[kept], weights[kept], int(kept.sum())
        classes, areas = len(metrics.mixed_classes(positive, own)), {}
        for name, several in found.items():
            chosen = [values[kept] for values in several]
            areas[name] = torch.stack([metrics.auroc(values, positive, weight) for values in chosen]).mean(0)
            within = torch.stack([metrics.auroc_within(values, positive, own, weight) for values in chosen]).mean(0)
            yield measure(f"auroc/{name}", on, bootstrapped(areas[name], len(several)), count)
            yield measure(f"within/{name}", on, bootstrapped(within, len(several)), count, classes)
            if "cosine" in areas and name != "cosine":
                yield measure(f"gain/{name}", on, bootstrapped(areas[name] - areas["cosine"], len(several)), count)


def bootstrapped(values: Tensor, seeds: int) -> Interval:
    """Return the first of the values (1 + B,) with the 2.5th and 97.5th percentile of the others, its resamples.

    NaN among the resamples is left out."""
    first, *resampled = values.tolist()
    if np.isnan(first):
        return results.UNKNOWN
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Interval(first, float(low), float(high), seeds)


def own_scores(suite: EvaluatedSuite, run: str) -> pd.DataFrame:
    """Return the method's scores of the test clips: seed, id and one column per score; empty if it has none."""
    path = suite.params.evaluated(run).with_name("scores.csv")
    if not path.exists():
        return pd.DataFrame(columns=["seed", "id"])
    table = results.read_table(path, ("run", "seed", "id", "split"))
    table = table[(table["run"] == run) & (table["split"] == "test")]
    return table.drop(columns=["run", "split", "relevant"], errors="ignore").dropna(axis=1, how="all")


def plain_scores(clips: EvaluatedClips, heard: HeardClips) -> dict[str, Tensor]:
    """Return the scores (N,) that need no training of theirs, NaN for clips without sound; see the module docstring.

    There is no `cosine` if the features differ in length."""
    import torch
    from torch.nn import functional

    student, features = clips.probabilities.double(), clips.features.double()
    labels = torch.tensor(clips.rows["label"].to_numpy())
    scores = {}
    if features.shape == heard.features.shape:
        scores["cosine"] = functional.cosine_similarity(features, heard.features)
    scores["head_label"] = heard.probabilities.gather(1, labels[:, None]).squeeze(1)
    scores["head_certainty"] = torch.xlogy(heard.probabilities, heard.probabilities).sum(1)
    scores["agreement"] = (heard.probabilities * student).sum(1)
    return {name: values.where(heard.mask, torch.nan) for name, values in scores.items()}
