"""What the report is made from: the params, what was measured, what may be claimed, which MLflow run made it."""

from __future__ import annotations

import pandas as pd

from avdistill.config.schema import Job, Params
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results, significance
from avdistill.reporting.results import Interval, percent
from avdistill.tracking.journal import ledger


class EvaluatedSuite:
    """A suite that has been evaluated, or a part of it."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.measured = results.gather(params, "evaluate", "metrics.csv", ("run", "seed", "metric", "value"))
        self.detection = results.gather(
            params, "evaluate", "detection.csv", ("run", "seed", "score", "split", "auroc", "clips")
        )
        if self.measured.empty:
            raise UserError(f"{params.path('evaluate')}: no job has been evaluated; run `dvc repro evaluate` first")
        groups = self.measured.set_index("seed").groupby(["run", "metric"])["value"]
        self._values = {key: values.astype(float) for key, values in groups}
        self._seeds = self.measured.groupby("run")["seed"].unique().map(sorted).to_dict()
        self.evaluated = [run for run in params.runs() if run in self._seeds]
        self.tests = significance.tests(params, self.values)
        keys = self.tests[["run", "base", "metric"]].itertuples(index=False, name=None)
        self._found = dict(zip(keys, self.tests["found"], strict=True))
        self.ledger = ledger(params)

    def job(self, run: str) -> Job:
        """The job that a run stands in."""
        return self.params.jobs[self.params.runs()[run][0]]

    def study(self, run: str) -> str:
        """The study that a run is read in."""
        return self.params.study_of(self.params.runs()[run][0])

    def studies(self) -> dict[str, list[str]]:
        """Evaluated runs by study, in the order of params."""
        found: dict[str, list[str]] = {name: [] for name in self.params.studies}
        for run in self.evaluated:
            found.setdefault(self.study(run), []).append(run)
        return {name: runs for name, runs in found.items() if runs}

    def seeds(self, run: str) -> list[int]:
        """The seeds that a run was evaluated with."""
        return list(map(int, self._seeds.get(run, [])))

    def values(self, run: str, metric: str) -> pd.Series:
        """Values of a metric of a run, as shares (index: seed)."""
        return self._values.get((run, results.metric_key(metric)), pd.Series(dtype=float))

    def level(self, run: str, metric: str) -> Interval:
        """A metric of a run, in percent."""
        return percent(results.student_interval(self.values(run, metric)))

    def baseline_of(self, run: str) -> str | None:
        """The run without distillation that `run` is compared with; None for itself and where there is none."""
        base = results.counterpart(self.params, run, self.params.report.baseline)
        return base if base != run and base in self.evaluated else None

    def gain(self, run: str, base: str | None, metric: str = "accuracy") -> Interval:
        """The paired difference of two runs, in points; unknown without `base`."""
        if base is None:
            return results.UNKNOWN
        return percent(results.paired_difference(self.values(run, metric), self.values(base, metric)))

    def found(self, run: str, base: str | None, metric: str = "accuracy") -> str:
        """What may be claimed of a difference after Holm's correction: `gain`, `loss` or nothing."""
        return self._found.get((run, base, metric), "")

    def made_by(self, run: str) -> dict[str, str]:
        """Full ids of the MLflow runs behind a run's numbers: what trained and what evaluated it, by seed."""
        found = {}
        ids: dict[int | str, str | None]
        for stage in ("train", "evaluate"):
            ids = {seed: self.ledger.get((stage, run, seed)) for seed in self.seeds(run)}
            if not any(ids.values()):  # without nested runs, the job's own
                ids = {"all": self.ledger.get((stage, self.params.runs()[run][0]))}
            found[stage] = " ".join(f"{seed}:{run_id}" for seed, run_id in ids.items() if run_id)
        return found

    def tooltip(self, *runs: str) -> str:
        """What a pointer over a number shows: the runs that it comes from, and the MLflow runs that made them."""
        lines = []
        for run in filter(None, runs):
            lines.append(f"run {run}")
            lines += [f"MLflow {stage} {ids}" for stage, ids in self.made_by(run).items() if ids]
        return "\n".join(lines)
