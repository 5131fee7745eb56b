"""The report's tables of what the suite is made of: studies, runs, teachers, datasets, recipes.

`<name>_table` gives the data that goes to tables/<name>.csv, `<name>_sheet` what page and Markdown show of it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.config.types import NO_TEACHER
from avdistill.reporting.page import (
    EMPTY,
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
from avdistill.reporting.results import interval_of, named
from avdistill.reporting.suite import EvaluatedSuite

METRICS = ("accuracy", "R@1", "mAP@100/released", "mAP@100/hits", "mAP@100/standard", "mAP@500/released")


def studies_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """The studies: which runs each has, how many of them are evaluated, and the command that runs it again."""
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
    """The studies as the page shows them."""
    columns = [Column("study", number=False), Column("what it asks", number=False)]
    columns += [Column("runs"), Column("evaluated"), Column("trainings"), Column("runs it again", number=False)]
    rows = [
        [
            *(TableCell(row[key]) for key in ("study", "title")),
            *(TableCell(str(row[key])) for key in ("runs", "evaluated", "trainings")),
            TableCell(row["command"], look="mono"),
        ]
        for row in table.to_dict("records")
    ]
    return Sheet("studies", "What each study runs", columns, rows)


def runs_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """All runs, a row each, study by study; shares in percent."""
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
            }
            for metric in METRICS:
                row |= named(metric, suite.level(run, metric))
            row["baseline"] = base or ""
            row |= named("gain", suite.gain(run, base))
            row["found"] = suite.found(run, base)
            row["gallery"] = suite.values(run, "gallery").mean()
            rows.append(row | {f"mlflow_{stage}": ids for stage, ids in suite.made_by(run).items()})
    return pd.DataFrame(rows)


def runs_sheet(suite: EvaluatedSuite, study: str, table: pd.DataFrame) -> Sheet:
    """The runs of a study as the page shows them."""
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
    alone = suite.job(suite.params.report.baseline).method
    rows = []
    for row in table.to_dict("records"):
        run, title = row["run"], suite.tooltip(row["run"])
        levels = [TableCell(spread(interval_of(row, metric)), title) for metric in METRICS]
        made = row["mlflow_evaluate"] or row["mlflow_train"]
        short = made.split()[0].partition(":")[2][:8] if made else EMPTY
        more = f" +{len(made.split()) - 1}" if len(made.split()) > 1 else ""
        gain = gain_cell(interval_of(row, "gain"), row["found"], suite.tooltip(run, row["baseline"]))
        rows.append(
            [
                *(TableCell(row[key] or EMPTY) for key in ("run", "method", "teachers", "options")),
                TableCell(str(len(row["seeds"].split())), f"seeds {row['seeds']}"),
                levels[0],
                TableCell("baseline", look="dim") if row["method"] == alone else gain,
                *levels[1:],
                TableCell(short + more, title, "mono" if made else "dim"),
            ]
        )
    bases = [base for base in dict.fromkeys(table["baseline"]) if base]
    notes = [f"Gain: over {listed(bases)}, in points of accuracy, seed by seed."] if bases else []
    name = f"runs-{study}" if study else "runs"
    caption = f"Runs of study {study}" if study else "All runs"
    return Sheet(name, caption, columns, rows, with_dagger(rows, notes))


def runs_notes(table: pd.DataFrame) -> list[str]:
    """What the columns of the tables of runs mean."""
    notes = [
        f"Percent on the test split: mean over seeds {PLUS_MINUS} half of its 95 % interval. A gain is over the run "
        "without distillation that trains the same student on the same input by the same recipe; bold where it may be "
        "claimed, coloured where it is below zero. Retrieval with test videos as queries and the training videos as "
        "gallery, by the cosine of the students' features. The three forms of mAP divide by the hits in the top K with "
        "queries without a hit left out (released), the same with such a query counting 0 (hits), and by the smaller "
        "of K and the number of relevant videos (standard)."
    ]
    capped = {size: [f"mAP@{k}" for k in (100, 500) if size < k] for size in sorted(set(table["gallery"].dropna()))}
    notes += [
        f"Gallery of {size:.0f} videos: {listed(names)} over all of them." for size, names in capped.items() if names
    ]
    return notes


def teachers_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Linear heads on the teachers' features: how good each teacher is on its own; percent."""
    rows = []
    for name, entry in suite.params.features.items():
        path = suite.params.path("teacher_head", name) / "metrics.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        rows.append(
            {
                "features": name,
                "teacher": entry.published or entry.teacher,
                "kind": "published" if entry.teacher == NO_TEACHER else suite.params.teachers[entry.teacher].kind,
                "input": entry.input,
                "val": 100 * found["accuracy"].get("val", np.nan),
                "test": 100 * found["accuracy"].get("test", np.nan),
                "majority": 100 * found.get("majority", np.nan),
                "clips": found.get("clips", {}).get("test", 0),
                "mlflow": suite.ledger.get(("teacher_head", name)) or "",
            }
        )
    return pd.DataFrame(rows)


def teachers_sheet(table: pd.DataFrame) -> Sheet:
    """The heads as the page shows them."""
    columns = [Column(heading, number=False) for heading in ("features", "teacher", "input")]
    columns += [
        Column("val", "accuracy", first=True),
        Column("test", "accuracy"),
        Column("most frequent class", first=True),
    ]
    columns.append(Column("test clips"))
    rows = [
        [
            TableCell(row["features"]),
            TableCell(f"{row['teacher']} ({row['kind']})"),
            TableCell(row["input"]),
            *(TableCell(plain(row[key]), row["mlflow"]) for key in ("val", "test", "majority")),
            TableCell(f"{row['clips']:,}"),
        ]
        for row in table.to_dict("records")
    ]
    notes = [
        "Percent of the clips that the teacher has an input for; most frequent class: what always "
        "guessing it would give."
    ]
    return Sheet("teachers", "A linear layer on each teacher's features", columns, rows, notes)


def dataset_table(index: pd.DataFrame) -> pd.DataFrame:
    """Clips of a dataset by split, and of all: how many, what sound, how many cannot be used, and the truth where
    known.

    All datasets have a column `broken`; `gone` and `excluded` are there where a clip is that."""
    unusable = ["broken", *(status for status in ("gone", "excluded") if (index["status"] == status).any())]
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
    """The counts as the page shows them."""
    groups = {"sound": "sound", "relevant": "sound belongs", "correlation": "correlation"}
    columns = []
    for heading in table.columns:
        group, _, value = heading.partition(" ")
        first = heading in ("sound yes", "relevant yes", "correlation strong", "broken")
        columns.append(Column(value or group, groups.get(group, ""), heading != "split", first))
    rows = []
    for row in table.to_dict("records"):
        cells = [TableCell(f"{row[key]:.1f}" if key == "minutes" else str(row[key])) for key in table.columns]
        rows.append(cells)
    return Sheet(f"dataset-{name}", f"Clips of {name} by split", columns, rows)


def reasons_sheet(name: str, index: pd.DataFrame) -> Sheet:
    """Why clips are broken or have no usable sound."""
    marked_clips = index[(index["reason"] != "") | (index["status"] == "broken")]
    counts = marked_clips.groupby(["status", "audio", "reason"]).size().sort_values(ascending=False, kind="stable")
    rows = [
        [TableCell(status), TableCell(audio), TableCell(reason), TableCell(str(n))]
        for (status, audio, reason), n in counts.items()
    ]
    columns = [*(Column(heading, number=False) for heading in ("status", "sound", "reason")), Column("clips")]
    return Sheet(f"reasons-{name}", f"Marked clips of {name}, by reason", columns, rows)


def recipes_sheet(params: Params) -> Sheet:
    """How the students are trained: a column a recipe that a job uses."""
    used = [name for name in params.recipes if any(job.recipe == name for job in params.jobs.values())]
    values = {name: params.recipes[name].model_dump(mode="json") for name in used}
    columns = [Column("", number=False), *(Column(name) for name in used)]
    rows = [
        [TableCell(key), *(TableCell(str(values[name][key])) for name in used)] for key in next(iter(values.values()))
    ]
    return Sheet("recipes", "Recipes", columns, rows)
