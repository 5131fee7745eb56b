"""Comparison of the papers' tables with our runs: gains over the table's baseline, and scores.

A table of one setup has one column per metric. A table of several setups (Chen's) has one row per method and one column
per setup, as in the paper, and one sheet per metric.
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
    MINUS,
    NOT_RUN,
    PLUS_MINUS,
    Column,
    Plot,
    Section,
    Sheet,
    TableCell,
    gain_cell,
    listed,
    plain,
    reported_cell,
    signed,
    spread,
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


class View(NamedTuple):
    """The content of one sheet of a paper's table: rows by method, columns by `across` (metric or setup)."""

    name: str  # suffix of the sheet's name; empty for a single view
    across: str
    rows: pd.DataFrame

    def columns(self) -> dict[str, str]:
        """Return the headings of the column groups by metric or setup."""
        return {value: TEACHERS.get(value, value) for value in dict.fromkeys(self.rows[self.across])}

    def methods(self) -> Iterator[tuple[str, dict[str, pd.Series]]]:
        """Yield each method of the table with its rows by column."""
        for method, entries in self.rows.groupby("method", sort=False):
            yield str(method), {row[self.across]: row for _, row in entries.iterrows()}


def views(compared: pd.DataFrame) -> list[View]:
    """Return the views of a table, without the methods and setups of which nothing was run."""
    for key in ("method", "setup"):
        compared = compared[compared.groupby(key)["run"].transform(lambda runs: (runs != "").any())]
    if compared.empty:
        return []
    if compared["setup"].nunique() == 1:
        return [View("", "metric", compared)]
    metrics = list(dict.fromkeys(compared["metric"]))
    names = metrics if len(metrics) > 1 else [""]
    return [
        View(name, "setup", compared[compared["metric"] == metric]) for name, metric in zip(names, metrics, strict=True)
    ]


def paper_table(suite: EvaluatedSuite, table: Table) -> pd.DataFrame:
    """Return `results.compare` with the verdict on each gain and the ids of the MLflow runs behind our numbers."""
    compared = results.compare(suite.params, table, suite.measured, suite.gain)
    compared["verdict"] = [
        suite.verdict(*key) for key in zip(compared["run"], compared["base"], compared["metric"], strict=True)
    ]
    ids = [suite.mlflow_ids(run) if run else {"train": "", "evaluate": ""} for run in compared["run"]]
    return compared.join(pd.DataFrame(ids).add_prefix("mlflow_"))


def paper_section(suite: EvaluatedSuite, name: str, table: Table, compared: pd.DataFrame) -> Section:
    """Return the section of one table of a paper."""
    jobs = [suite.job(run) for run in dict.fromkeys(compared["run"]) if run]
    ours = sorted({job.dataset for job in jobs})
    students = sorted({suite.params.recipes[job.recipe].student for job in jobs})
    there = DATASETS.get(table.reported_dataset, table.reported_dataset)
    text = f"Table {table.table} of {SHORT[table.source]} on {there}"
    if jobs:
        text += f", compared with our runs on {listed(ours)} (student: {listed(students)})."
    else:
        text += ". No row of it was run in this suite."
    gains = [gains_sheet(suite, name, table, view) for view in views(compared)]
    scores = [scores_sheet(suite, name, view) for view in views(compared)]
    return Section(
        f"table-{name}",
        table.title,
        [text],
        gains[:1],
        [*gains[1:], *scores],
    )


def datasets_note(suite: EvaluatedSuite, tables: Iterable[Table]) -> str:
    """Return a note if our datasets differ from those of the paper; else an empty string."""
    pairs = [(table.reported_dataset, suite.job(run).dataset) for table in tables for run in table.rows.values()]
    if all(there == here for there, here in pairs):
        return ""
    return "The datasets differ: compare gains over the same baseline, not absolute scores."


def gains_sheet(suite: EvaluatedSuite, name: str, table: Table, view: View) -> Sheet:
    """Return the sheet of the gains over the table's baseline, in the paper and in our runs."""
    plotted = list(view.columns()) if view.across == "setup" else list(view.columns())[:1]
    columns = head(view)
    for value, heading in view.columns().items():
        columns += [Column("paper", heading, first=True), Column("here", heading)]
        columns += [Column("", heading, number=False)] if value in plotted else []
    drawn = view.rows[view.rows[view.across].isin(plotted)]
    reach = drawn[["reported_gain", "gain", "gain_low", "gain_high"]].to_numpy(dtype=float)
    span = (min(0.0, np.nanmin(reach, initial=0)), max(1.0, np.nanmax(reach, initial=1)))
    rows = []
    for method, entries in view.methods():
        cells = [TableCell(method), runs_cell(entries.values())]
        for value in view.columns():
            row = entries[value]
            gain = interval_of(row, "gain")
            if method == table.base:
                there = here = TableCell("baseline", look="dim")
            else:
                there = reported_cell(row["reported_gain"], signed(row["reported_gain"]))
                title = suite.tooltip(row["run"], row["base"])
                here = gain_cell(gain, row["verdict"], title) if row["run"] else NOT_RUN
            cells += [there, here]
            if value in plotted:
                cells.append(TableCell("") if method == table.base else TableCell("", plot=gain_plot(row, gain, span)))
        rows.append(cells)
    shown = f", {view.rows['metric'].iloc[0]}" if view.across == "setup" else ""
    notes = [
        f"Points over {table.base}. Here: mean {PLUS_MINUS} half of the 95 % interval, paired by seed and clip; bold "
        "if significant, coloured if negative."
    ]
    if any(metric.startswith("mAP") for metric in view.rows["metric"]):
        notes.append("mAP as in the papers: divided by the hits in the top K; queries without a hit are ignored.")
    notes += suite.logits_note(view.rows["run"])
    legend = "Ring: paper. Diamond and line: here, with its interval. Dashed: zero."
    caption = f"Gain over {table.base}{shown}"
    return Sheet(sheet_name(name, "gains", view), caption, columns, rows, with_dagger(rows, notes), legend)


def gain_plot(row: pd.Series, gain: Interval, span: tuple[float, float]) -> Plot:
    """Return the plot of a gain; `span` (points) is the axis range shared by all rows of the table."""

    def at(value: float) -> float | None:
        return None if np.isnan(value) else round(4 + 92 * (value - span[0]) / (span[1] - span[0]), 1)

    ring = at(row["reported_gain"])
    words = [f"paper {signed(row['reported_gain'])}"] if ring is not None else []
    words += [f"here {spread(gain, sign=True)}"] if gain.seeds else []
    rings = (ring,) if ring is not None else ()
    return Plot(at(0) or 0, at(gain.low), at(gain.high), at(gain.mean), rings, ", ".join(words))


def scores_sheet(suite: EvaluatedSuite, name: str, view: View) -> Sheet:
    """Return the sheet of the scores: the paper's, ours, and their difference."""
    columns = head(view)
    for heading in view.columns().values():
        columns += [Column("paper", heading, first=True), Column("here", heading), Column("difference", heading)]
    rows = []
    for method, entries in view.methods():
        cells = [TableCell(method), runs_cell(entries.values())]
        for value in view.columns():
            row = entries[value]
            cells.append(reported_cell(row["reported"], plain(row["reported"])))
            if row["run"]:
                difference = EMPTY if np.isnan(row["difference"]) else signed(row["difference"])
                cells += [TableCell(spread(interval_of(row, "ours")), suite.tooltip(row["run"])), TableCell(difference)]
            else:
                cells += [NOT_RUN, TableCell("")]
        rows.append(cells)
    shown = f", {view.rows['metric'].iloc[0]}" if view.across == "setup" else ""
    notes = [
        f"Percent. Here: mean {PLUS_MINUS} half of the 95 % interval over seeds. Difference: here {MINUS} paper, "
        "in points."
    ]
    notes += suite.logits_note(view.rows["run"])
    caption = f"Scores{shown}"
    return Sheet(sheet_name(name, "scores", view), caption, columns, rows, with_dagger(rows, notes))


def sheet_name(table: str, kind: str, view: View) -> str:
    """Return the name of a sheet, the stem of its Markdown file."""
    return "-".join(filter(None, [table, kind, view.name.replace("/", "-")]))


def head(view: View) -> list[Column]:
    """Return the first columns: the method as named in the paper, and our run."""
    return [Column("method", number=False), Column("our runs" if view.across == "setup" else "our run", number=False)]


def runs_cell(entries: Iterable[pd.Series]) -> TableCell:
    """Return the cell of our runs of a row, with a common stem factored out: ccl-{A,I,AI}."""
    runs = list(dict.fromkeys(row["run"] for row in entries if row["run"]))
    if not runs:
        return NOT_RUN
    stem, dash, _ = runs[0].rpartition("-")
    if len(runs) == 1 or not dash or not all(run.startswith(f"{stem}-") for run in runs):
        return TableCell(", ".join(runs))
    return TableCell(f"{stem}-{{{','.join(run.removeprefix(f'{stem}-') for run in runs)}}}")
