"""Contrasts between the runs of an evaluated suite, in points, paired by seed and by test clip.

If the teachers have several draws, contrasts are averaged over the seeds of each draw, and draws take the place of
seeds (avdistill/reporting/results.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from avdistill.config.report import CLIP_METRICS
from avdistill.config.schema import Params
from avdistill.data.draws import draws_of
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results
from avdistill.reporting.two_way import Contrast, by_group, linearised, two_way


class Contrasts:
    """Reads what stages train and evaluate measured by seed and clip, each file once."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self._clips: dict[str, dict[str, dict[int, np.ndarray]]] = {}
        self._ids: dict[str, np.ndarray] = {}
        self._indices: dict[str, pd.DataFrame] = {}
        self._columns: dict[tuple[str, str], np.ndarray] = {}
        self._tables: dict[str, pd.DataFrame] = {}

    def contrast(self, metric: str, runs: Sequence[str], minus: Sequence[str]) -> Contrast | None:
        """Return the mean of `runs` - the mean of `minus` over their common seeds; see `config.report.Claim`.

        None if they have no seed in common, or the metric was not measured. Raises UserError if the runs or their seeds
        were evaluated on different clips, or a file is damaged."""
        metric = results.metric_key(metric)
        if metric == "classes":
            return self._by_class(runs, minus)
        values = self._by_group(metric, runs, minus) if metric in CLIP_METRICS else self._by_seed(metric, runs, minus)
        return two_way(100 * values) if values.size else None

    def _by_group(self, metric: str, runs: Sequence[str], minus: Sequence[str]) -> np.ndarray:
        """Return the contrast (seeds, groups) of a metric by clip."""
        seeds, ours, others = self._paired(metric, runs, minus)
        if not seeds:
            return np.empty((0, 0))
        return by_group(self._by_draw(ours - others, seeds), self._of_clips(runs[0], "group"))

    def _by_class(self, runs: Sequence[str], minus: Sequence[str]) -> Contrast | None:
        """Return the share of classes with the higher accuracy, less one half; classes are the groups of clips."""
        seeds, ours, others = self._paired("accuracy", runs, minus)
        if not seeds:
            return None
        # The sign of the mean over a class's clips is that of its sum, up to the rounding of the mean over runs.
        sums = pd.DataFrame((ours - others).T).groupby(self._of_clips(runs[0], "class")).sum().to_numpy().T
        sides = self._by_draw(50 * np.sign(sums.round(9)), seeds)
        # One more class on either side, as Agresti and Coull add successes and failures (American Statistician 52,
        # 1998): else classes that all agree would have no variance.
        padded = np.pad(sides, ((0, 0), (1, 1)), constant_values=(-50, 50))
        return two_way(padded)._replace(mean=float(sides.mean()))

    def _by_seed(self, metric: str, runs: Sequence[str], minus: Sequence[str]) -> np.ndarray:
        """Return the contrast (seeds, 1) of a metric with one value per seed; AUROC without `minus` is less 0.5."""

        def mean(side: Sequence[str]) -> pd.Series:
            return pd.concat([self._values(run, metric) for run in side], axis=1).mean(axis=1, skipna=False)

        found = (mean(runs) - (mean(minus) if minus else 0.5)).dropna()
        return self._by_draw(found.to_numpy()[:, None], found.index)

    def _by_draw(self, values: np.ndarray, seeds: Sequence[int] | pd.Index) -> np.ndarray:
        """Return the means (draws, N) of values (seeds, N) over the seeds of each draw of the teachers."""
        draws = draws_of(self.params)
        return results.by_draw(pd.DataFrame(values, index=seeds), draws).to_numpy() if draws > 1 else values

    def _values(self, run: str, metric: str) -> pd.Series:
        """Return the values of a run by seed; empty if stage train or evaluate wrote none."""
        if metric == "guided_accuracy":
            rows = self._table("train", "history.csv", ("run", "seed", "epoch"))
            rows = rows[rows["run"] == run]
            last = rows[rows["epoch"] == rows.groupby("seed")["epoch"].transform("max")]
            return last.set_index("seed").get(metric, pd.Series(dtype=float))
        rows = self._table("evaluate", "detection.csv", ("run", "seed", "score", "split", "auroc"))
        chosen = (rows["run"] == run) & (rows["split"] == "test") & (rows["score"] == metric.removeprefix("auroc/"))
        return rows[chosen].set_index("seed")["auroc"].astype(float)

    def _table(self, stage: str, file: str, columns: tuple[str, ...]) -> pd.DataFrame:
        """Return the table of all jobs that a stage wrote."""
        if stage not in self._tables:
            self._tables[stage] = results.gather(self.params, stage, file, columns)
        return self._tables[stage]

    def _paired(
        self, metric: str, runs: Sequence[str], minus: Sequence[str]
    ) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return the common seeds of all runs, and the means over `runs` and over `minus` by seed and clip (S, N)."""
        found = {run: self._by_clip(run, metric) for run in (*runs, *minus)}
        seeds = sorted(set.intersection(*(set(values) for values in found.values())))
        if not seeds:
            return [], np.empty(0), np.empty(0)
        for run in found:
            if not np.array_equal(self._ids[run], self._ids[runs[0]]):
                raise UserError(
                    f"{self.params.evaluated(run)}: evaluated on other test clips than {runs[0]}; run `dvc repro` again"
                )
        ours, others = (
            np.mean([[found[run][seed] for seed in seeds] for run in side], axis=0) for side in (runs, minus)
        )
        return seeds, ours, others

    def _by_clip(self, run: str, metric: str) -> dict[int, np.ndarray]:
        """Return the values of a run by test clip (N,), by seed; without the seeds that did not converge."""
        if run not in self._clips:
            found = self._clips[run] = {name: {} for name in CLIP_METRICS}
            for seed in self.params.jobs[self.params.runs()[run][0]].seeds_of(run):
                path = self.params.evaluated(run) / f"seed-{seed}.npz"
                if not path.exists():
                    continue
                arrays = read_arrays(path, ("ids", "accuracy", "R@*", "mAP@*"))
                ids = arrays.pop("ids")
                if not np.array_equal(ids, self._ids.setdefault(run, ids)):
                    raise UserError(f"{path}: evaluated on other test clips than other seeds; run `dvc repro` again")
                for name, values in arrays.items():
                    if not np.isnan(values).all():
                        found[name][seed] = linearised(values)
        return self._clips[run][metric]

    def _of_clips(self, run: str, column: str) -> np.ndarray:
        """Return a column of the index for the test clips of a run (N,)."""
        if (run, column) not in self._columns:
            dataset = self.params.jobs[self.params.runs()[run][0]].dataset
            if dataset not in self._indices:
                self._indices[dataset] = read_index(self.params.index(dataset)).set_index("id")
            self._columns[run, column] = self._indices[dataset].loc[self._ids[run], column].to_numpy(dtype=str)
        return self._columns[run, column]
