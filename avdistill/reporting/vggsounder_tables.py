"""Runs on VGGSounder's labels: recognition of what is seen and heard, and detection of sound that belongs.

One table, in the rows of which `measure` is taken on the label set or truth `on`:

  hit@1, AP     share of clips whose top-1 class is among their labels; average precision, mean over classes
  kappa_V       share of clips that the student without a teacher hits and this run misses (`repairs`: the reverse)
  kappa_A       share of clips that the audio teacher's head hits and this run misses
  auroc/…       area under the ROC curve of a clip score, high where the sound belongs
  gain/…        auroc/… less that of the score `cosine`
  within/…      auroc among the clips of one class, mean over the classes with at least 5 clips of both kinds

Label sets: `visible`, `audible`, `both` (labels that are seen and heard) and `any`, on which kappa is measured. Labels
that are no classes of the dataset are left out; a clip counts if it keeps a label.

Truths, with VGGSound's own label y: `own`, y is seen and heard (against seen or heard only); `clean`, every heard label
is seen, without background music and voice-over (against a label that is only heard, music or voice-over); `music`, no
background music (against music).

Clip scores: those of the method, and plain ones, for which nothing is trained: `cosine` of the student's and the
teacher's features as they are; of the teacher's head, the probability of y (`head_label`) and the negative entropy
(`head_certainty`); the probability that head and student, sampled independently, name one class (`agreement`).
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
from avdistill.data.sources.vggsounder import COLUMNS, SEPARATOR, VERSION
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results
from avdistill.reporting.page import EMPTY, MINUS, PLUS_MINUS, Column, Sheet, TableCell, spread, symbol, with_dagger
from avdistill.reporting.results import Interval, by_draw, interval_columns, interval_of, percent, student_interval
from avdistill.reporting.suite import EvaluatedSuite

if TYPE_CHECKING:
    from torch import Tensor

SETS = ("visible", "audible", "both")
TRUTHS = ("own", "clean", "music")
RESAMPLES, SEED = 1000, 0  # of the bootstrap over source videos
HEADINGS = {"cosine": "cos(s, t)", "head_label": "head: p(y)", "head_certainty": "head: certainty"}


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
        index = index.set_index("id")
        read = lru_cache(maxsize=2)(partial(by_seed, suite, index=index))  # a run, and the baseline of all runs
        for run in suite.evaluated:
            clips = read(run) if suite.job(run).dataset == dataset else {}
            if clips:
                mlflow = {f"mlflow_{stage}": ids for stage, ids in suite.mlflow_ids(run).items()}
                measures = (*recognition(suite, run, read, index), *detection(suite, run, clips))
                rows += [{"dataset": dataset, "run": run, **measure, **mlflow} for measure in measures]
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
    """Return whether the sound of clips belongs, by truth: 1 (yes), 0 (no) or NaN (left out), float64 (N,)."""
    import torch

    found = []
    for row in rows.to_dict("records"):
        heard, seen = ({*row[name].split(SEPARATOR)} - {""} for name in ("audible", "visible"))
        own = (row["class"] in heard) + (row["class"] in seen)
        music = row["background_music"] == "yes"
        mixed = heard - seen or music or row["voice_over"] == "yes"
        clean = 1.0 if heard else np.nan
        found.append((own - 1.0 if own else np.nan, 0.0 if mixed else clean, 1.0 - music))
    return dict(zip(TRUTHS, torch.tensor(found, dtype=torch.float64).reshape(-1, len(TRUTHS)).T, strict=True))


def measure(name: str, on: str, interval: Interval, clips: int, classes: float = np.nan) -> dict[str, Any]:
    """Return a row of the table without dataset and run; `classes`, over which a mean is taken, is NaN if it is not."""
    return {"measure": name, "on": on, **interval_columns("value", interval), "clips": clips, "classes": classes}


def recognition(
    suite: EvaluatedSuite, run: str, read: Callable[[str], dict[int, EvaluatedClips]], index: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Yield hit@1, AP, kappa and repairs of a run; `read` returns a run's clips by seed, `index` has all by id."""
    from models import label_sets as metrics

    def mean(values: dict[int, float]) -> Interval:
        return student_interval(by_draw(pd.Series(values, dtype=float), suite.draws))

    clips = read(run)
    first = next(iter(clips.values()))
    classes = dict(zip(index["class"], index["label"], strict=True))
    truth = label_sets(first.rows, classes, first.probabilities.shape[1])
    for on in SETS:
        count = int(truth[on].any(1).sum())
        hit = {seed: metrics.hits(each.probabilities, truth[on]).nanmean().item() for seed, each in clips.items()}
        yield measure("hit@1", on, mean(hit), count)
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


def detection(suite: EvaluatedSuite, run: str, clips: dict[int, EvaluatedClips]) -> Iterator[dict[str, Any]]:
    """Yield the AUROCs of the clip scores of a run with scores of its own, or without a baseline to compare with."""
    import torch

    from models import label_sets as metrics

    method = own_scores(suite, run)
    if method.empty and suite.baseline_of(run):
        return
    first = next(iter(clips.values()))
    heard = heard_by(suite, suite.job(run), first.rows, clips)
    found: dict[str, list[Tensor]] = {}
    for seed, each in clips.items():
        mine = method[method["seed"] == seed].set_index("id").drop(columns="seed").reindex(first.rows.index)
        scores = {str(name): torch.tensor(mine[name].to_numpy(dtype=float)) for name in mine}
        for name, values in {**(plain_scores(each, heard[seed]) if heard else {}), **scores}.items():
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


def vggsounder_sheets(suite: EvaluatedSuite, table: pd.DataFrame) -> list[Sheet]:
    """Return the sheets of recognition (one row per run) and of the sound (one row per run and clip score)."""
    known = {(row["run"], row["measure"], row["on"]): row for row in table.to_dict("records")}
    columns = [Column("run", number=False)]
    columns += [Column(on, name, first=on == SETS[0]) for name in ("hit@1", "AP") for on in SETS]
    columns += [Column(name, "any", first=name == "κ_V") for name in ("κ_V", "repairs", "κ_A")]
    keys = [(name, on) for name in ("hit@1", "AP") for on in SETS]
    keys += [(name, "any") for name in ("kappa_V", "repairs", "kappa_A")]
    rows = []
    for run in dict.fromkeys(table["run"]):
        measured = [known.get((run, *key)) for key in keys]
        texts = [spread(percent(interval_of(row, "value"))) if row else EMPTY for row in measured]
        rows.append([TableCell(run), *(TableCell(text, suite.tooltip(run)) for text in texts)])
    counts = {row["on"]: row["clips"] for row in reversed(table[table["measure"] == "hit@1"].to_dict("records"))}
    notes = [
        f"Percent, mean {PLUS_MINUS} half of the 95 % interval over seeds. hit@1: top-1 class among the labels; AP: "
        "average precision, mean over classes; on labels that are seen "
        f"({counts['visible']:,} test clips), heard ({counts['audible']:,}), or both ({counts['both']:,}). κ_V: clips "
        "that the student without a teacher hits and this run misses, with any label; repairs: the reverse; κ_A: clips "
        "with sound that the audio teacher's head hits and this run misses."
    ]
    sheets = [Sheet("vggsounder", "Recognition on VGGSounder", columns, rows, with_dagger(rows, notes))]
    columns = [Column("run", number=False), Column("score", number=False)]
    for on in TRUTHS:
        columns += [Column("AUROC", on, first=True), Column(f"{MINUS} cos(s, t)", on), Column("within classes", on)]
        columns.append(Column("clips", on))
    rows = []
    for run, name in dict.fromkeys((run, name[6:]) for run, name, _ in known if name.startswith("auroc/")):
        cells = [TableCell(run), TableCell(HEADINGS.get(name, symbol(name)))]
        for on in TRUTHS:
            areas = {kind: known.get((run, f"{kind}/{name}", on)) for kind in ("auroc", "gain", "within")}
            cells += [area_cell(row, kind, suite.tooltip(run)) for kind, row in areas.items()]
            cells.append(TableCell(f"{known[run, f'auroc/{name}', on]['clips']:,}"))
        rows.append(cells)
    notes = [
        "AUROC of clip scores, mean over seeds, with the 95 % interval over source videos (bootstrap). Bold: the "
        "interval excludes 0.5 (chance), or 0 for a difference; coloured: below. own: the clip's class is seen and "
        "heard, against one of the two; clean: all that is heard is seen, without music and voice-over; music: no "
        "background music. Within classes: mean over classes with at least 5 clips of both kinds. cos(s, t): features "
        "of student and teacher as they are; head: the teacher's linear layer; agreement: probability that head and "
        "student name one class."
    ]
    return [*sheets, *([Sheet("vggsounder-sound", "Does the sound belong?", columns, rows, notes)] if rows else [])]


def area_cell(row: dict[str, Any] | None, kind: str, title: str) -> TableCell:
    """Return the cell of an AUROC, or of a `gain` in it, with its interval."""
    if row is None or np.isnan(row["value"]):
        return TableCell(EMPTY, title, "dim")
    area, chance = interval_of(row, "value"), 0.0 if kind == "gain" else 0.5
    looks = ["strong" if area.excludes(chance) else "", "lower" if area.mean < chance else ""]
    text, *ends = (f"{value:.2f}".replace("-", MINUS) for value in area[:3])
    return TableCell(text, title, " ".join(filter(None, looks)), detail=" to ".join(ends))


def vggsounder_text() -> str:
    """Return the introduction of the section."""
    return (
        f"VGGSounder {VERSION} (Zverev et al., ICCV 2025) labels what is seen and what is heard in the test clips of "
        "VGGSound. The methods do not see these labels."
    )
