"""Measurements of a suite, read from the files of stage evaluate, and the statistics of figures and report.

The interval of a score is a 95 % Student's t interval over seeds: it covers the variation between seeds, not the
sampling of test clips. avdistill/reporting/two_way.py has the interval of a difference between runs, which covers both.

Seeds that share a draw of the teachers (avdistill/data/draws.py) are not independent. Everything is first averaged over
the seeds of a draw, and statistics take the draws for seeds: seeds that share a draw count as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from avdistill.config.report import Table
from avdistill.config.schema import Params
from avdistill.data.draws import draws_of
from avdistill.pipeline.errors import UserError, nearest

REPORTED = Path(__file__).with_name("reported_results.csv")
# Text columns; all others are numeric.
TEXT = {"id", "class", "true", "predicted", "run", "metric", "score", "split", "relevant", "reason", "term"}
TEXT |= {"source", "task", "dataset", "setup", "method", "teachers", "baseline", "device"}
CONFIDENCE = 0.95
Measured = TypeVar("Measured", pd.Series, pd.DataFrame)
# Names of the report's own tables.
RESERVED = {"claims", "settings", "predictors", "studies", "runs", "tests", "noise", "detection"}
RESERVED |= {"cost", "gradients", "teachers", "vggsounder"}


class Interval(NamedTuple):
    """A mean over `seeds` seeds and its 95 % interval. `low` and `high` are NaN where it is undefined.

    Seeds that share a draw of the teachers count as one."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def defined(self) -> bool:
        """Whether there is an interval, which takes at least two seeds."""
        return not np.isnan(self.low)

    @property
    def half(self) -> float:
        """Half of the interval's width, the number after ±."""
        return self.high - self.mean

    def excludes(self, value: float) -> bool:
        """Return whether the interval is defined and does not contain `value`."""
        return self.defined and not self.low <= value <= self.high


UNKNOWN = Interval(np.nan, np.nan, np.nan, 0)


def percent(interval: Interval) -> Interval:
    """Convert a fraction to percent, or a difference of fractions to percentage points."""
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, interval.seeds)


def interval_columns(name: str, interval: Interval) -> dict[str, float]:
    """Return an interval as table columns: `name` (the mean), `name`_low, `name`_high, `name`_seeds."""
    mean, low, high, seeds = interval
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_seeds": seeds}


def interval_of(row: Any, name: str) -> Interval:
    """Return the interval that `interval_columns` wrote to a row (a mapping or a Series)."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row[f"{name}_seeds"]))


def by_draw(values: Measured, draws: int) -> Measured:
    """Return the means of values (index: seed, NaN ignored) over the seeds of each of the suite's draws of teachers.

    With one draw, these are the values themselves: what is computed from them holds for this draw."""
    return values.groupby(values.index % draws).mean() if draws > 1 else values


def student_interval(values: pd.Series | np.ndarray | list[float]) -> Interval:
    """Return the mean of values (one per seed or draw, NaN ignored) with its two-sided 95 % Student's t interval.

    The interval of a single value is undefined."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return UNKNOWN
    mean = float(known.mean())
    if known.size == 1:
        return Interval(mean, np.nan, np.nan, 1)
    from scipy.special import stdtrit  # the quantile that scipy.stats uses, at half the import time

    half = float(stdtrit(known.size - 1, (1 + CONFIDENCE) / 2) * known.std(ddof=1) / np.sqrt(known.size))
    return Interval(mean, mean - half, mean + half, int(known.size))


def paired_difference(ours: pd.Series, base: pd.Series, draws: int = 1) -> Interval:
    """Return the mean of ours - baseline over common seeds (index: seed), with the interval of the paired t test.

    With several `draws` of the teachers, they take the place of seeds.
    The interval is undefined if the difference is the same in all seeds: on a finite test set this is a coincidence,
    and an interval of width 0 would suggest certainty."""
    difference = (ours - base).dropna()
    found = student_interval(by_draw(difference, draws))
    return found._replace(low=np.nan, high=np.nan) if found.low == found.high else found


def paired_p(difference: Interval) -> float:
    """Return the two-sided p value of the paired t test of a difference; NaN if its interval is undefined."""
    if not difference.defined:
        return np.nan
    from scipy.special import stdtr, stdtrit

    freedom = difference.seeds - 1
    error = difference.half / stdtrit(freedom, (1 + CONFIDENCE) / 2)
    return float(2 * stdtr(freedom, -abs(difference.mean) / error))


def holm(p: Sequence[float] | pd.Series) -> list[float]:
    """Return the p values of one family after Holm's correction (Scand. J. Statist. 6, 1979), in the given order.

    In ascending order, p_(i) of m becomes max_{j <= i} min(1, (m - j + 1) p_(j)). NaN (not tested) stays NaN and is not
    counted in m."""
    values = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    order = [row for row in np.argsort(values, kind="stable") if not np.isnan(values[row])]
    largest = 0.0
    for rank, row in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * values[row]))
        corrected[row] = largest
    return corrected.tolist()


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV table that must have `columns`.

    Text columns stay text even if they look like numbers or "NA"; an empty field is missing only in numeric columns.
    Raises UserError with the file and the missing or malformed column."""
    try:
        header = pd.read_csv(path, nrows=0).columns
        lacking = [column for column in columns if column not in header]
        if lacking:
            raise UserError(f"{path}: column '{lacking[0]}' is missing; found {', '.join(header)}")
        text = [column for column in header if column in TEXT]
        numbers = {column: ["", "nan", "NaN"] for column in header if column not in TEXT}
        table = pd.read_csv(path, dtype=dict.fromkeys(text, "str"), keep_default_na=False, na_values=numbers)
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: cannot be read as a table ({' '.join(str(error).split())})") from None
    for column in columns:
        if len(table) and column not in TEXT and not pd.api.types.is_numeric_dtype(table[column]):
            raise UserError(f"{path}: column '{column}' must be numeric; found text")
    return table


def gather(params: Params, stage: str, file: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Concatenate the tables `<out>/<stage>/<job>/<file>` of all jobs, with `job` as first column.

    Jobs without the file are skipped; without any file the table is empty."""
    tables = []
    for job in params.jobs:
        path = params.path(stage, job) / file
        if path.exists():
            table = read_table(path, columns)
            table.insert(0, "job", job)
            tables.append(table[table["run"].isin(params.jobs[job].runs)])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["job", *columns])


def metric_key(metric: str) -> str:
    """Return the name that stage evaluate gives a metric of the papers, whose mAP is the form `released`."""
    return f"{metric}/released" if metric.startswith("mAP@") and "/" not in metric else metric


def by_seed(measured: pd.DataFrame, run: str | None, metric: str) -> pd.Series:
    """Return the values of one metric of a run (index: seed), in the units of stage evaluate; empty if missing."""
    rows = measured[(measured["run"] == run) & (measured["metric"] == metric_key(metric))]
    return rows.set_index("seed")["value"].astype(float)


def score(params: Params, measured: pd.DataFrame, run: str | None, metric: str) -> Interval:
    """Return the mean of one metric of a run with its interval, in the units of stage evaluate."""
    return student_interval(by_draw(by_seed(measured, run, metric), draws_of(params)))


def comparable(params: Params, run: str, other: str) -> bool:
    """Return whether two runs have the same dataset, input and recipe, so that only the method differs."""
    first, second = (params.jobs[params.runs()[name][0]] for name in (run, other))
    return (first.dataset, first.input, first.recipe) == (second.dataset, second.input, second.recipe)


def counterpart(params: Params, run: str, of: str) -> str | None:
    """Return the run to compare `run` with in place of `of`.

    This is `of` itself if comparable, else the first run of the same method that is comparable with `run` (for example
    on the dataset of `run`); None if there is none."""
    method = params.jobs[params.runs()[of][0]].method
    candidates = [of, *(name for name, (job, _) in params.runs().items() if params.jobs[job].method == method)]
    return next((name for name in candidates if comparable(params, run, name)), None)


def comparable_to_baseline(params: Params) -> list[str]:
    """Return the runs comparable with the report's baseline, without the baseline, in the order of params."""
    baseline = params.report.baseline
    return [run for run in params.runs() if run != baseline and comparable(params, run, baseline)]


def reported(table: Table) -> pd.DataFrame:
    """Return the rows of the paper's table: method, setup, metric, value (percent; NaN if not reported)."""
    facts = read_table(REPORTED, ("source", "table", "dataset", "setup", "method", "metric", "value"))
    chosen = (facts["source"] == table.source) & (facts["table"] == table.table)
    return facts[chosen & (facts["dataset"] == table.reported_dataset)].reset_index(drop=True)


def paper_tables(source: str) -> list[int]:
    """Return the numbers of the tables of a paper."""
    facts = read_table(REPORTED, ("source", "table"))
    return sorted(set(facts[facts["source"] == source]["table"].astype(int)))


def check_tables(params: Params) -> None:
    """Check `report.tables` against the papers' tables, and that each run of `report.cost` has a baseline.

    Raises UserError with the key in params."""
    for run in params.report.cost:
        if counterpart(params, run, params.report.baseline) is None:
            method = params.jobs[params.runs()[params.report.baseline][0]].method
            raise UserError(
                f"{params.suite.file}: report.cost: '{run}' has no baseline; expected a run of method {method} with "
                "the same dataset, input and recipe"
            )
    for name, table in params.report.tables.items():
        key = f"{params.suite.file}: report.tables.{name}"
        if name in RESERVED or name.startswith("dataset-"):
            raise UserError(f"{key}: the name is reserved for a table of the report; choose another")
        facts = reported(table)
        if facts.empty:
            held = read_table(REPORTED, ())
            held = held[(held["source"] == table.source) & (held["table"] == table.table)]
            if held.empty:
                raise UserError(f"{key}.table: {table.source} has no table {table.table} in {REPORTED.name}")
            hint = nearest(table.reported_dataset, held["dataset"].unique())
            raise UserError(f"{key}.reported_dataset: the table has no '{table.reported_dataset}'; {hint}")
        setups = {(method, "") for method in facts["method"]} | set(zip(facts["method"], facts["setup"], strict=True))
        for row in table.rows:
            if table.method_and_setup(row) not in setups:
                hint = nearest(row, facts["method"].unique())
                raise UserError(f"{key}.rows: the paper's table has no row '{row}'; {hint}")
        for metric in table.metrics:
            if metric not in set(facts["metric"]):
                hint = nearest(metric, facts["metric"].unique())
                raise UserError(f"{key}.metrics: the paper's table has no '{metric}'; {hint}")


def compare(
    params: Params, table: Table, measured: pd.DataFrame, difference: Callable[[str, str, str], Interval]
) -> pd.DataFrame:
    """Compare a paper's table with our runs: one row per method, setup and metric, in the order of the paper.

    `difference(run, base, metric)` returns the difference of two runs in points.

    Columns: method, setup, row (the method, with its setup if the table has several), run (empty if none), metric;
    reported (percent), ours (percent, an interval), difference (ours - reported, points); base, reported_gain (points
    over the table's baseline) and gain (an interval: our run - run `base`)."""
    facts = reported(table)
    values = facts.set_index(["method", "setup", "metric"])["value"].to_dict()
    several = facts["setup"].nunique() > 1
    rows = []
    for method, setup in facts[["method", "setup"]].drop_duplicates().itertuples(index=False):
        run, base = table.run_of(method, setup), table.run_of(table.base, setup)
        for metric in table.metrics:
            ours = by_seed(measured, run, metric)
            score = student_interval(by_draw(ours, draws_of(params)))
            compared = score.seeds > 0 and base and method != table.base and comparable(params, run or "", base)
            gain = difference(run or "", base or "", metric) if compared else UNKNOWN
            value = values.get((method, setup, metric), np.nan)
            rows.append(
                {
                    "method": method,
                    "setup": setup,
                    "row": f"{method} ({setup})" if several else method,
                    "run": run if len(ours) else "",
                    "metric": metric,
                    "reported": value,
                    **interval_columns("ours", percent(score)),
                    "difference": 100 * score.mean - value,
                    "base": base if gain.seeds else "",
                    "reported_gain": value - values.get((table.base, setup, metric), np.nan),
                    **interval_columns("gain", gain),
                }
            )
    return pd.DataFrame(rows)
