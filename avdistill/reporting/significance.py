"""Significance tests of differences between runs.

Runs are compared by seed and test clip (avdistill/reporting/two_way.py), in three kinds of comparison:

  baseline   each run with the run of the baseline's method that has the same dataset, input and recipe
  proposed   the run `report.proposed` with the runs of the other methods
  table      a row of a paper's table with the table's own baseline, unless covered above; also the two curves of
             accuracy against noise

All comparisons of one kind, study (or table) and metric are a *family*. Holm's correction limits the family-wise error
rate to 5 %: the verdict is higher or lower only if the corrected p is below 0.05, else undecided.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from avdistill.config.schema import Params
from avdistill.reporting import results
from avdistill.reporting.contrasts import Contrasts
from avdistill.reporting.results import interval_columns

ALPHA = 0.05  # significance level of the corrected p


class Comparison(NamedTuple):
    """A comparison of `run` with `base` in one metric; `family` is a study or a table."""

    kind: str
    family: str
    run: str
    base: str
    metric: str


def comparisons(params: Params) -> list[Comparison]:
    """Return the comparisons of a suite; a pair of runs and a metric belongs to the first kind that contains it."""
    report, runs = params.report, params.runs()
    methods = {run: params.jobs[job].method for run, (job, _) in runs.items()}
    metrics = list(dict.fromkeys(["accuracy", *(m for table in report.tables.values() for m in table.metrics)]))
    found: dict[tuple[str, str, str], Comparison] = {}

    def add(kind: str, family: str, run: str | None, base: str | None) -> None:
        if run and base and run != base and results.comparable(params, run, base):
            for metric in metrics:
                found.setdefault((run, base, metric), Comparison(kind, family, run, base, metric))

    for run, (job, _) in runs.items():
        add("baseline", params.study_of(job), run, results.counterpart(params, run, report.baseline))
    if report.proposed:
        for run, (job, _) in runs.items():
            if methods[run] not in {methods[report.baseline], methods[report.proposed]}:
                add("proposed", params.study_of(job), results.counterpart(params, run, report.proposed), run)
    for name, table in report.tables.items():
        for row in table.rows:
            method, setup = table.method_and_setup(row)
            for each in [setup] if setup else ["", "A", "I", "AI"]:
                add("table", name, table.run_of(method, each), table.run_of(table.base, each))
    if len(report.figures.noise) == 2:
        first, second = report.figures.noise.values()
        for snr, run in first.items():
            add("table", "noise", run, second.get(snr))
    return list(found.values())


def tests(params: Params, contrasts: Contrasts) -> pd.DataFrame:
    """Test every comparison of a suite; runs that are not evaluated are skipped.

    Columns: those of `Comparison`; difference (points, an interval); p; p_holm; tests (the size of the family);
    verdict (higher, lower or undecided). With one seed there is no test: p is NaN and the verdict undecided."""
    rows = []
    for comparison in comparisons(params):
        found = contrasts.contrast(comparison.metric, (comparison.run,), (comparison.base,))
        if found is not None:
            difference = interval_columns("difference", found.interval())
            rows.append({**comparison._asdict(), **difference, "p": found.p()})
    columns = [*Comparison._fields, *interval_columns("difference", results.UNKNOWN), "p"]
    table = pd.DataFrame(rows, columns=columns).astype({"difference": float, "p": float})
    families = table.groupby(["kind", "family", "metric"], sort=False)["p"]
    table["p_holm"] = families.transform(results.holm)
    table["tests"] = families.transform("count").astype(int)
    significant = table["p_holm"] < ALPHA
    table["verdict"] = "undecided"
    table.loc[significant & (table["difference"] > 0), "verdict"] = "higher"
    table.loc[significant & (table["difference"] < 0), "verdict"] = "lower"
    return table
