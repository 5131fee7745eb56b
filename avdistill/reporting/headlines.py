"""What DVC shows of a suite: a screenful of metrics, and plots that `dvc plots diff` compares between commits.

Each suite has one file in each of these folders, which its dvc.yaml declares. For suites that have not run, DVC prints
one line about files that it failed to load, and shows dashes in place of metrics.

  out/metrics/<suite>.json            `headline`
  out/plots/claims/<suite>.csv        claim, difference, low, high (points, with the 95 % interval)
  out/plots/curves/<suite>.csv        run, split, epoch, accuracy (%, mean over seeds)
  out/plots/confusion/<suite>.csv     actual, predicted: a row per test clip, of the first seed
  out/plots/noise/<suite>.csv         curve, snr (dB, or clean), accuracy (%, mean over seeds)

Plots of all runs would not be readable: they show the baseline, the proposed method and the runs whose gain per class
is drawn (`report.figures.gain_per_class`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.files import write_csv, write_json
from avdistill.reporting import results
from avdistill.reporting.claims import COUNTED
from avdistill.reporting.extra_tables import noise_table
from avdistill.reporting.suite import EvaluatedSuite

METRICS = ("accuracy", "R@1", "mAP@100")
INTERVAL = {"difference": "difference", "low": "difference_low", "high": "difference_high"}  # columns of the claims


def folder_of(params: Params) -> Path:
    """Return the folder that all suites share: the parent of their output folders."""
    return Path(params.suite.out).parent


def write_headlines(suite: EvaluatedSuite, claims: pd.DataFrame) -> dict[str, Any]:
    """Write the metrics file and the plots of a suite; return the metrics."""
    folder, name = folder_of(suite.params), suite.params.suite.name
    metrics = headline(suite, claims)
    write_json(folder / "metrics" / f"{name}.json", metrics)
    for plot, table in plots(suite, claims).items():
        write_csv(folder / "plots" / plot / f"{name}.csv", table)
    return metrics


def headline(suite: EvaluatedSuite, claims: pd.DataFrame) -> dict[str, Any]:
    """Return baseline and proposed method (%), the gain (points, with its 95 % interval), the AUROC of the proposed
    method's clip scores (%), and how many claims hold."""
    report, found = suite.params.report, {}
    for name, run in {"baseline": report.baseline, "proposed": report.proposed}.items():
        if run in suite.evaluated:
            found[name] = {metric: suite.score(run, metric).mean for metric in METRICS}
    if report.proposed in suite.evaluated:
        gain = suite.gain(report.proposed, suite.baseline_of(report.proposed))
        found["gain"] = {"accuracy": gain.mean, "low": gain.low, "high": gain.high}
        scores = suite.detection[(suite.detection["run"] == report.proposed) & (suite.detection["split"] == "test")]
        found["auroc"] = dict(100 * scores.astype({"auroc": float}).groupby("score")["auroc"].mean())
    if len(claims):
        counts = claims["verdict"].value_counts()
        found["claims"] = {words.replace(" ", "_"): int(counts.get(verdict, 0)) for verdict, words in COUNTED.items()}
    return {part: known for part, values in found.items() if (known := rounded(values))}


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Return the values that are known, with two decimals."""
    return {name: round(value, 2) for name, value in values.items() if not np.isnan(value)}


def plots(suite: EvaluatedSuite, claims: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the data of the plots; a table is empty if the suite has none of it."""
    report = suite.params.report
    noise = noise_table(suite).reindex(columns=["curve", "snr_db", "accuracy"])
    shown = [report.baseline, report.proposed, *report.figures.gain_per_class]
    runs = [run for run in dict.fromkeys(shown) if run in suite.evaluated]
    decided = [
        {"claim": f"{row['id']} {row['claim']}"} | {name: round(row[column], 2) for name, column in INTERVAL.items()}
        for row in claims.to_dict("records")
        if not np.isnan(row["difference"])
    ]
    return {
        "claims": pd.DataFrame(decided, columns=["claim", *INTERVAL]),
        "curves": curves(suite.params, runs),
        "confusion": confusion(suite.params, report.proposed if report.proposed in runs else report.baseline),
        "noise": noise.dropna(subset="accuracy").rename(columns={"snr_db": "snr"}).round({"accuracy": 2}),
    }


def curves(params: Params, runs: list[str]) -> pd.DataFrame:
    """Return the accuracy of runs by split and epoch."""
    history = results.gather(params, "train", "history.csv", ("run", "seed", "epoch"))
    splits = {"train_accuracy": "training", "val_accuracy": "selection"}
    columns = [column for column in splits if column in history]
    rows = history[history["run"].isin(runs)].melt(["run", "epoch"], columns, "split", "accuracy").dropna()
    means = rows.groupby(["run", "split", "epoch"], as_index=False, sort=False)["accuracy"].mean()
    return means.assign(split=means["split"].map(splits), accuracy=(100 * means["accuracy"].astype(float)).round(2))


def confusion(params: Params, run: str) -> pd.DataFrame:
    """Return the true and the predicted class of every test clip of a run's first seed."""
    table = results.gather(params, "evaluate", "confusion.csv", ("run", "seed", "true", "predicted", "clips"))
    rows = table[table["run"] == run]
    rows = rows[rows["seed"] == rows["seed"].min()]
    repeated = rows.loc[rows.index.repeat(rows["clips"].astype(int)), ["true", "predicted"]]
    return repeated.rename(columns={"true": "actual"})
