"""Which differences between runs may be claimed.

Runs are compared seed by seed with the paired t test, in three kinds of comparison:

  baseline   each run with the run of the baseline's method that trains the same student in the same way
  proposed   the run `report.proposed` with those of each other method
  table      a row of a paper's table with the table's own baseline, where that is neither of these; likewise the two
             curves of accuracy against noise

The comparisons of one kind in one study (or table) and one metric are a *family*; Holm's correction keeps the chance
of even one false claim among them below 5 %. A gain or a loss is claimed only if the corrected p is below 0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from avdistill.config.schema import Params
from avdistill.reporting import results
from avdistill.reporting.results import named, percent

LEVEL = 0.05


class Comparison(NamedTuple):
    """A question that the suite asks: does `run` do better than `base`? `family` is a study or a table."""

    kind: str
    family: str
    run: str
    base: str
    metric: str


def comparisons(params: Params) -> list[Comparison]:
    """Every comparison of a suite, each once: a pair of runs and a metric is of the first kind that has it."""
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


def tests(params: Params, values: Callable[[str, str], pd.Series]) -> pd.DataFrame:
    """Every comparison tested. `values(run, metric)` gives shares by seed; runs that have none are left out.

    Columns: those of `Comparison`; difference (points, an interval); p; p_holm; tests (the size of the family);
    found: gain, loss, or empty where nothing can be claimed. With one seed there is no test: p is NaN."""
    rows = []
    for comparison in comparisons(params):
        ours, base = (values(run, comparison.metric) for run in (comparison.run, comparison.base))
        difference = results.paired_difference(ours, base)
        if difference.seeds:
            p = results.paired_p(difference)
            rows.append({**comparison._asdict(), **named("difference", percent(difference)), "p": p})
    columns = [*Comparison._fields, *named("difference", results.UNKNOWN), "p"]
    table = pd.DataFrame(rows, columns=columns).astype({"difference": float, "p": float})
    families = table.groupby(["kind", "family", "metric"], sort=False)["p"]
    table["p_holm"] = families.transform(results.holm)
    table["tests"] = families.transform("count").astype(int)
    claimed = table["p_holm"] < LEVEL
    table["found"] = ""
    table.loc[claimed & (table["difference"] > 0), "found"] = "gain"
    table.loc[claimed & (table["difference"] < 0), "found"] = "loss"
    return table
