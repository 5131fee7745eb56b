"""Results of an ablation: a table, a figure and a self-contained page.

flows/ablations.py collects the measurements; this module writes:

  results.csv   one row per point and run: the varied settings; the metric (percent) and its gain over the baseline
                (points), each with a 95 % Student's t interval over seeds (gains are paired by seed); p of the gain
                after Holm's correction for all gains of the ablation; wall time of the point in seconds
  picture.png   one varied setting: curves with intervals; two: heat maps of the gain (of the metric without baseline)
  index.html    table and figure, the best point, and the total time
"""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from avdistill.data.files import write_csv, write_text
from avdistill.reporting import results
from avdistill.reporting.figures import COLORS, GREY, NoDataError, bare, new_figure
from avdistill.reporting.page import EMPTY, TEMPLATES, plural, signed, spread
from avdistill.reporting.results import Interval, interval_columns, interval_of, percent
from avdistill.reporting.significance import ALPHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Ablation(NamedTuple):
    """An ablation: `grid` holds the values of each setting by its label in tables, `labels` its words in figures.

    Gains are over run `baseline`, if given, at the same point."""

    name: str
    runs: tuple[str, ...]
    baseline: str | None
    metric: str
    grid: dict[str, list[Any]]
    labels: dict[str, str]
    draws: int = 1  # of the suite's teachers

    @property
    def varied(self) -> list[str]:
        """Keys with several values: the axes of the figure."""
        return [key for key, values in self.grid.items() if len(values) > 1]


def summarise(ablation: Ablation, measured: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of results.csv.

    `measured` has one row per point, run, seed and metric. Its columns are point, seconds, run, seed, metric, value,
    and one per key of the grid."""
    keys, rows = list(ablation.grid), []
    for _, here in measured.groupby("point", sort=False):
        base = results.by_seed(here, ablation.baseline, ablation.metric)
        for run in dict.fromkeys(here["run"]):
            ours = results.by_seed(here, run, ablation.metric)
            different = run != ablation.baseline
            gain = results.paired_difference(ours, base, ablation.draws) if different else results.UNKNOWN
            score = percent(results.student_interval(results.by_draw(ours, ablation.draws)))
            rows.append(
                {
                    **{key: here[key].iloc[0] for key in keys},
                    "run": run,
                    **interval_columns(ablation.metric, score),
                    **interval_columns("gain", percent(gain)),
                    "p": results.paired_p(gain),
                    "seconds": here["seconds"].iloc[0],
                    "point": here["point"].iloc[0],
                }
            )
    intervals = [*interval_columns(ablation.metric, results.UNKNOWN), *interval_columns("gain", results.UNKNOWN)]
    table = pd.DataFrame(rows, columns=[*keys, "run", *intervals, "p", "seconds", "point"])
    table["p"] = results.holm(table["p"])
    return table


def best(ablation: Ablation, table: pd.DataFrame) -> pd.Series | None:
    """Return the row with the highest gain, or metric if there are no gains; None if nothing was measured."""
    own = table[table["run"] != ablation.baseline]
    value = "gain" if own["gain"].notna().any() else ablation.metric
    return None if own.empty or own[value].isna().all() else own.loc[own[value].idxmax()]


def verdict(ablation: Ablation, table: pd.DataFrame) -> list[str]:
    """Return sentences on the best point, the significant gains and the total time."""
    top = best(ablation, table)
    if top is None:
        return ["No point was measured."]
    where = ", ".join(f"{key} {value(top[key])}" for key in ablation.varied) or "the only point"
    score, gain = interval_of(top, ablation.metric), interval_of(top, "gain")
    over = f", {spread(gain, sign=True)} points over {ablation.baseline}" if gain.seeds else ""
    gains = table["gain"].notna()
    points = table["point"].nunique()
    sentences = [f"Best of {plural(points, 'point')}: {top['run']} at {where}, {spread(score)} %{over}."]
    if gains.any():
        significant = table[gains & (table["p"] < ALPHA)]
        higher, lower = int((significant["gain"] > 0).sum()), int((significant["gain"] < 0).sum())
        sentences.append(
            f"Of {plural(int(gains.sum()), 'gain')} over {ablation.baseline}, {higher} are significantly above zero "
            f"and {lower} significantly below (corrected p below {ALPHA})."
        )
    seconds = table.drop_duplicates("point")["seconds"].dropna()
    if len(seconds):
        sentences.append(f"Time per point: {seconds.mean():,.0f} s; total: {seconds.sum():,.0f} s.")
    sentences.append("The best point is selected on the test split, so its score is optimistic.")
    return sentences


def value(given: Any) -> str:
    """Format the value of a setting."""
    return f"{given:g}" if isinstance(given, int | float | np.number) and not isinstance(given, bool) else str(given)


def markdown(ablation: Ablation, table: pd.DataFrame) -> str:
    """Return the summary and the table as Markdown."""
    heads = [*ablation.grid, "run", f"{ablation.metric} (%)", "gain (points)", "p", "seconds"]
    lines = [heads, ["---"] * len(heads), *cells(ablation, table)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([*verdict(ablation, table), text, "± 95 % interval over seeds; p after Holm's correction."])


def cells(ablation: Ablation, table: pd.DataFrame) -> list[list[str]]:
    """Return the table as formatted text, without the names of the points."""
    rows = []
    for _, row in table.iterrows():
        p = EMPTY if np.isnan(row["p"]) else f"{row['p']:.3f}"
        seconds = EMPTY if np.isnan(row["seconds"]) else f"{row['seconds']:.0f}"
        numbers = [spread(interval_of(row, ablation.metric)), spread(interval_of(row, "gain"), sign=True), p, seconds]
        rows.append([*(value(row[key]) for key in ablation.grid), row["run"], *numbers])
    return rows


def draw(ablation: Ablation, table: pd.DataFrame) -> Figure:
    """Draw curves for one varied setting, or one heat map per run for two.

    Raises NoDataError for another number of varied settings, or without measurements."""
    import matplotlib as mpl

    from avdistill.reporting.figures import STYLE

    if table.empty or not 1 <= len(ablation.varied) <= 2:
        raise NoDataError("a figure needs one or two varied settings and at least one measured point")
    with mpl.rc_context(STYLE):
        return _curves(ablation, table) if len(ablation.varied) == 1 else _maps(ablation, table)


def _curves(ablation: Ablation, table: pd.DataFrame) -> Figure:
    """Draw the metric against the varied setting, and beside it the gain if there is one."""
    (key,) = ablation.varied
    values = ablation.grid[key]
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    positions = dict(zip(values, values if numbers else range(len(values)), strict=True))
    panels = [ablation.metric, *(["gain"] if table["gain"].notna().any() else [])]
    colors = dict(zip(dict.fromkeys(table["run"]), itertools.cycle(COLORS), strict=False))  # the same in both panels
    figure, axes = new_figure(3.4, 1, len(panels))
    for axis, panel in zip(axes[0], panels, strict=True):
        for run, color in colors.items():
            rows = table[(table["run"] == run) & table[panel].notna()]
            if rows.empty:
                continue
            x = rows[key].map(positions)
            axis.plot(x, rows[panel], "o-" if numbers else "o", color=color, label=run, markersize=4)
            axis.vlines(x, rows[f"{panel}_low"], rows[f"{panel}_high"], color, linewidth=1.4, alpha=0.6)
        axis.set(xlabel=ablation.labels.get(key, key), xticks=list(positions.values()))
        axis.set_xticklabels([value(one) for one in values])
    axes[0, 0].set(title=f"{ablation.metric}, with 95 % intervals", ylabel="percent")
    axes[0, 0].legend(loc="best")
    if len(panels) == 2:
        axes[0, 1].axhline(0, color=GREY, linewidth=0.8)
        axes[0, 1].set(title=f"gain over {ablation.baseline}", ylabel="points")
    return figure


def _maps(ablation: Ablation, table: pd.DataFrame) -> Figure:
    """Draw one heat map per run of the gain (or metric) over two settings; significant values are bold."""
    across, up = ablation.varied
    panel = "gain" if table["gain"].notna().any() else ablation.metric
    shown = [run for run in dict.fromkeys(table["run"]) if run != ablation.baseline or panel != "gain"]
    figure, axes = new_figure(1.6 + 0.6 * len(ablation.grid[up]), 1, len(shown))
    limit = max(1.0, float(np.nanmax(np.abs(table[panel]))))
    low = -limit if panel == "gain" else float(np.nanmin(table[panel]))
    for axis, run in zip(axes[0], shown, strict=True):
        rows = table[table["run"] == run].set_index([up, across])
        grid = np.full((len(ablation.grid[up]), len(ablation.grid[across])), np.nan)
        for (y, x), row in rows.iterrows():
            cell = ablation.grid[up].index(y), ablation.grid[across].index(x)
            grid[cell] = row[panel]
            _annotate(axis, cell, interval_of(row, panel), panel == "gain", bool(row["p"] < ALPHA))
        axis.imshow(grid, cmap="PuOr", vmin=low, vmax=limit, origin="lower", aspect="auto", alpha=0.5)
        axis.set_title(f"{run}: gain over {ablation.baseline}" if panel == "gain" else f"{run}: {panel}")
        axis.set_xticks(range(grid.shape[1]), [value(one) for one in ablation.grid[across]])
        axis.set_yticks(range(grid.shape[0]), [value(one) for one in ablation.grid[up]])
        axis.set(xlabel=ablation.labels.get(across, across), ylabel=ablation.labels.get(up, up))
        bare(axis)
    figure.colorbar(axes[0, 0].images[0], ax=axes[0].tolist(), label="points" if panel == "gain" else "percent")
    return figure


def _annotate(axis: Axes, cell: tuple[int, int], interval: Interval, sign: bool, significant: bool) -> None:
    """Write a number and its interval into cell (row, column) of a heat map."""
    mean = signed(interval.mean) if sign else f"{interval.mean:.1f}"
    half = f"\n±{interval.half:.1f}" if interval.defined else ""
    axis.text(cell[1], cell[0], mean + half, ha="center", va="center", weight="bold" if significant else "normal")


def write(ablation: Ablation, measured: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Write results.csv, picture.png and index.html to `folder`; return the table."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from avdistill.reporting.figures import save

    table = summarise(ablation, measured)
    write_csv(folder / "results.csv", table)
    figure = folder / "picture.png"
    try:
        save(draw(ablation, table), figure)
    except NoDataError:
        figure.unlink(missing_ok=True)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("ablation.html.jinja").render(
        title=f"Ablation {ablation.name}",
        summary=verdict(ablation, table),
        figure=base64.b64encode(figure.read_bytes()).decode("ascii") if figure.exists() else "",
        labels={key: ablation.labels.get(key, key) for key in ablation.grid},
        heads=[*ablation.grid, "run", f"{ablation.metric}, %", "gain, points", "p", "seconds"],
        rows=cells(ablation, table),
    )
    write_text(folder / "index.html", page.lstrip())
    return table
