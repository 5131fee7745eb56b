"""Tables of the report that describe the suite: studies, runs, teachers, datasets, recipes.

`<name>_table` returns the data of tables/<name>.csv, `<name>_sheet` its display on the page and in Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.config.types import NO_TEACHER
from avdistill.reporting.page import (
    EMPTY,
    MINUS,
    PLUS_MINUS,
    Column,
    Sheet,
    TableCell,
    gain_cell,
    listed,
    plain,
    spread,
    with_dagger,
)
from avdistill.reporting.results import interval_columns, interval_of
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.teacher_heads import head_metrics, wrong_labels

METRICS = ("accuracy", "R@1", "mAP@100/released", "mAP@100/hits", "mAP@100/standard", "mAP@500/released")


def studies_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return one row per study: the numbers of runs, evaluated runs and trainings, and the command to reproduce it."""
    params, rows = suite.params, []
    for name, study in params.studies.items():
        runs = [run for job in study.jobs for run in params.jobs[job].runs]
        rows.append(
            {
                "study": name,
                "title": study.title,
                "runs": len(runs),
                "evaluated": sum(run in suite.evaluated for run in runs),
                "trainings": sum(len(suite.seeds(run)) for run in runs),
                "command": f"dvc repro $(python -m avdistill.config.studies {params.suite.file} {name})",
            }
        )
    return pd.DataFrame(rows)


def studies_sheet(table: pd.DataFrame) -> Sheet:
    """Return the sheet of the studies."""
    columns = [Column("study", number=False), Column("question", number=False)]
    columns += [Column("runs"), Column("evaluated"), Column("trainings"), Column("command", number=False)]
    rows = [
        [
            *(TableCell(row[key]) for key in ("study", "title")),
            *(TableCell(str(row[key])) for key in ("runs", "evaluated", "trainings")),
            TableCell(row["command"], look="mono"),
        ]
        for row in table.to_dict("records")
    ]
    return Sheet("studies", "Studies", columns, rows)


def runs_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return one row per evaluated run, ordered by study; metrics in percent, gains in points."""
    rows = []
    for study, runs in suite.studies().items():
        for run in runs:
            job_name, entry = suite.params.runs()[run]
            job, base = suite.params.jobs[job_name], suite.baseline_of(run)
            row: dict[str, Any] = {
                "study": study,
                "run": run,
                "job": job_name,
                "method": job.method,
                "teachers": entry.teachers,
                "options": ", ".join(f"{key}={json.dumps(value)}" for key, value in entry.options.items()),
                "dataset": job.dataset,
                "student": suite.params.recipes[job.recipe].student,
                "seeds": " ".join(map(str, suite.seeds(run))),
                "not_converged": suite.not_converged(run),
            }
            for metric in METRICS:
                row |= interval_columns(metric, suite.score(run, metric))
            row["baseline"] = base or ""
            row |= interval_columns("gain", suite.gain(run, base))
            row["verdict"] = suite.verdict(run, base)
            row["gallery"] = suite.values(run, "gallery").mean()
            rows.append(row | {f"mlflow_{stage}": ids for stage, ids in suite.mlflow_ids(run).items()})
    return pd.DataFrame(rows)


def runs_sheet(suite: EvaluatedSuite, study: str, table: pd.DataFrame) -> Sheet:
    """Return the sheet of the runs of one study."""
    columns = [
        *(Column(heading, number=False) for heading in ("run", "method", "teachers", "options")),
        Column("seeds"),
        Column("accuracy", first=True),
        Column("gain"),
        Column("R@1", first=True),
        *(Column(form, "mAP@100", first=form == "released") for form in ("released", "hits", "standard")),
        Column("mAP@500", first=True),
        Column("MLflow", number=False, first=True),
    ]
    baseline_method = suite.job(suite.params.report.baseline).method
    rows = []
    for row in table.to_dict("records"):
        run, title = row["run"], suite.tooltip(row["run"])
        scores = [TableCell(spread(interval_of(row, metric)), title) for metric in METRICS]
        ids = row["mlflow_evaluate"] or row["mlflow_train"]
        short = ids.split()[0].partition(":")[2][:8] if ids else EMPTY
        more = f" +{len(ids.split()) - 1}" if len(ids.split()) > 1 else ""
        gain = gain_cell(interval_of(row, "gain"), row["verdict"], suite.tooltip(run, row["baseline"]))
        rows.append(
            [
                *(TableCell(row[key] or EMPTY) for key in ("run", "method", "teachers", "options")),
                TableCell(seeds_text(row), f"seeds {row['seeds']}"),
                scores[0],
                TableCell("baseline", look="dim") if row["method"] == baseline_method else gain,
                *scores[1:],
                TableCell(short + more, title, "mono" if ids else "dim"),
            ]
        )
    bases = [base for base in dict.fromkeys(table["baseline"]) if base]
    explained = f"Gain: run {MINUS} baseline ({listed(bases)}), in points of accuracy, paired by seed and clip."
    notes = ([explained] if bases else []) + suite.logits_note(table["run"])
    name = f"runs-{study}" if study else "runs"
    caption = f"Runs of study {study}" if study else "All runs"
    return Sheet(name, caption, columns, rows, with_dagger(rows, notes))


def seeds_text(row: dict[str, Any]) -> str:
    """Return the number of seeds of a run, and how many of them did not converge."""
    count = str(len(row["seeds"].split()))
    return f"{count} ({row['not_converged']} not converged)" if row["not_converged"] else count


def runs_notes(table: pd.DataFrame) -> list[str]:
    """Return the notes that explain the columns of the run tables."""
    notes = [
        f"Percent on the test split: mean {PLUS_MINUS} half of the 95 % interval over seeds. Gain: over the run "
        "without distillation of the same student, input and recipe; bold if significant, coloured if negative. "
        "Retrieval: test videos as queries, training videos as gallery, cosine similarity of student features. mAP "
        "divides by the hits in the top K, ignoring queries without a hit (released) or counting them as 0 (hits), or "
        "by the smaller of K and the number of relevant videos (standard)."
    ]
    if lost := int(table["not_converged"].sum()):
        notes.append(
            f"{lost} trainings did not converge. Means, intervals and tests leave them out; {EMPTY}: none did."
        )
    capped = {size: [f"mAP@{k}" for k in (100, 500) if size < k] for size in sorted(set(table["gallery"].dropna()))}
    notes += [
        f"Gallery of {size:.0f} videos: {listed(names)} ranks all of them." for size, names in capped.items() if names
    ]
    return notes


def teachers_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return the accuracy (percent) of a linear layer on each teacher's features, averaged over its draws."""
    rows = []
    for name, entry in suite.params.features.items():
        each = head_metrics(suite.params, name)
        if not each:
            continue
        found = each[0] | {"accuracy": pd.DataFrame([one["accuracy"] for one in each]).mean().to_dict()}
        rows.append(
            {
                "features": name,
                "teacher": entry.published or entry.teacher,
                "kind": "published" if entry.teacher == NO_TEACHER else suite.params.teachers[entry.teacher].kind,
                "input": entry.input,
                "in-sample": 100 * found["accuracy"].get("train", np.nan),
                "distilled": 100 * found["accuracy"].get("distilled", np.nan),
                "logits": f"{entry.cross_fit} folds" if entry.cross_fit else "in sample",
                "val": 100 * found["accuracy"].get("val", np.nan),
                "test": 100 * found["accuracy"].get("test", np.nan),
                "majority": 100 * found.get("majority", np.nan),
                "wrong labels": 100 * wrong_labels(each),
                "clips": found.get("clips", {}).get("test", 0),
                "mlflow": suite.ledger.get(("teacher_head", name)) or "",
            }
        )
    return pd.DataFrame(rows)


def seen_in_training(params: Params) -> list[str]:
    """Return the entries of `features` whose teacher may have been trained on their test clips, with labels.

    PANNs' checkpoints are of AudioSet, of which AVE is a part."""
    return [
        name
        for name, entry in params.features.items()
        if entry.teacher != NO_TEACHER
        and params.teachers[entry.teacher].weights.startswith("panns:")
        and params.datasets[entry.dataset].origin.kind == "ave"
    ]


def teachers_sheet(table: pd.DataFrame, seen: Sequence[str] = ()) -> Sheet:
    """Return the sheet of the linear layers; `seen` are the entries of `features` of `seen_in_training`."""
    columns = [Column(heading, number=False) for heading in ("features", "teacher", "input")]
    columns += [
        Column("training clips, distilled logits", first=True, number=False),
        Column("in sample", "accuracy", first=True),
        Column("distilled", "accuracy"),
        Column("val", "accuracy"),
        Column("test", "accuracy"),
        Column("most frequent class", first=True),
        Column("wrong labels, estimated", first=True),
        Column("test clips", first=True),
    ]
    rows = [
        [
            TableCell(row["features"]),
            TableCell(f"{row['teacher']} ({row['kind']})"),
            TableCell(row["input"]),
            TableCell(row["logits"]),
            *(
                TableCell(plain(row[key]), row["mlflow"])
                for key in ("in-sample", "distilled", "val", "test", "majority", "wrong labels")
            ),
            TableCell(f"{row['clips']:,}"),
        ]
        for row in table.to_dict("records")
    ]
    notes = [
        "Accuracy in percent on clips with an input for the teacher. In sample: training clips, by the layer that was "
        "fitted on them. Distilled: training clips, by the logits that methods with teacher logits distil; with folds, "
        "by a layer that has not seen the clip's group. Most frequent class: accuracy of always predicting it.",
        "Wrong labels: the estimated share of training clips, from how much less often predictions out of fold agree "
        "with their labels than with those of test clips, which are taken as right. The weaker the teacher and the "
        "fewer the clips, the further off it may be.",
        "These layers are fitted on all training clips. Students that train on some of the groups (train_groups) have "
        "layers that are fitted on those.",
        "KD with its published weights (0.9 on the teacher, 0.1 on the labels) teaches what the teacher knows: one "
        "below the student's own accuracy pulls it down, also with logits out of fold.",
    ]
    if names := [name for name in table["features"] if name in seen]:
        notes.append(
            f"{', '.join(names)}: the teacher was trained on AudioSet, of which AVE is a part, and may have seen test "
            "clips with their labels."
        )
    return Sheet("teachers", "A linear layer on each teacher's features", columns, rows, notes)


def dataset_table(index: pd.DataFrame) -> pd.DataFrame:
    """Return the clip counts of a dataset by split and in total: sound, unusable clips, and ground truth if known.

    Column `corrupt` is always present; `unavailable` and `excluded` only if a clip has that status."""
    unusable = ["corrupt", *(status for status in ("unavailable", "excluded") if (index["status"] == status).any())]
    rows = []
    for split in ("train", "val", "test", "all"):
        clips = index if split == "all" else index[index["split"] == split]
        row: dict[str, Any] = {
            "split": split,
            "clips": len(clips),
            "classes": clips["class"].nunique(),
            "groups": clips["group"].nunique(),
            "minutes": clips["seconds"].sum() / 60,
        }
        row |= {f"sound {kind}": int((clips["audio"] == kind).sum()) for kind in ("yes", "silent", "no")}
        row |= {status: int((clips["status"] == status).sum()) for status in unusable}
        for column, values in (("relevant", ("yes", "no")), ("correlation", ("strong", "weak"))):
            if column in clips.columns:
                row |= {f"{column} {value}": int((clips[column] == value).sum()) for value in values}
        rows.append(row)
    return pd.DataFrame(rows)


def dataset_sheet(name: str, table: pd.DataFrame) -> Sheet:
    """Return the sheet of the clip counts."""
    groups = {"sound": "sound", "relevant": "sound relevant", "correlation": "correlation"}
    columns = []
    for heading in table.columns:
        group, _, value = heading.partition(" ")
        first = heading in ("sound yes", "relevant yes", "correlation strong", "corrupt")
        columns.append(Column(value or group, groups.get(group, ""), heading != "split", first))
    rows = []
    for row in table.to_dict("records"):
        cells = [TableCell(f"{row[key]:.1f}" if key == "minutes" else str(row[key])) for key in table.columns]
        rows.append(cells)
    return Sheet(f"dataset-{name}", f"Clips of {name} by split", columns, rows)


def reasons_sheet(name: str, index: pd.DataFrame) -> Sheet:
    """Return the sheet of the reasons why clips are unusable or lack usable sound."""
    marked_clips = index[(index["reason"] != "") | (index["status"] == "corrupt")]
    counts = marked_clips.groupby(["status", "audio", "reason"]).size().sort_values(ascending=False, kind="stable")
    rows = [
        [TableCell(status), TableCell(audio), TableCell(reason), TableCell(str(n))]
        for (status, audio, reason), n in counts.items()
    ]
    columns = [*(Column(heading, number=False) for heading in ("status", "sound", "reason")), Column("clips")]
    return Sheet(f"reasons-{name}", f"Clips of {name} with problems, by reason", columns, rows)


def recipes_sheet(params: Params) -> Sheet:
    """Return the sheet of the training recipes: one column per recipe in use."""
    used = [name for name in params.recipes if any(job.recipe == name for job in params.jobs.values())]
    values = {name: params.recipes[name].model_dump(mode="json") for name in used}
    columns = [Column("", number=False), *(Column(name) for name in used)]
    rows = [
        [TableCell(key), *(TableCell(str(values[name][key])) for name in used)] for key in next(iter(values.values()))
    ]
    return Sheet("recipes", "Recipes", columns, rows)
