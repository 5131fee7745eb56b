"""Figures by class: gain over the baseline, confusion matrices and feature maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.draws import draws_of
from avdistill.reporting import results
from avdistill.reporting.figures import (
    COLORS,
    INK,
    SEED,
    Drawn,
    NoDataError,
    bare,
    index_of,
    measured_metrics,
    new_figure,
    outputs,
    sample_by_class,
)

BARS = 60  # most classes shown
POINTS, CLASSES = 500, 12  # clips of each split, and classes, in a feature map


def gain_per_class(params: Params) -> Drawn:
    """Draw Chen Fig. 3: gain of runs over the baseline, by class."""
    baseline = params.report.baseline
    measured = results.gather(params, "evaluate", "per_class.csv", ("run", "seed", "class", "clips", "accuracy"))
    by = {(run, name): rows.set_index("seed")["accuracy"] for (run, name), rows in measured.groupby(["run", "class"])}
    classes = sorted({name for run, name in by if run == baseline})
    runs = [run for run in params.report.figures.gain_per_class if any((run, name) in by for name in classes)]
    if not classes or not runs:
        raise NoDataError("the accuracy per class of the baseline or of these runs is missing")
    rows = []
    for run in runs:
        for name in classes:
            gain = results.UNKNOWN
            if (run, name) in by:
                gain = results.percent(results.paired_difference(by[run, name], by[baseline, name], draws_of(params)))
            base = 100 * by[baseline, name].mean()
            rows.append({"run": run, "class": name, "baseline": base, **results.interval_columns("gain", gain)})
    data = pd.DataFrame(rows)
    means = data.groupby("class")["gain"].mean()
    order = means.sort_values(ascending=False, kind="stable").index.tolist()
    shown = order if len(order) <= BARS else [*order[: BARS // 2], *order[-BARS // 2 :]]
    small = len(shown) > 24
    height = 2.9 + 0.065 * max(map(len, shown))
    figure, axes = new_figure(height)
    axis, width = axes[0, 0], 0.8 / len(runs)
    for number, run in enumerate(runs):
        gains = data[data["run"] == run].set_index("class").loc[shown]
        at = np.arange(len(shown)) + width * (number - (len(runs) - 1) / 2)
        axis.bar(at, gains["gain"], width, color=COLORS[number], label=run)
        spread = gains["gain_high"] - gains["gain"]
        if spread.notna().any():
            line = {"fmt": "none", "ecolor": INK, "elinewidth": 0.6 if small else 0.9}
            axis.errorbar(at, gains["gain"], spread.to_numpy(), capsize=0 if small else 2, **line)
    axis.axhline(0, color=INK, linewidth=0.9)
    accuracies = data.groupby("class")["baseline"].first()
    names = [f"{name} ({accuracies[name]:.0f})" for name in shown]
    axis.set_xticks(range(len(shown)), names, rotation=90 if small else 35, fontsize=6.5 if small else 8.5)
    if not small:
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="x", visible=False)
    axis.set_xlim(-0.6, len(shown) - 0.4)
    axis.set_ylabel(f"gain over {baseline} (points)")
    if len(runs) > 1:
        figure.legend(loc="outside upper right", ncols=len(runs))
    caption = f"Gain in accuracy over {baseline} by class, mean over seeds (in parentheses: accuracy of {baseline}, %)."
    if len(runs) == 1:
        caption = f"{runs[0]}: {caption[0].lower()}{caption[1:]}"
    if data["gain_low"].notna().any():
        bars = len(runs) * len(shown)
        caption += (
            f" Lines: 95 % intervals, paired by seed; about {max(1, round(bars / 20))} of {bars} would exclude zero by "
            "chance."
        )
    if len(shown) < len(order):
        caption += f" Of {len(order)} classes the {BARS // 2} with the highest and with the lowest gain are shown."
    return Drawn(figure, caption, data)


def confusion_matrices(params: Params) -> Drawn:
    """Draw the confusion matrices of the baseline and of the most accurate run comparable with it."""
    baseline = params.report.baseline
    table = results.gather(params, "evaluate", "confusion.csv", ("run", "seed", "true", "predicted", "clips"))
    measured = measured_metrics(params)
    present = set(table["run"])
    if baseline not in present:
        raise NoDataError("the baseline has no confusion matrix")
    others = {run: results.by_seed(measured, run, "accuracy").mean() for run in results.comparable_to_baseline(params)}
    others = {run: mean for run, mean in others.items() if run in present and not np.isnan(mean)}
    runs = [baseline, *([max(others, key=lambda run: others[run])] if others else [])]
    rows = table[table["run"].isin(runs)]
    classes = sorted(set(rows["true"]) | set(rows["predicted"]))
    data = rows.groupby(["run", "true", "predicted"], as_index=False)["clips"].sum()
    size = 8 if len(classes) <= 20 else 5
    height = (3.4 if len(runs) == 2 else 5.2) + 0.008 * size * max(map(len, classes)) + 0.4
    figure, axes = new_figure(height, 1, len(runs), sharey=True)
    for axis, run in zip(axes[0], runs, strict=True):
        counts = data[data["run"] == run].pivot(index="true", columns="predicted", values="clips")
        counts = counts.reindex(index=classes, columns=classes).fillna(0)
        percentages = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
        image = axis.imshow(percentages, cmap="Blues", vmin=0, vmax=100)
        if len(classes) <= 14:
            for row, column in zip(*np.nonzero(percentages.to_numpy() >= 0.5), strict=True):
                value = percentages.iat[row, column]
                color = "white" if value > 55 else INK
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color=color)
        axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
        axis.set_yticks(range(len(classes)), classes, fontsize=size)
        axis.set(title=run, xlabel="predicted")
        bare(axis)
    axes[0, 0].set_ylabel("true class")
    bar = figure.colorbar(image, ax=axes[0].tolist(), label="share of the true class (%)", shrink=0.6, pad=0.02)
    bar.outline.set_visible(False)
    caption = "Test clips by true and predicted class over all seeds, in % of the true class."
    if others:
        caption += f" {runs[1]}: the run with the highest mean test accuracy, chosen post hoc."
    return Drawn(figure, caption, data)


def feature_maps(params: Params) -> Drawn:
    """Draw Chen Fig. 5: t-SNE embedding of the features of training and test clips."""
    from sklearn.manifold import TSNE

    runs = params.report.figures.embedding
    dataset = params.jobs[params.runs()[runs[0]][0]].dataset
    index = index_of(params, dataset)
    names = sorted(set(index["class"]))
    total = len(names)
    names = [names[number] for number in np.unique(np.linspace(0, total - 1, CLASSES).round().astype(int)) if total > 0]
    chosen = index[index["class"].isin(names)].set_index("id")["class"]
    pieces = []
    for run in runs:
        found = outputs(params, run)
        splits, features = [], []
        for split, prefix in (("training", "gallery_"), ("test", "")):
            rows = pd.DataFrame({"run": run, "split": split, "id": found[f"{prefix}ids"]})
            rows = sample_by_class(rows.assign(**{"class": rows["id"].map(chosen)}).dropna(), POINTS)
            splits.append(rows)
            features.append(found[f"{prefix}features"][rows.index])
        points, vectors = pd.concat(splits, ignore_index=True), np.concatenate(features).astype(np.float64)
        if len(points) < 4:
            raise NoDataError(f"{run} has features of {len(points)} clips; t-SNE needs at least 4")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        settings: dict[str, Any] = {"random_state": SEED, "init": "pca", "n_jobs": 1}
        embedded = TSNE(perplexity=min(30, (len(points) - 1) / 3), **settings).fit_transform(vectors)
        pieces.append(points.assign(x=embedded[:, 0], y=embedded[:, 1]))
    data = pd.concat(pieces, ignore_index=True)
    columns = min(len(runs), 2)
    figure, axes = new_figure(0.6 + 2 * 2.4 * -(-len(runs) // columns), 2 * -(-len(runs) // columns), columns)
    for number, run in enumerate(runs):
        for offset, split in enumerate(("training", "test")):
            axis = axes[2 * (number // columns) + offset, number % columns]
            own = data[data["run"] == run]
            for color, name in enumerate(names):
                points = own[(own["class"] == name) & (own["split"] == split)]
                mark: dict[str, Any] = {"color": COLORS[color % 6], "marker": "o^"[color // 6], "linewidth": 0}
                axis.scatter(points["x"], points["y"], 13, alpha=0.85, label=name, **mark)
            axis.set_title(f"{run}: {split} clips")
            axis.set(xticks=[], yticks=[], xlim=stretched(own["x"]), ylim=stretched(own["y"]))
            axis.spines[:].set(visible=True, color="#CCCCCC")
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, markerscale=1.4)
    caption = (
        "t-SNE of the normalised features of each run's first seed, training and test clips embedded together. At most "
        f"{POINTS} clips of each split, sampled at random. Axes and large distances have no meaning."
    )
    if len(names) < total:
        caption += f" {len(names)} of {total} classes are shown."
    return Drawn(figure, caption, data)


def stretched(values: pd.Series) -> tuple[float, float]:
    """Return axis limits: the range of the values plus a margin."""
    low, high = float(values.min()), float(values.max())
    edge = 0.04 * (high - low) or 1.0
    return low - edge, high + edge
