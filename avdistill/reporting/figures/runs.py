"""Figures that compare runs: accuracy, training curves, robustness to noise, and clip scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.draws import draws_of
from avdistill.reporting import results
from avdistill.reporting.contrasts import Contrasts
from avdistill.reporting.figures import (
    BLUE,
    COLORS,
    GREY,
    INK,
    MINUS,
    ORANGE,
    RED,
    Drawn,
    NoDataError,
    fraction,
    measured_metrics,
    new_figure,
)
from avdistill.reporting.information import shared_beyond
from avdistill.reporting.page import symbol
from avdistill.reporting.settings import features_of, gains_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LARGE_SET = {"accuracy": "Recognition: top-1", "R@1": "Retrieval: R@1", "mAP@100": "Retrieval: mAP@100"}


def accuracy_of_runs(params: Params) -> Drawn:
    """Draw the accuracy of all runs, one panel per input and recipe: every seed, the mean and its interval."""
    measured = measured_metrics(params)
    data = measured[measured["metric"] == "accuracy"][["job", "run", "seed", "value"]]
    data = data.rename(columns={"value": "accuracy"})
    means = data.groupby("run")["accuracy"].mean().sort_values()
    groups: dict[tuple[str, str], list[str]] = {}
    for run in means.index:
        job = params.jobs[params.runs()[run][0]]
        groups.setdefault((job.input, job.recipe), []).append(run)
    ours = params.jobs[params.runs()[params.report.baseline][0]]
    order = sorted(groups, key=lambda group: (group != (ours.input, ours.recipe), group))
    row = 0.25 if len(means) <= 20 else 0.19
    heights = [len(groups[group]) + 0.6 for group in order]
    figure, axes = new_figure(
        0.7 + 0.25 * len(order) + row * sum(heights), len(order), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for axis, group in zip(axes[:, 0], order, strict=True):
        runs = groups[group]
        plain = [run for run in runs if params.jobs[params.runs()[run][0]].method == "uni_modal"]
        baseline = params.report.baseline if params.report.baseline in runs else next(iter(plain), "")
        for row_number, run in enumerate(runs):
            color = RED if run == baseline else BLUE
            seeds = 100 * data[data["run"] == run]["accuracy"]
            mean = results.percent(results.score(params, measured, run, "accuracy"))
            dots(axis, row_number, seeds, mean, color, shade=run == baseline)
        axis.set_yticks(range(len(runs)), runs, fontsize=8)
        axis.grid(axis="y", visible=False)
        axis.set_ylim(-0.8, len(runs) - 0.2)
        axis.margins(x=0.04)
        if len(order) > 1:
            axis.set_title(f"{group[0]}, recipe {group[1]}")
    axes[-1, 0].set_xlabel("accuracy on the test split (%)")
    cut_at_percent(axes[-1, 0], "x")
    caption = (
        "Seeds (rings), mean (diamond) and 95 % interval over seeds (line). Red: baseline without teacher, interval "
        "shaded."
    )
    if len(order) > 1:
        caption += " Panels differ in input or recipe and cannot be compared."
    return Drawn(figure, caption, data)


def cut_at_percent(axis: Axes, name: str) -> None:
    """Limit an axis ("x" or "y") to 0..100, because intervals over few seeds reach far beyond."""
    low, high = axis.get_xlim() if name == "x" else axis.get_ylim()
    axis.set(**{f"{name}lim": (max(low, -1.0), min(high, 101.0))})  # margin for markers at the ends


def dots(axis: Axes, y: float, seeds: pd.Series, mean: results.Interval, color: str, shade: bool) -> None:
    """Draw a run at height `y`: seeds, mean and interval; `shade` shades the interval over all rows."""
    if mean.defined:
        axis.plot([mean.low, mean.high], [y, y], color=color, linewidth=2.2, solid_capstyle="round", zorder=2)
        if shade:
            axis.axvspan(mean.low, mean.high, color=color, alpha=0.07, linewidth=0)
    ring: dict[str, Any] = {"color": "none", "markeredgecolor": color, "alpha": 0.75}
    axis.plot(seeds, [y] * len(seeds), "o", markersize=4, zorder=3, **ring)
    axis.plot(mean.mean, y, "D", markersize=5.5, color=color, markeredgecolor="white", zorder=4)


def training_curves(params: Params) -> Drawn:
    """Draw Xia Fig. 3: accuracy by epoch of each strategy and of the baseline."""
    history = results.gather(params, "train", "history.csv", ("run", "seed", "epoch"))
    baseline = params.report.baseline
    labels = {run: label for label, run in params.report.figures.training_curves.items()}
    labels.setdefault(baseline, f"{baseline} (baseline)")
    history = history[history["run"].isin(labels)]
    panels = {"train_accuracy": "training split", "val_accuracy": "selection split"}
    if history.empty or not set(panels) <= set(history.columns):
        raise NoDataError("stage train wrote no accuracy by epoch of these runs")
    rows = []
    for metric in panels:
        known = history.dropna(subset=[metric])
        for (run, epoch), values in known.groupby(["run", "epoch"], sort=False)[metric]:
            spread = {"mean": values.mean(), "lowest": values.min(), "highest": values.max(), "seeds": len(values)}
            rows.append({"strategy": labels[run], "run": run, "metric": metric, "epoch": epoch, **spread})
    data = pd.DataFrame(rows)
    figure, axes = new_figure(3.2, 1, 2, sharey=True)
    for axis, (metric, title) in zip(axes[0], panels.items(), strict=True):
        for run, label in labels.items():
            line = data[(data["run"] == run) & (data["metric"] == metric)]
            style: dict[str, Any] = {"color": GREY, "linestyle": "--"} if run == baseline else {}
            (drawn,) = axis.plot(line["epoch"], 100 * line["mean"], label=label, linewidth=1.6, **style)
            band = (100 * line["lowest"], 100 * line["highest"])
            axis.fill_between(line["epoch"], *band, color=drawn.get_color(), alpha=0.13, linewidth=0)
        axis.set(title=f"Accuracy on the {title}", xlabel="epoch")
        axis.margins(x=0.01)
    axes[0, 0].set_ylabel("accuracy (%)")
    axes[0, 1].legend(loc="lower right")
    caption = "Accuracy by epoch: mean (line) and range (band) over seeds."
    return Drawn(figure, caption, data)


def noise_curve(params: Params) -> Drawn:
    """Draw accuracy against the signal-to-noise ratio of the teacher's sound."""
    measured, baseline = measured_metrics(params), params.report.baseline
    curves = params.report.figures.noise
    snrs = sorted({float(snr) for curve in curves.values() for snr in curve if snr != "clean"}, reverse=True)
    step = float(np.median(-np.diff(snrs))) if len(snrs) > 1 else 10.0
    clean = snrs[0] + step if snrs else 0.0
    figure, axes = new_figure(3.4)
    axis = axes[0, 0]
    base = results.percent(results.score(params, measured, baseline, "accuracy"))
    if base.seeds:
        axis.axhline(base.mean, color=GREY, linestyle="--", linewidth=1.4, label=f"{baseline} (baseline)")
    if base.defined:
        axis.axhspan(base.low, base.high, color=GREY, alpha=0.12, linewidth=0)
    rows = [{"curve": "", "run": baseline, "snr_db": "", **results.interval_columns("accuracy", base)}]
    for number, (label, curve) in enumerate(curves.items()):
        points = []
        for snr, run in sorted(curve.items(), key=lambda entry: -clean if entry[0] == "clean" else -float(entry[0])):
            mean = results.percent(results.score(params, measured, run, "accuracy"))
            if mean.seeds:
                points.append((clean if snr == "clean" else float(snr), mean))
                rows.append({"curve": label, "run": run, "snr_db": snr, **results.interval_columns("accuracy", mean)})
        shift = 0.018 * (snrs[-1] - clean if snrs else 1.0) * (number - (len(curves) - 1) / 2)
        at = [x + shift for x, _ in points]
        half = [mean.half if mean.defined else 0.0 for _, mean in points]
        means = [mean.mean for _, mean in points]
        style: dict[str, Any] = {"color": COLORS[number % 6], "marker": "osD^vP"[number % 6], "capsize": 3}
        axis.errorbar(at, means, half, label=label, linewidth=1.6, markersize=5, **style)
    if len(rows) == 1:
        raise NoDataError("none of these runs has been evaluated")
    axis.set_xticks([clean, *snrs], ["clean", *(f"{snr:g}".replace("-", MINUS) for snr in snrs)])
    axis.invert_xaxis()
    axis.set(xlabel="signal-to-noise ratio of the sound (dB)", ylabel="accuracy on the test split (%)")
    cut_at_percent(axis, "y")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        "Accuracy of students whose teacher input was mixed with sound of another class, mean and 95 % interval over "
        f"seeds. 0 dB: equal power. Clean: no noise. Grey: {baseline} (no sound)."
    )
    return Drawn(figure, caption, pd.DataFrame(rows))


def gain_by_setting(params: Params) -> Drawn:
    """Draw the gain of each method in each setting against what teacher and student share beyond the label."""
    data = gains_table(params, measured_metrics(params), Contrasts(params)).dropna(subset=["gain"])
    pairs = {name: features_of(params, params.report.settings[name]) for name in data["setting"].unique()}
    beyond = {name: shared_beyond(*found) for name, found in pairs.items() if found}
    data = data.assign(beyond_label=data["setting"].map(beyond)).dropna(subset=["beyond_label"])
    if data.empty:
        raise NoDataError("no setting has evaluated runs and features of its teacher")
    figure, axes = new_figure(3.4)
    axis = axes[0, 0]
    axis.axhline(0, color=GREY, linestyle="--", linewidth=1.2)
    shift = 0.006 * max(data["beyond_label"].max(), 0.1)
    for number, (method, rows) in enumerate(data.groupby("method", sort=False)):
        half = (rows["gain_high"] - rows["gain"]).fillna(0)
        style: dict[str, Any] = {"color": COLORS[number % 6], "marker": "osD^vP"[number % 6], "capsize": 3}
        at = rows["beyond_label"] + number * shift
        axis.errorbar(at, rows["gain"], half, label=str(method), linestyle="none", markersize=5, **style)
    axis.set_xlim(left=0)
    axis.set(xlabel="shared by sound and pictures beyond the label (nats)", ylabel="gain in accuracy (points)")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        "Gain over a student without a teacher, mean and 95 % interval, one setting per position; beside the estimate "
        "of I(T;S|Y) from the features of the audio teacher and of that student on test clips."
    )
    return Drawn(figure, caption, data)


def large_set(params: Params) -> Drawn:
    """Draw Chen Fig. 4: recognition and retrieval on the large dataset."""
    measured, runs = measured_metrics(params), list(params.report.figures.large)
    rows = []
    for run in runs:
        for metric in LARGE_SET:
            values = results.score(params, measured, run, metric)
            rows.append({"run": run, "metric": metric, **results.interval_columns("value", results.percent(values))})
    data = pd.DataFrame(rows)
    if not data["value_seeds"].any():
        raise NoDataError("none of these runs has been evaluated")
    figure, axes = new_figure(0.8 + 0.34 * len(runs), 1, len(LARGE_SET), sharey=True)
    plain = [run for run in runs if params.jobs[params.runs()[run][0]].method == "uni_modal"]
    colors = [GREY if run in plain else BLUE for run in runs]
    for axis, (metric, title) in zip(axes[0], LARGE_SET.items(), strict=True):
        values = data[data["metric"] == metric].reset_index(drop=True)
        axis.barh(range(len(runs)), values["value"], height=0.66, color=colors)
        widest = min(100.0, values[["value", "value_high"]].max(axis=None))
        for y, row in values.iterrows():
            mean = results.interval_of(row, "value")
            end = min(100.0, mean.high) if mean.defined else mean.mean
            if mean.defined:
                axis.plot([mean.low, end], [y, y], color=INK, linewidth=1.3)
            if mean.seeds:
                axis.text(end + 0.02 * widest, y, f"{mean.mean:.1f}", va="center", fontsize=8)
        axis.set(title=title, xlabel="%", xlim=(0, 1.16 * widest))
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(runs)), runs)
    axes[0, 0].invert_yaxis()
    job = params.jobs[params.runs()[runs[0]][0]]
    caption = (
        f"Runs on {job.dataset}, recipe {job.recipe}: top-1 test accuracy; retrieval with test videos as queries and "
        "training videos as gallery. "
    )
    caption += "Lines: 95 % intervals over seeds." if data["value_low"].notna().any() else "One seed: no interval."
    return Drawn(figure, caption, data)


def score_histograms(params: Params) -> Drawn:
    """Draw histograms of mask and τ for clips with relevant and with irrelevant sound."""
    given = ["job", "run", "seed", "id", "split", "relevant"]
    scores = results.gather(params, "evaluate", "scores.csv", tuple(given[1:]))
    shown = [run for run in params.report.figures.scores if run in set(scores["run"])]
    scores = scores[scores["run"].isin(shown)]
    if scores.empty:
        raise NoDataError("none of these runs has clip scores")
    names = [name for name in scores.columns if name not in given and scores[name].notna().any()]
    scores = scores[(scores["split"] == "test") & scores["relevant"].isin(["yes", "no"])]
    if scores.empty:
        raise NoDataError("the datasets do not label the relevance of the sound")
    found = results.gather(params, "evaluate", "detection.csv", ("run", "seed", "score", "split", "auroc"))
    found = found[found["split"] == "test"]
    figure, axes = new_figure(0.7 + 1.45 * len(shown), len(shown), len(names))
    bins = []
    for row, run in enumerate(shown):
        for column, name in enumerate(names):
            axis = axes[row, column]
            rows = scores[(scores["run"] == run) & scores[name].notna()]
            seeds = found[(found["run"] == run) & (found["score"] == name)].set_index("seed")["auroc"]
            auroc = results.student_interval(results.by_draw(seeds, draws_of(params)))
            axis.set_title(f"{run}: {symbol(name)}{' · AUROC ' + fraction(auroc) if auroc.seeds else ''}")
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            if rows.empty:
                axis.text(0.5, 0.5, "no score", transform=axis.transAxes, ha="center", color=GREY)
                continue
            edges = np.histogram_bin_edges(rows[name], bins=20)
            for relevant, color, label in (("yes", BLUE, "relevant sound"), ("no", ORANGE, "irrelevant sound")):
                values = rows[rows["relevant"] == relevant][name]
                share = np.histogram(values, edges)[0] / max(len(values), 1)
                axis.stairs(share, edges, fill=True, color=color, alpha=0.28)
                axis.stairs(share, edges, color=color, linewidth=1.3, label=label)
                bins += [
                    {"run": run, "score": name, "relevant": relevant, "from": low, "to": high, "share": value}
                    for low, high, value in zip(edges[:-1], edges[1:], share, strict=True)
                ]
    handles, labels = next(legend for axis in axes.flat if (legend := axis.get_legend_handles_labels())[0])
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    caption = (
        "Test clips over all seeds: mean over the elements of the mask, and temperature τ of a clip with its own "
        "sound. AUROC: mean and 95 % interval over seeds (chance: 0.5)."
    )
    return Drawn(figure, caption, pd.DataFrame(bins))
