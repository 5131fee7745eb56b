"""Tables of the report beyond both papers: significance tests, noise, detection of irrelevant sound, cost.

`<name>_table` returns the data of tables/<name>.csv, `<name>_sheet` its display on the page and in Markdown.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.reporting import results
from avdistill.reporting.page import (
    EMPTY,
    MINUS,
    NOT_RUN,
    PLUS_MINUS,
    SIGNIFICANT,
    Column,
    Sheet,
    TableCell,
    gain_cell,
    listed,
    plain,
    probability,
    spread,
    symbol,
    with_dagger,
)
from avdistill.reporting.results import interval_columns, interval_of
from avdistill.reporting.suite import EvaluatedSuite

WEAK = 0.01  # gradient relative to the cross-entropy's, below which a term hardly moves the student
KINDS = {
    "baseline": "Each run against its baseline",
    "proposed": "The proposed method against each other method",
    "table": "Table rows against the baseline of the table",
}
MEMORY = {
    "cuda": "peak of the CUDA allocator during the step",
    "cpu": "tensors that autograd saves for backward, plus parameters, gradients, buffers, optimizer state and teacher "
    "features",
}


def tests_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return every significance test with the ids of the MLflow runs that evaluated its two runs."""
    ids = {run: suite.mlflow_ids(run)["evaluate"] for run in suite.evaluated}
    sides = {f"mlflow_{side}": suite.tests[side].map(ids) for side in ("run", "base")}
    return suite.tests.assign(**sides)


def tests_sheets(suite: EvaluatedSuite, table: pd.DataFrame) -> list[Sheet]:
    """Return the tests of accuracy, one sheet per kind; the other metrics are only in the CSV file."""
    sheets = []
    for kind, caption in KINDS.items():
        chosen = table[(table["kind"] == kind) & (table["metric"] == "accuracy")]
        if chosen.empty:
            continue
        columns = [Column("study" if kind != "table" else "table", number=False)]
        columns += [Column("run", number=False), Column("base", number=False), Column("difference", first=True)]
        columns += [Column("seeds"), Column("p"), Column("p, Holm"), Column("tests"), Column("verdict", number=False)]
        rows = []
        for row in chosen[chosen["p"].notna()].to_dict("records"):
            difference = interval_of(row, "difference")
            cells = [TableCell(row["family"] or "all"), TableCell(row["run"]), TableCell(row["base"])]
            cells.append(gain_cell(difference, row["verdict"], suite.tooltip(row["run"], row["base"])))
            cells += [
                TableCell(str(difference.seeds)),
                TableCell(probability(row["p"])),
                TableCell(probability(row["p_holm"])),
            ]
            cells += [
                TableCell(str(row["tests"])),
                TableCell(row["verdict"], look="" if row["verdict"] in SIGNIFICANT else "dim"),
            ]
            rows.append(cells)
        notes = [
            f"Accuracy, run {MINUS} base, in points: mean {PLUS_MINUS} half of the 95 % interval, paired by seed and "
            "clip; p of the two-sided test, and p after Holm's correction for the tests of the same "
            f"{'paper table' if kind == 'table' else 'study'}. Undecided: corrected p of 0.05 or more."
        ]
        if untested := list(dict.fromkeys(chosen[chosen["p"].isna()]["run" if kind != "proposed" else "base"])):
            notes.append(f"Not tested (one common seed, or the same difference in all seeds): {listed(untested)}.")
        sheets.append(Sheet(f"tests-{kind}", caption, columns, rows, notes))
    return sheets


def teacher_warning(suite: EvaluatedSuite) -> str:
    """Return a warning if teachers of generated sounds or images taught on real videos; else an empty string."""
    params = suite.params
    used = {features for run in suite.evaluated for features in (suite.job(run).A, suite.job(run).I)}
    names = sorted(
        entry.teacher
        for entry in (params.features[features] for features in used & set(params.features))
        if entry.teacher in params.teachers
        and params.teachers[entry.teacher].weights == "avsynth"
        and params.datasets[entry.dataset].origin.kind != "avsynth"
    )
    if not names:
        return ""
    return (
        f"Warning: teacher {listed(names)} was trained on generated data only (weights: avsynth). On real videos, "
        "distillation from it may lower the accuracy; use a published checkpoint."
    )


def detection_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return the AUROC of each clip score of each run by split, as a mean over seeds with its interval."""
    rows = []
    for (run, score, split), found in suite.detection.groupby(["run", "score", "split"], sort=False):
        auroc = results.student_interval(results.by_draw(found.set_index("seed")["auroc"], suite.draws))
        mlflow = {f"mlflow_{stage}": ids for stage, ids in suite.mlflow_ids(run).items()}
        key = {"run": run, "score": score, "split": split}
        rows.append({**key, **interval_columns("auroc", auroc), "clips": found["clips"].mean(), **mlflow})
    return pd.DataFrame(rows)


def detection_sheet(suite: EvaluatedSuite, table: pd.DataFrame) -> Sheet:
    """Return the sheet of the AUROCs: one row per run, one column per clip score and split."""
    scores, splits = list(dict.fromkeys(table["score"])), [p for p in ("train", "test") if p in set(table["split"])]
    known = {(row["run"], row["score"], row["split"]): row for row in table.to_dict("records")}
    columns = [Column("run", number=False)]
    columns += [Column(split, symbol(score), first=split == splits[0]) for score in scores for split in splits]
    rows = []
    for run in dict.fromkeys(table["run"]):
        cells = [TableCell(run)]
        for score in scores:
            for split in splits:
                row = known.get((run, score, split))
                auroc = interval_of(row, "auroc") if row else results.UNKNOWN
                looks = ["strong" if auroc.excludes(0.5) else "", "lower" if auroc.mean < 0.5 else ""]
                cells.append(TableCell(spread(auroc, 2), suite.tooltip(run), " ".join(filter(None, looks))))
        rows.append(cells)
    notes = [
        f"AUROC, mean {PLUS_MINUS} half of the 95 % interval over seeds; bold if the interval excludes 0.5 (chance), "
        "coloured if below."
    ]
    return Sheet("detection", "Detection of clips with relevant sound", columns, rows, with_dagger(rows, notes))


def cost_table(params: Params) -> pd.DataFrame:
    """Read the measurements of stage cost; empty if `report.cost` names no runs."""
    path = params.path("cost") / "cost.csv"
    return results.read_table(path, ("run", "baseline", "relative")) if path.exists() else pd.DataFrame()


def gradients_table(params: Params) -> pd.DataFrame:
    """Read the gradients of the terms of each loss, as measured by stage cost; empty if there are none."""
    path = params.path("cost") / "gradients.csv"
    return results.read_table(path, ("run", "term", "start", "end")) if path.exists() else pd.DataFrame()


def gradients_sheet(table: pd.DataFrame) -> Sheet:
    """Return the sheet of the gradients: one row per run and term."""
    columns = [Column("run", number=False), Column("term", number=False), Column("start", first=True), Column("end")]
    rows = []
    for run, term, start, end in table[["run", "term", "start", "end"]].itertuples(index=False):
        cells = [
            TableCell(EMPTY if np.isnan(value) else f"{value:.2g}", look="dim" if value < WEAK else "")
            for value in (start, end)
        ]
        rows.append([TableCell(run), TableCell(term), *cells])
    notes = [
        "Length of each term's gradient on the student, relative to the plain cross-entropy's: with untrained networks "
        f"and with those of the selected epoch (first seed, one batch). Below {WEAK:g} (dim) a term is in fact off; "
        "0 is a term of the method's own networks."
    ]
    return Sheet("gradients", "What each term does to the student", columns, rows, notes)


def cost_sheet(table: pd.DataFrame, mlflow_id: str | None) -> Sheet:
    """Return the sheet of the cost of a training step: one row per run."""
    columns = [*(Column(heading, number=False) for heading in ("run", "method", "teachers", "baseline"))]
    columns += [Column("added", "parameters", first=True), Column("% of student", "parameters")]
    columns += [Column("milliseconds", "step", first=True), Column("relative", "step"), Column("quartiles", "step")]
    columns += [Column("MiB", "memory", first=True), Column("relative", "memory")]
    title = f"MLflow cost {mlflow_id}" if mlflow_id else ""
    rows = []
    for row in table.to_dict("records"):
        quartiles = f"{row['relative_low']:.2f} to {row['relative_high']:.2f}"
        cells = [TableCell(row[key] or EMPTY) for key in ("run", "method", "teachers", "baseline")]
        cells += [
            TableCell(f"{row['added_parameters']:,.0f}"),
            TableCell(plain(100 * row["added_parameters"] / row["student_parameters"])),
            TableCell(f"{1000 * row['seconds']:.1f}"),
            TableCell(f"{row['relative']:.2f}", look="strong"),
            TableCell(quartiles, look="dim"),
            TableCell(f"{row['memory'] / 2**20:.1f}"),
            TableCell(f"{row['memory_relative']:.2f}"),
        ]
        rows.append([cell._replace(title=title) for cell in cells])
    device = str(table["device"].iloc[0])
    notes = [
        "Added parameters: trainable parameters of the method itself. Step: median time of forward, backward and "
        "optimizer, without data loading, alternating with steps of the baseline in one process. Relative: median "
        "ratio of neighbouring steps. Memory: "
        f"{MEMORY.get(device.partition(':')[0], MEMORY['cpu'])}. Measured on {device}"
        f"{' with one thread' if device == 'cpu' else ''}."
    ]
    return Sheet("cost", "Cost of a training step", columns, rows, notes)


def noise_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return the accuracy (percent) of each curve of `report.figures.noise` at each signal-to-noise ratio."""
    rows = []
    for curve, runs in suite.params.report.figures.noise.items():
        for snr, run in runs.items():
            score = suite.score(run, "accuracy")
            mlflow = {f"mlflow_{stage}": ids for stage, ids in suite.mlflow_ids(run).items()} if score.seeds else {}
            rows.append({"curve": curve, "snr_db": snr, "run": run, **interval_columns("accuracy", score), **mlflow})
    return pd.DataFrame(rows)


def noise_sheet(suite: EvaluatedSuite, table: pd.DataFrame) -> Sheet:
    """Return the sheet of accuracy against noise: one row per SNR, one column per curve, and the difference of two."""
    curves = list(dict.fromkeys(table["curve"]))
    runs = table.set_index(["curve", "snr_db"])["run"].to_dict()
    two = len(curves) == 2
    columns = [Column("SNR", number=False), *(Column(curve, first=True) for curve in curves)]
    columns += [Column("difference", first=True)] if two else []
    rows = []
    for snr in sorted(set(table["snr_db"]), key=lambda value: -np.inf if value == "clean" else -value):
        cells = [TableCell(snr if snr == "clean" else f"{snr:g} dB".replace("-", MINUS))]
        here = [runs.get((curve, snr), "") for curve in curves]
        for run in here:
            score = suite.score(run, "accuracy")
            cells.append(TableCell(spread(score), suite.tooltip(run)) if score.seeds else NOT_RUN)
        if two:
            first, second = here
            verdict = suite.verdict(first, second)
            cells.append(gain_cell(suite.gain(first, second), verdict, suite.tooltip(first, second)))
        rows.append(cells)
    notes = [
        f"Accuracy in percent, mean {PLUS_MINUS} half of the 95 % interval over seeds. SNR: power of the clip's sound "
        "over the sound of another class mixed into the teacher's input."
    ]
    if two:
        notes.append(
            f"Difference: {curves[0]} {MINUS} {curves[1]}, in points, paired by seed and clip; bold if significant."
        )
    base = suite.params.report.baseline
    if (score := suite.score(base, "accuracy")).seeds:
        notes.append(f"Baseline {base} (no teacher): {spread(score)}.")
    return Sheet("noise", "Accuracy against noise in the sound", columns, rows, with_dagger(rows, notes))
