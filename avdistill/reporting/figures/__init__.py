"""Figures: each a function from the suite's params to a `Drawn`, which reads what other stages wrote.

`runs` compares runs, `classes` looks at classes, `clips` shows real clips. A figure whose data is not there raises
`NoDataError`. Nothing here needs a network: what one says, stage evaluate has written down.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index
from avdistill.reporting import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.4  # inches
DPI = 130
SEED = 0  # of whatever is sampled at random
# Okabe and Ito's colours can be told apart with any of the common kinds of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
INK, GREY, LIGHT = "#222222", "#767676", "#DDDDDD"
MINUS = "\N{MINUS SIGN}"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same everywhere
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": DPI,
}


class NoDataError(Exception):
    """The suite does not have what a figure shows; the message says what is missing."""


class Drawn(NamedTuple):
    """A figure, what stands under it, and the table that it was drawn from."""

    figure: Figure
    caption: str
    data: pd.DataFrame


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of the common width with a grid of axes (rows, columns), kept out of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axis: Axes) -> None:
    """The look of axes that hold a picture or a matrix: no grid, no spines, no ticks."""
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def signed(value: float) -> str:
    """A difference in points with its sign, rounded to a whole one; 0 has none."""
    return f"{value:+.0f}".replace("-", MINUS) if round(value) else "0"


def fraction(interval: results.Interval) -> str:
    """A number between 0 and 1, with its interval where that is defined."""
    return f"{interval.mean:.2f}" + (f" \N{PLUS-MINUS SIGN} {interval.half:.2f}" if interval.defined else "")


def symbol(name: str) -> str:
    """What a score is called in the papers."""
    return {"tau": "τ"}.get(name, name)


def measured_metrics(params: Params) -> pd.DataFrame:
    """Every metric of every run and seed: job, run, seed, metric, value. Raises NoDataError if there is none."""
    measured = results.gather(params, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
    if measured.empty:
        raise NoDataError("no run has been evaluated")
    return measured


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file. Raises NoDataError if it is not there."""
    if not path.exists():
        raise NoDataError(f"there is no {path}")
    return read_arrays(path)


def index_of(params: Params, dataset: str) -> pd.DataFrame:
    """The index of a dataset's clips. Raises NoDataError if it is not there."""
    path = params.path("split", dataset) / "index.csv"
    if not path.exists():
        raise NoDataError(f"there is no {path}")
    return read_index(path)


def outputs(params: Params, run: str) -> dict[str, np.ndarray]:
    """What evaluate wrote of each video for the first seed of a run: features, ids, labels, those of the gallery."""
    job = params.runs()[run][0]
    found = arrays(params.path("evaluate", job) / run / f"seed-{params.jobs[job].seeds_of(run)[0]}.npz")
    if "gallery_features" not in found:
        raise NoDataError(f"evaluate wrote no features of {run}")
    return found


def by_lot(clips: pd.DataFrame, number: int) -> pd.DataFrame:
    """`number` of the clips (or all, if they are fewer), drawn by a fixed seed from as many classes as possible."""
    drawn = clips.sort_values("id").iloc[np.random.default_rng(SEED).permutation(len(clips))]
    turn = drawn.groupby("class").cumcount().to_numpy()
    return drawn.iloc[np.argsort(turn, kind="stable")[:number]]
