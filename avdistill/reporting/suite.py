"""Data of the report: params, measurements, significance tests and the MLflow runs behind them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from avdistill.config.schema import Job, Params
from avdistill.config.studies import target
from avdistill.data.draws import draws_of
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results, significance
from avdistill.reporting.contrasts import Contrasts
from avdistill.reporting.page import listed
from avdistill.reporting.results import Interval, percent
from avdistill.tracking.journal import ledger


class EvaluatedSuite:
    """An evaluated suite. Jobs that are not evaluated are left out; raises UserError if none is."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.measured = results.gather(params, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
        self.detection = results.gather(
            params, "evaluate", "detection.csv", ("run", "seed", "score", "split", "auroc", "clips")
        )
        if self.measured.empty:
            first = target(params, "evaluate")
            raise UserError(f"{params.path('evaluate')}: no job has been evaluated; run `dvc repro {first}` first")
        groups = self.measured.set_index("seed").groupby(["run", "metric"])["value"]
        self._values = {key: values.astype(float) for key, values in groups}
        self._seeds = self.measured.groupby("run")["seed"].unique().map(sorted).to_dict()
        self.evaluated = [run for run in params.runs() if run in self._seeds]
        self.draws = draws_of(params)
        self.contrasts = Contrasts(params)
        self.tests = significance.tests(params, self.contrasts)
        keys = self.tests[["run", "base", "metric"]].itertuples(index=False, name=None)
        self._verdicts = dict(zip(keys, self.tests["verdict"], strict=True))
        self.ledger = ledger(params)

    def job(self, run: str) -> Job:
        """Return the job of a run."""
        return self.params.jobs[self.params.runs()[run][0]]

    def study(self, run: str) -> str:
        """Return the name of the study of a run; empty if it has none."""
        return self.params.study_of(self.params.runs()[run][0])

    def studies(self) -> dict[str, list[str]]:
        """Return the evaluated runs by study, in the order of params."""
        found: dict[str, list[str]] = {name: [] for name in self.params.studies}
        for run in self.evaluated:
            found.setdefault(self.study(run), []).append(run)
        return {name: runs for name, runs in found.items() if runs}

    def seeds(self, run: str) -> list[int]:
        """Return the seeds that a run was evaluated with."""
        return list(map(int, self._seeds.get(run, [])))

    def values(self, run: str, metric: str) -> pd.Series:
        """Return the values of a metric of a run, as fractions (index: seed)."""
        return self._values.get((run, results.metric_key(metric)), pd.Series(dtype=float))

    def not_converged(self, run: str) -> int:
        """Return how many trainings of a run diverged. Their metrics are NaN, which means and tests leave out."""
        return int((self.values(run, "converged") == 0).sum())

    def score(self, run: str, metric: str) -> Interval:
        """Return the mean of a metric of a run over seeds, in percent."""
        return percent(results.student_interval(results.by_draw(self.values(run, metric), self.draws)))

    def coverage(self) -> str:
        """Return what the interval of a contrast covers."""
        trained = [name for name, teacher in self.params.teachers.items() if teacher.draws > 1]
        if not trained:
            return "other seeds and test clips, not other teachers"
        covered = f"other seeds, test clips and trainings of {listed(trained)}"
        seeds = [job.seeds for job in self.params.jobs.values()]
        shared = any(len({seed % self.draws for seed in several}) < len(several) for several in seeds)
        return f"{covered} (seeds that share one count as one)" if shared else covered

    def logits_note(self, runs: Iterable[str]) -> list[str]:
        """Return one note that says which predictions for training clips some runs' methods use; none if none.

        In sample, a teacher's predictions are almost the labels (avdistill/training/heads.py)."""
        from models.distillers import methods

        known, uses = self.params.runs(), {name for name, method in methods().items() if method.uses_logits}
        following = [run for run in runs if run in known and self.job(run).method in uses]
        used = {getattr(self.job(run), letter) for run in following for letter in known[run][1].teachers}
        folds: dict[int, list[str]] = {}
        for name, entry in self.params.features.items():
            if name in used:
                folds.setdefault(entry.cross_fit, []).append(name)
        said = []
        for number, names in folds.items():
            how = f"out of fold ({number} folds)" if number else "in sample"
            said.append(f"{how} with {listed(names)}" if len(folds) > 1 else how)
        return [f"Teachers' predictions for training clips: {'; '.join(said)}."] if said else []

    def baseline_of(self, run: str) -> str | None:
        """Return the evaluated run without distillation to compare `run` with; None if there is none."""
        base = results.counterpart(self.params, run, self.params.report.baseline)
        return base if base != run and base in self.evaluated else None

    def gain(self, run: str, base: str | None, metric: str = "accuracy") -> Interval:
        """Return the difference run - base, in points, paired by seed and test clip; UNKNOWN without `base`."""
        found = self.contrasts.contrast(metric, (run,), (base,)) if base else None
        return found.interval() if found else results.UNKNOWN

    def verdict(self, run: str, base: str | None, metric: str = "accuracy") -> str:
        """Return `higher`, `lower` or `undecided` (after Holm's correction); empty if the pair is not compared."""
        return self._verdicts.get((run, base, metric), "")

    def mlflow_ids(self, run: str) -> dict[str, str]:
        """Return the full ids of the MLflow runs that trained and evaluated a run: `seed:id`, separated by spaces."""
        found = {}
        ids: dict[int | str, str | None]
        for stage in ("train", "evaluate"):
            ids = {seed: self.ledger.get((stage, run, seed)) for seed in self.seeds(run)}
            if not any(ids.values()):  # no nested runs: use the run of the job
                ids = {"all": self.ledger.get((stage, self.params.runs()[run][0]))}
            found[stage] = " ".join(f"{seed}:{run_id}" for seed, run_id in ids.items() if run_id)
        return found

    def tooltip(self, *runs: str) -> str:
        """Return the tooltip of a number: the runs behind it and their MLflow runs."""
        lines = []
        for run in filter(None, runs):
            lines.append(f"run {run}")
            lines += [f"MLflow {stage} {ids}" for stage, ids in self.mlflow_ids(run).items() if ids]
        return "\n".join(lines)
