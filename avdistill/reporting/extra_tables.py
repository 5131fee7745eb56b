"""What the report shows beyond both papers: tests, accuracy against noise, what the scores find, what methods cost.

`<name>_table` gives the data that goes to tables/<name>.csv, `<name>_sheet` what page and Markdown show of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.reporting import results
from avdistill.reporting.page import (
    EMPTY,
    MINUS,
    NOT_RUN,
    PLUS_MINUS,
    Column,
    Sheet,
    TableCell,
    gain_cell,
    listed,
    plain,
    plural,
    probability,
    signed,
    some,
    spread,
    symbol,
    with_dagger,
)
from avdistill.reporting.results import interval_of, named
from avdistill.reporting.suite import EvaluatedSuite

FOUND = {"gain": "over", "loss": "against"}
KINDS = {
    "baseline": "Each run with its baseline",
    "proposed": "The proposed method with each other",
    "table": "Rows of a table with the table's own baseline",
}
MEMORY = {
    "cuda": "the most that the GPU's allocator held for it in a step",
    "cpu": "what autograd saves for the backward pass, and what is kept from step to step (parameters, gradients, "
    "buffers, the optimizer's state, the teachers' features)",
}


def tests_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Every comparison with its test, and the MLflow runs that evaluated its two sides."""
    made = {run: suite.made_by(run)["evaluate"] for run in suite.evaluated}
    sides = {f"mlflow_{side}": suite.tests[side].map(made) for side in ("run", "base")}
    return suite.tests.assign(**sides)


def tests_sheets(suite: EvaluatedSuite, table: pd.DataFrame) -> list[Sheet]:
    """The tests of accuracy, a sheet a kind; the other metrics stand in the CSV file."""
    sheets = []
    for kind, caption in KINDS.items():
        asked = table[(table["kind"] == kind) & (table["metric"] == "accuracy")]
        if asked.empty:
            continue
        columns = [Column("study" if kind != "table" else "table", number=False)]
        columns += [Column("run", number=False), Column("over", number=False), Column("difference", first=True)]
        columns += [Column("seeds"), Column("p"), Column("p, Holm"), Column("tests"), Column("found", number=False)]
        rows = []
        for row in asked[asked["p"].notna()].to_dict("records"):
            difference = interval_of(row, "difference")
            cells = [TableCell(row["family"] or "all"), TableCell(row["run"]), TableCell(row["base"])]
            cells.append(gain_cell(difference, row["found"], suite.tooltip(row["run"], row["base"])))
            cells += [
                TableCell(str(difference.seeds)),
                TableCell(probability(row["p"])),
                TableCell(probability(row["p_holm"])),
            ]
            cells += [
                TableCell(str(row["tests"])),
                TableCell(row["found"] or "nothing", look="" if row["found"] else "dim"),
            ]
            rows.append(cells)
        notes = [
            f"Accuracy in points: the mean of the differences seed by seed {PLUS_MINUS} half of its 95 % interval, and "
            "the p of its two-sided paired t test. Holm: corrected for the number of tests of the same "
            f"{'paper table' if kind == 'table' else 'study'}; found only where that is below 0.05."
        ]
        if untested := list(dict.fromkeys(asked[asked["p"].isna()]["run" if kind != "proposed" else "base"])):
            notes.append(f"Not tested (one seed in common, or the same difference in all): {listed(untested)}.")
        sheets.append(Sheet(f"tests-{kind}", caption, columns, rows, notes))
    return sheets


def tests_sentence(suite: EvaluatedSuite, table: pd.DataFrame) -> str:
    """How the proposed method stands beside each other one; empty where the suite does not ask."""
    proposed = suite.params.report.proposed
    asked = table[(table["kind"] == "proposed") & (table["metric"] == "accuracy") & (table["run"] == proposed)]
    if asked.empty:
        return ""
    rows = asked.sort_values("difference", ascending=False, kind="stable").to_dict("records")
    names_of = {
        found: [f"{r['base']} {signed(r['difference'])}" for r in rows if r["found"] == found] for found in FOUND
    }
    rest = [row for row in rows if not row["found"]]
    sentences = [f"{proposed} beside {plural(len(rows), 'run')} of other methods."]
    sentences += [f"A {found} {FOUND[found]} {listed(names)}." for found, names in names_of.items() if names]
    if rest:
        below = some([f"{row['base']} {signed(row['difference'])}" for row in rest if row["difference"] < 0])
        untested = sum(np.isnan(row["p"]) for row in rest)
        sentences.append(
            f"For {'the other ' if len(rest) < len(rows) else ''}{len(rest)} no difference can be claimed "
            f"({untested} not tested: one seed); it is lower than {below or 'none of them'}."
        )
    return " ".join(sentences)


def detection_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """AUROC of each score of each run, by split, over seeds."""
    rows = []
    for (run, score, split), found in suite.detection.groupby(["run", "score", "split"], sort=False):
        auroc = results.student_interval(found["auroc"])
        made = {f"mlflow_{stage}": ids for stage, ids in suite.made_by(run).items()}
        key = {"run": run, "score": score, "split": split}
        rows.append({**key, **named("auroc", auroc), "clips": found["clips"].mean(), **made})
    return pd.DataFrame(rows)


def detection_sheet(suite: EvaluatedSuite, table: pd.DataFrame) -> Sheet:
    """How well the scores find clips whose sound belongs: a row a run, columns by score and split."""
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
        f"AUROC, mean over seeds {PLUS_MINUS} half of its 95 % interval; bold where the interval excludes 0.5, which "
        "is chance; coloured where it is below."
    ]
    return Sheet(
        "detection", "Finding the clips whose sound belongs to the action", columns, rows, with_dagger(rows, notes)
    )


def detection_sentence(table: pd.DataFrame, proposed: str | None) -> str:
    """How well the scores of one run, the proposed one if it has any, find sound that belongs; empty without scores."""
    tests = table[table["split"] == "test"] if len(table) else table
    if tests.empty:
        return ""
    run = proposed if proposed in set(tests["run"]) else tests["run"].iloc[0]
    claims = [detection_claim(row) for row in tests[tests["run"] == run].to_dict("records")]
    return (
        "How well a score tells clips whose sound belongs to the action from the others, as AUROC on the test split "
        f"(0.5 is chance): {listed(claims)}."
    )


def detection_claim(row: dict[str, Any]) -> str:
    """How well one score of one run finds clips whose sound belongs, in words."""
    auroc = interval_of(row, "auroc")
    if not auroc.defined:
        found = "one seed, so nothing can be claimed"
    elif not auroc.excludes(0.5):
        found = "not to be told from chance"
    else:
        found = (
            "better than chance"
            if auroc.mean > 0.5
            else "worse than chance: it is higher where the sound does not belong"
        )
    return f"{symbol(row['score'])} of {row['run']} {spread(auroc, 2)} ({found})"


def cost_table(params: Params) -> pd.DataFrame:
    """What stage cost measured; empty where the suite names no runs."""
    path = params.path("cost") / "cost.csv"
    return results.read_table(path, ("run", "baseline", "relative")) if path.exists() else pd.DataFrame()


def cost_sheet(table: pd.DataFrame, made_by: str | None) -> Sheet:
    """What each method adds to a step of its baseline: a row a run."""
    columns = [*(Column(heading, number=False) for heading in ("run", "method", "teachers", "baseline"))]
    columns += [Column("added", "parameters", first=True), Column("% of student", "parameters")]
    columns += [Column("milliseconds", "step", first=True), Column("relative", "step"), Column("quartiles", "step")]
    columns += [Column("MiB", "memory", first=True), Column("relative", "memory")]
    title = f"MLflow cost {made_by}" if made_by else ""
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
        "Parameters: trainable ones of the method itself. Step: the median of steps of training (forward, backward, "
        "optimizer; no reading of data), taken in turn with steps of the baseline in one process; relative is the "
        "median of the ratios of neighbouring steps. Memory of a step: "
        f"{MEMORY.get(device.partition(':')[0], MEMORY['cpu'])}. Measured on {device}"
        f"{' with one thread' if device == 'cpu' else ''}."
    ]
    return Sheet("cost", "Cost of a training step", columns, rows, notes)


def noise_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Accuracy of each curve of `report.figures.noise` at each signal-to-noise ratio, in percent."""
    rows = []
    for curve, runs in suite.params.report.figures.noise.items():
        for snr, run in runs.items():
            level = suite.level(run, "accuracy")
            made = {f"mlflow_{stage}": ids for stage, ids in suite.made_by(run).items()} if level.seeds else {}
            rows.append({"curve": curve, "snr_db": snr, "run": run, **named("accuracy", level), **made})
    return pd.DataFrame(rows)


def noise_sheet(suite: EvaluatedSuite, table: pd.DataFrame) -> Sheet:
    """Accuracy against noise: a row a ratio, columns by curve, and their difference where there are two."""
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
            level = suite.level(run, "accuracy")
            cells.append(TableCell(spread(level), suite.tooltip(run)) if level.seeds else NOT_RUN)
        if two:
            first, second = here
            found = suite.found(first, second)
            cells.append(gain_cell(suite.gain(first, second), found, suite.tooltip(first, second)))
        rows.append(cells)
    notes = [
        f"Accuracy in percent, mean over seeds {PLUS_MINUS} half of its 95 % interval. SNR: the loudness of the clip's "
        "own sound over that of another class mixed into it, in what the teacher hears in training."
    ]
    if two:
        notes.append(
            f"Difference: {curves[0]} less {curves[1]}, in points, seed by seed; bold where it may be claimed."
        )
    base = suite.params.report.baseline
    if (level := suite.level(base, "accuracy")).seeds:
        notes.append(f"The baseline {base}, which has no teacher: {spread(level)}.")
    return Sheet("noise", "Accuracy against the noise in the sound", columns, rows, with_dagger(rows, notes))
