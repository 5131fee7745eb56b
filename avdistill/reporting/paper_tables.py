"""The papers' tables beside ours: what can be said, gains over the table's baseline, and levels.

A table of one setup has a column a metric. One that tries several teachers (Chen's) has, as in the paper, a row a
method and columns by teacher, and is shown once a metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from avdistill.config.report import Table
from avdistill.reporting import results
from avdistill.reporting.page import (
    EMPTY,
    NOT_RUN,
    PLUS_MINUS,
    Column,
    Plot,
    Section,
    Sheet,
    TableCell,
    claim,
    gain_cell,
    listed,
    plain,
    reported_cell,
    signed,
    spread,
    verdicts,
    with_dagger,
)
from avdistill.reporting.results import Interval, interval_of
from avdistill.reporting.suite import EvaluatedSuite

PAPERS = {
    "xia2023": "Xia et al., Robust Cross-Modal Knowledge Distillation for Unconstrained Videos, ICASSP 2023",
    "chen2021": "Chen et al., Distilling Audio-Visual Knowledge by Compositional Contrastive Learning, CVPR 2021",
}
SHORT = {"xia2023": "Xia et al. (2023)", "chen2021": "Chen et al. (2021)"}
DATASETS = {"ucf51": "UCF51", "activitynet": "ActivityNet", "kinetics_sound": "Kinetics-Sound", "vggsound": "VGGSound"}
TEACHERS = {"A": "audio teacher", "I": "image teacher", "AI": "both teachers"}


class Part(NamedTuple):
    """What one sheet shows of a paper's table: rows by method, columns by `across` (metric or setup)."""

    name: str  # ends the sheet's name; empty for the only part
    across: str
    rows: pd.DataFrame

    def columns(self) -> dict[str, str]:
        """Headings of the groups of columns, by what they show."""
        return {value: TEACHERS.get(value, value) for value in dict.fromkeys(self.rows[self.across])}

    def methods(self) -> Iterator[tuple[str, dict[str, pd.Series]]]:
        """Each method of the table with its entries by column."""
        for method, entries in self.rows.groupby("method", sort=False):
            yield str(method), {row[self.across]: row for _, row in entries.iterrows()}


def parts(compared: pd.DataFrame) -> list[Part]:
    """The sheets that a table is shown in."""
    if compared["setup"].nunique() == 1:
        return [Part("", "metric", compared)]
    metrics = list(dict.fromkeys(compared["metric"]))
    names = metrics if len(metrics) > 1 else [""]
    return [
        Part(name, "setup", compared[compared["metric"] == metric]) for name, metric in zip(names, metrics, strict=True)
    ]


def paper_table(suite: EvaluatedSuite, table: Table) -> pd.DataFrame:
    """A paper's table beside ours (see `results.compare`), with what may be claimed of each gain and which MLflow runs
    made our numbers."""
    compared = results.compare(suite.params, table, suite.measured)
    compared["found"] = [
        suite.found(*key) for key in zip(compared["run"], compared["base"], compared["metric"], strict=True)
    ]
    made = [suite.made_by(run) if run else {"train": "", "evaluate": ""} for run in compared["run"]]
    return compared.join(pd.DataFrame(made).add_prefix("mlflow_"))


def paper_section(suite: EvaluatedSuite, name: str, table: Table, compared: pd.DataFrame) -> Section:
    """A paper's table as the page shows it."""
    jobs = [suite.job(run) for run in dict.fromkeys(compared["run"]) if run]
    ours = sorted({job.dataset for job in jobs})
    students = sorted({suite.params.recipes[job.recipe].student for job in jobs})
    there = DATASETS.get(table.reported_dataset, table.reported_dataset)
    text = f"Table {table.table} of {SHORT[table.source]}, on {there}"
    if jobs:
        text += f", beside ours on {listed(ours)} with student {listed(students)}."
    else:
        text += ". None of its rows has been run in this suite."
    shown = parts(compared)
    gains = [gains_sheet(suite, name, table, part) for part in shown]
    levels = [levels_sheet(suite, name, part) for part in shown]
    return Section(
        f"table-{name}",
        table.title,
        [text, *paper_claims(table, compared, ours)],
        gains[:1],
        [*gains[1:], *levels],
    )


def datasets_note(suite: EvaluatedSuite, tables: Iterable[Table]) -> str:
    """How to read the tables of a paper where our datasets are not the paper's; empty where they are."""
    pairs = [(table.reported_dataset, suite.job(run).dataset) for table in tables for run in table.rows.values()]
    if all(there == here for there, here in pairs):
        return ""
    return (
        "The datasets differ, so gains over the same baseline are compared; the difference of two levels says nothing."
    )


def paper_claims(table: Table, compared: pd.DataFrame, ours: list[str]) -> list[str]:
    """What our runs say of the paper's best row, and of the others, in its first metric."""
    rows = compared[(compared["metric"] == table.metrics[0]) & (compared["gain_seeds"] > 0)]
    if rows.empty:
        return []
    best = rows.loc[rows["reported"].idxmax()] if rows["reported"].notna().any() else rows.iloc[0]
    gain = interval_of(best, "gain")
    sentence = claim(best["row"], table.base, gain, best["found"], f"On {listed(ours)}, ")
    if not np.isnan(best["reported_gain"]):
        sentence += f" The paper reports {signed(best['reported_gain'])}"
        if gain.defined:
            sentence += ", outside this interval" if gain.excludes(best["reported_gain"]) else ", inside this interval"
        sentence += "."
    others = rows[rows["row"] != best["row"]]
    if others.empty:
        return [sentence]
    gains = {row["row"]: interval_of(row, "gain") for _, row in others.iterrows()}
    return [sentence, verdicts(gains, dict(zip(others["row"], others["found"], strict=True)), table.base)]


def gains_sheet(suite: EvaluatedSuite, name: str, table: Table, part: Part) -> Sheet:
    """Gains over the table's baseline, the paper's and ours."""
    pictured = list(part.columns()) if part.across == "setup" else list(part.columns())[:1]
    columns = head(part)
    for value, heading in part.columns().items():
        columns += [Column("paper", heading, first=True), Column("here", heading)]
        columns += [Column("", heading, number=False)] if value in pictured else []
    drawn = part.rows[part.rows[part.across].isin(pictured)]
    reach = drawn[["reported_gain", "gain", "gain_low", "gain_high"]].to_numpy(dtype=float)
    span = (min(0.0, np.nanmin(reach, initial=0)), max(1.0, np.nanmax(reach, initial=1)))
    rows = []
    for method, entries in part.methods():
        cells = [TableCell(method), runs_cell(entries.values())]
        for value in part.columns():
            row = entries[value]
            gain = interval_of(row, "gain")
            if method == table.base:
                there = here = TableCell("baseline", look="dim")
            else:
                there = reported_cell(row["reported_gain"], signed(row["reported_gain"]))
                here = gain_cell(gain, row["found"], suite.tooltip(row["run"], row["base"])) if row["run"] else NOT_RUN
            cells += [there, here]
            if value in pictured:
                cells.append(TableCell("") if method == table.base else TableCell("", plot=gain_plot(row, gain, span)))
        rows.append(cells)
    shown = f", {part.rows['metric'].iloc[0]}" if part.across == "setup" else ""
    notes = [
        f"Points over {table.base}. Here: the mean of the differences seed by seed {PLUS_MINUS} half of its 95 % "
        "interval; bold where a difference may be claimed; coloured where it is below zero."
    ]
    if any(metric.startswith("mAP") for metric in part.rows["metric"]):
        notes.append(
            "mAP in the form that the papers use: divided by the hits in the top K, queries without a hit left out."
        )
    legend = "Ring: the paper. Diamond and line: ours with its interval. Dashed: no gain."
    caption = f"Gain over {table.base}{shown}"
    return Sheet(sheet_name(name, "gains", part), caption, columns, rows, with_dagger(rows, notes), legend)


def gain_plot(row: pd.Series, gain: Interval, span: tuple[float, float]) -> Plot:
    """The picture of a gain on an axis that all rows of the table share."""

    def at(value: float) -> float | None:
        return None if np.isnan(value) else round(4 + 92 * (value - span[0]) / (span[1] - span[0]), 1)

    words = [f"paper {signed(row['reported_gain'])}"] if not np.isnan(row["reported_gain"]) else []
    words += [f"here {spread(gain, sign=True)}"] if gain.seeds else []
    return Plot(at(0) or 0, at(gain.low), at(gain.high), at(gain.mean), at(row["reported_gain"]), ", ".join(words))


def levels_sheet(suite: EvaluatedSuite, name: str, part: Part) -> Sheet:
    """The numbers themselves: the paper's, ours, the difference."""
    columns = head(part)
    for heading in part.columns().values():
        columns += [Column("paper", heading, first=True), Column("here", heading), Column("difference", heading)]
    rows = []
    for method, entries in part.methods():
        cells = [TableCell(method), runs_cell(entries.values())]
        for value in part.columns():
            row = entries[value]
            cells.append(reported_cell(row["reported"], plain(row["reported"])))
            if row["run"]:
                difference = EMPTY if np.isnan(row["difference"]) else signed(row["difference"])
                cells += [TableCell(spread(interval_of(row, "ours")), suite.tooltip(row["run"])), TableCell(difference)]
            else:
                cells += [NOT_RUN, TableCell("")]
        rows.append(cells)
    shown = f", {part.rows['metric'].iloc[0]}" if part.across == "setup" else ""
    notes = [
        f"Percent. Here: mean over seeds {PLUS_MINUS} half of its 95 % interval. Difference: here "
        "less paper, in points."
    ]
    caption = f"Levels: the paper, here, and their difference{shown}"
    return Sheet(sheet_name(name, "levels", part), caption, columns, rows, with_dagger(rows, notes))


def sheet_name(table: str, kind: str, part: Part) -> str:
    """Name of a sheet's Markdown file."""
    return "-".join(filter(None, [table, kind, part.name.replace("/", "-")]))


def head(part: Part) -> list[Column]:
    """The first columns: a row's name in the paper, and our runs."""
    return [Column("method", number=False), Column("our runs" if part.across == "setup" else "our run", number=False)]


def runs_cell(entries: Iterable[pd.Series]) -> TableCell:
    """Our runs of a row, what they share written once: ccl-{A,I,AI}."""
    runs = list(dict.fromkeys(row["run"] for row in entries if row["run"]))
    if not runs:
        return NOT_RUN
    stem, dash, _ = runs[0].rpartition("-")
    if len(runs) == 1 or not dash or not all(run.startswith(f"{stem}-") for run in runs):
        return TableCell(", ".join(runs))
    return TableCell(f"{stem}-{{{','.join(run.removeprefix(f'{stem}-') for run in runs)}}}")
