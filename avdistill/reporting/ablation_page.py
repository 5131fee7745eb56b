"""What an ablation found: a table with intervals, a picture, one page.

Flows bring the measurements (flows/ablations.py); here they become numbers that may be compared:

  results.csv   one row a point and run: what was varied; the metric in percent and its gain over the baseline in
                points, each with its 95 % interval over seeds (Student's t; gains are paired by seed); p of the gain
                after Holm's correction for all gains of the ablation; seconds that the point took
  picture.png   one thing varied: a curve with intervals; two: a map of the gain (of the metric without a baseline)
  index.html    both, what is best, and what it cost; one file that loads nothing from elsewhere
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
from avdistill.reporting.results import Interval, interval_of, named, percent
from avdistill.reporting.significance import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Ablation(NamedTuple):
    """What was asked: `grid` has the values of what is varied by its key in params' words, `words` what each key means.
    Gains are over run `baseline`, if one is named, at the same point."""

    name: str
    runs: tuple[str, ...]
    baseline: str | None
    metric: str
    grid: dict[str, list[Any]]
    words: dict[str, str]

    @property
    def varied(self) -> list[str]:
        """Keys that have several values: the axes of the picture."""
        return [key for key, values in self.grid.items() if len(values) > 1]


def summarise(ablation: Ablation, measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of results.csv, from one row a point, run, seed and metric.

    `measured` has the columns point, seconds, run, seed, metric, value, and one for each key of the grid."""
    keys, rows = list(ablation.grid), []
    for _, here in measured.groupby("point", sort=False):
        base = results.by_seed(here, ablation.baseline, ablation.metric)
        for run in dict.fromkeys(here["run"]):
            ours = results.by_seed(here, run, ablation.metric)
            gain = results.paired_difference(ours, base) if run != ablation.baseline else results.UNKNOWN
            rows.append(
                {
                    **{key: here[key].iloc[0] for key in keys},
                    "run": run,
                    **named(ablation.metric, percent(results.student_interval(ours))),
                    **named("gain", percent(gain)),
                    "p": results.paired_p(gain),
                    "seconds": here["seconds"].iloc[0],
                    "point": here["point"].iloc[0],
                }
            )
    columns = [*keys, "run", *named(ablation.metric, results.UNKNOWN), *named("gain", results.UNKNOWN)]
    table = pd.DataFrame(rows, columns=[*columns, "p", "seconds", "point"])
    table["p"] = results.holm(table["p"])
    return table


def best(ablation: Ablation, table: pd.DataFrame) -> pd.Series | None:
    """The row with the highest gain, or the highest metric where there is no baseline; None in an empty table."""
    own = table[table["run"] != ablation.baseline]
    value = "gain" if own["gain"].notna().any() else ablation.metric
    return None if own.empty or own[value].isna().all() else own.loc[own[value].idxmax()]


def verdict(ablation: Ablation, table: pd.DataFrame) -> list[str]:
    """Sentences: the best point, what may be claimed, and what all of it cost."""
    top = best(ablation, table)
    if top is None:
        return ["No point was measured."]
    where = ", ".join(f"{key} {value(top[key])}" for key in ablation.varied) or "the only point"
    level, gain = interval_of(top, ablation.metric), interval_of(top, "gain")
    over = f", {spread(gain, sign=True)} points over {ablation.baseline}" if gain.seeds else ""
    gains = table["gain"].notna()
    points = table["point"].nunique()
    sentences = [f"Best of {plural(points, 'point')}: {top['run']} at {where}, {spread(level)} %{over}."]
    if gains.any():
        claimed = table[gains & (table["p"] < LEVEL)]
        wins, losses = int((claimed["gain"] > 0).sum()), int((claimed["gain"] < 0).sum())
        sentences.append(
            f"Of {plural(int(gains.sum()), 'gain')} over {ablation.baseline}, {wins} can be claimed, and "
            f"{plural(losses, 'loss').replace('losss', 'losses')} (corrected p below {LEVEL})."
        )
    seconds = table.drop_duplicates("point")["seconds"].dropna()
    if len(seconds):
        sentences.append(f"A point took {seconds.mean():,.0f} s, all of them {seconds.sum():,.0f} s of computing.")
    sentences.append("The best point is chosen by what it does on the test split, so its number flatters it.")
    return sentences


def value(given: Any) -> str:
    """A value of what is varied, as it is read."""
    return f"{given:g}" if isinstance(given, int | float | np.number) and not isinstance(given, bool) else str(given)


def markdown(ablation: Ablation, table: pd.DataFrame) -> str:
    """Verdict and table in Markdown."""
    heads = [*ablation.grid, "run", f"{ablation.metric} (%)", "gain (points)", "p", "seconds"]
    lines = [heads, ["---"] * len(heads), *cells(ablation, table)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([*verdict(ablation, table), text, "± 95 % interval over seeds; p after Holm's correction."])


def cells(ablation: Ablation, table: pd.DataFrame) -> list[list[str]]:
    """The table as it is read, without the names of the points."""
    rows = []
    for _, row in table.iterrows():
        p = EMPTY if np.isnan(row["p"]) else f"{row['p']:.3f}"
        seconds = EMPTY if np.isnan(row["seconds"]) else f"{row['seconds']:.0f}"
        numbers = [spread(interval_of(row, ablation.metric)), spread(interval_of(row, "gain"), sign=True), p, seconds]
        rows.append([*(value(row[key]) for key in ablation.grid), row["run"], *numbers])
    return rows


def draw(ablation: Ablation, table: pd.DataFrame) -> Figure:
    """Curves if one thing is varied, a map for each run if two are.

    Raises NoDataError if nothing is varied, more than two things are, or nothing was measured."""
    import matplotlib as mpl

    from avdistill.reporting.figures import STYLE

    if table.empty or not 1 <= len(ablation.varied) <= 2:
        raise NoDataError("a picture needs one or two things that are varied, and a point")
    with mpl.rc_context(STYLE):
        return _curves(ablation, table) if len(ablation.varied) == 1 else _maps(ablation, table)


def _curves(ablation: Ablation, table: pd.DataFrame) -> Figure:
    """The metric against what is varied, and beside it the gain where there is one."""
    (key,) = ablation.varied
    values = ablation.grid[key]
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    places = dict(zip(values, values if numbers else range(len(values)), strict=True))
    panels = [ablation.metric, *(["gain"] if table["gain"].notna().any() else [])]
    colors = dict(
        zip(dict.fromkeys(table["run"]), itertools.cycle(COLORS), strict=False)
    )  # a run has one in both panels
    figure, axes = new_figure(3.4, 1, len(panels))
    for axis, panel in zip(axes[0], panels, strict=True):
        for run, color in colors.items():
            rows = table[(table["run"] == run) & table[panel].notna()]
            if rows.empty:
                continue
            x = rows[key].map(places)
            axis.plot(x, rows[panel], "o-" if numbers else "o", color=color, label=run, markersize=4)
            axis.vlines(x, rows[f"{panel}_low"], rows[f"{panel}_high"], color, linewidth=1.4, alpha=0.6)
        axis.set(xlabel=ablation.words.get(key, key), xticks=list(places.values()))
        axis.set_xticklabels([value(one) for one in values])
    axes[0, 0].set(title=f"{ablation.metric}, with 95 % intervals", ylabel="percent")
    axes[0, 0].legend(loc="best")
    if len(panels) == 2:
        axes[0, 1].axhline(0, color=GREY, linewidth=0.8)
        axes[0, 1].set(title=f"gain over {ablation.baseline}", ylabel="points")
    return figure


def _maps(ablation: Ablation, table: pd.DataFrame) -> Figure:
    """A map a run: the gain, or the metric, over two things; bold where a difference may be claimed."""
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
            place = ablation.grid[up].index(y), ablation.grid[across].index(x)
            grid[place] = row[panel]
            _write(axis, place, interval_of(row, panel), panel == "gain", bool(row["p"] < LEVEL))
        axis.imshow(grid, cmap="PuOr", vmin=low, vmax=limit, origin="lower", aspect="auto", alpha=0.5)
        axis.set_title(f"{run}: gain over {ablation.baseline}" if panel == "gain" else f"{run}: {panel}")
        axis.set_xticks(range(grid.shape[1]), [value(one) for one in ablation.grid[across]])
        axis.set_yticks(range(grid.shape[0]), [value(one) for one in ablation.grid[up]])
        axis.set(xlabel=ablation.words.get(across, across), ylabel=ablation.words.get(up, up))
        bare(axis)
    figure.colorbar(axes[0, 0].images[0], ax=axes[0].tolist(), label="points" if panel == "gain" else "percent")
    return figure


def _write(axis: Axes, place: tuple[int, int], interval: Interval, sign: bool, claimed: bool) -> None:
    """A number with its interval in a field of a map."""
    mean = signed(interval.mean) if sign else f"{interval.mean:.1f}"
    half = f"\n±{interval.half:.1f}" if interval.defined else ""
    axis.text(place[1], place[0], mean + half, ha="center", va="center", weight="bold" if claimed else "normal")


def write(ablation: Ablation, measured: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Write results.csv, picture.png and index.html into a folder; returns the table."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from stages.figures import save

    table = summarise(ablation, measured)
    write_csv(folder / "results.csv", table)
    picture = folder / "picture.png"
    try:
        save(draw(ablation, table), picture)
    except NoDataError:
        picture.unlink(missing_ok=True)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("ablation.html.jinja").render(
        title=f"Ablation {ablation.name}",
        found=verdict(ablation, table),
        picture=base64.b64encode(picture.read_bytes()).decode("ascii") if picture.exists() else "",
        words={key: ablation.words.get(key, key) for key in ablation.grid},
        heads=[*ablation.grid, "run", f"{ablation.metric}, %", "gain, points", "p", "seconds"],
        rows=cells(ablation, table),
    )
    write_text(folder / "index.html", page.lstrip())
    return table
