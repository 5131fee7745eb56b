"""Figures of the report. Each is a function from the suite's params to a `Drawn`.

`runs` compares runs, `classes` compares classes, `clips` shows clips. A figure without data raises `NoDataError`. All
figures are drawn from files of earlier stages; no network is evaluated.
"""

from __future__ import annotations

import io
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

MAX_BYTES = 150_000
WIDTH = 8.4  # inches
DPI = 130
SEED = 0  # of random sampling and t-SNE
# Okabe and Ito's palette is distinguishable with all common kinds of colour blindness.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
INK, GREY, LIGHT = "#222222", "#767676", "#DDDDDD"
MINUS = "\N{MINUS SIGN}"
STYLE: Any = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so figures are the same everywhere
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
    """The suite lacks the data of a figure; the message names what is missing."""


class Drawn(NamedTuple):
    """A figure, its caption and the table it was drawn from."""

    figure: Figure
    caption: str
    data: pd.DataFrame


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """Create a figure of width WIDTH with a grid of axes (rows, columns), outside pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def bare(axis: Axes) -> None:
    """Remove grid, spines and ticks from axes that show an image or a matrix."""
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def whole_points(value: float) -> str:
    """Format a difference in points with its sign, rounded to an integer; 0 has no sign."""
    return f"{value:+.0f}".replace("-", MINUS) if round(value) else "0"


def fraction(interval: results.Interval) -> str:
    """Format a number between 0 and 1, with its interval if defined."""
    return f"{interval.mean:.2f}" + (f" \N{PLUS-MINUS SIGN} {interval.half:.2f}" if interval.defined else "")


def measured_metrics(params: Params) -> pd.DataFrame:
    """Read all metrics: job, run, seed, metric, value. Raises NoDataError if no run has been evaluated."""
    measured = results.gather(params, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
    if measured.empty:
        raise NoDataError("no run has been evaluated")
    return measured


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file. Raises NoDataError if it is missing."""
    if not path.exists():
        raise NoDataError(f"{path} is missing")
    return read_arrays(path)


def index_of(params: Params, dataset: str) -> pd.DataFrame:
    """Read the index of a dataset's clips. Raises NoDataError if it is missing."""
    path = params.index(dataset)
    if not path.exists():
        raise NoDataError(f"{path} is missing")
    return read_index(path)


def outputs(params: Params, run: str) -> dict[str, np.ndarray]:
    """Read the features, ids and labels of test and gallery videos for the first seed of a run. Raises NoDataError."""
    seed = params.jobs[params.runs()[run][0]].seeds[0]
    found = arrays(params.evaluated(run) / f"seed-{seed}.npz")
    if "gallery_features" not in found:
        raise NoDataError(f"stage evaluate wrote no features of {run}")
    return found


def sample_by_class(clips: pd.DataFrame, number: int) -> pd.DataFrame:
    """Sample `number` of the clips (all, if fewer) at random with a fixed seed, from as many classes as possible."""
    shuffled = clips.sort_values("id").iloc[np.random.default_rng(SEED).permutation(len(clips))]
    turn = shuffled.groupby("class").cumcount().to_numpy()
    return shuffled.iloc[np.argsort(turn, kind="stable")[:number]]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of at most MAX_BYTES if possible, by reducing first the colours, then the resolution."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    image = Image.open(buffer).convert("RGB")
    image.save(path, optimize=True)
    for colours, scale in ((256, 1.0), (128, 1.0), (64, 1.0), (64, 0.7), (64, 0.5)):
        if path.stat().st_size <= MAX_BYTES:
            break
        scaled = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)
        # FASTOCTREE keeps the ends of colour bars, which the default method merges.
        fewer = scaled.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        fewer.save(path, optimize=True)
