"""The section `report` of params.yaml: the claims, tables and figures of the report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from avdistill.config.types import NAME, Count, Positive, Settings
from avdistill.pipeline.errors import nearest

# Metrics that stage evaluate writes by test clip. "mAP@K" is short for "mAP@K/released", the papers' form.
CLIP_METRICS = (
    "accuracy",
    *(f"R@{k}" for k in (1, 5, 10)),
    *(f"mAP@{k}/{form}" for k in (100, 500) for form in ("released", "hits", "standard")),
)
# Metrics of a claim that have one value per seed.
SEED_METRICS = ("classes", "guided_accuracy", "auroc/tau", "auroc/mask")
CLAIM_METRICS = (*CLIP_METRICS, "mAP@100", "mAP@500", *SEED_METRICS)


Expected = Literal["higher", "lower", "equal", "not_higher"]


class Claim(Settings):
    """A claim, as a contrast in points: the mean of `runs` - the mean of `minus`, in `metric`.

    `metric` is a metric of stage evaluate, or one of
      auroc/tau, auroc/mask  area under the ROC curve of a clip score, on the test split; without `minus`, less 0.5
      classes                share of classes in which `runs` have the higher accuracy (equal: half a class), less 0.5;
                             classes are the groups of test clips
      guided_accuracy        training accuracy of the guided classifier of MNF+CSC in the last epoch

    `against: each` compares with each run of `minus` by itself: the claim holds if it holds against each of them. The
    contrast is `expected` to be higher or lower than 0, equal: its interval within ± `bound` (points), or not_higher:
    its interval below `bound`. `reported` are the paper's numbers (points), by dataset."""

    claim: str
    metric: str
    runs: Annotated[tuple[str, ...], Field(min_length=1)]
    minus: tuple[str, ...] = ()
    against: Literal["mean", "each"] = "mean"
    expected: Expected = "higher"
    bound: Positive = 1.0
    reported: dict[str, float] = {}

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in CLAIM_METRICS:
            raise ValueError(f"there is no such metric; {nearest(metric, CLAIM_METRICS)}")
        return metric

    @model_validator(mode="after")
    def _is_a_contrast(self) -> Claim:
        if not self.minus and (self.against == "each" or not self.metric.startswith("auroc/")):
            raise ValueError(f"minus: {self.metric} needs runs to compare with; expected a list of runs")
        return self


class ComparedSetting(Settings):
    """A setting in which methods are compared with a student without a teacher, to find when distillation helps.

    `runs` are the methods' runs by label, `baseline` is the run of the student; all have the same dataset, input and
    recipe. `A` is the features entry of their teacher, as a rule the audio teacher: the gain is predicted from its
    features and those of the student (avdistill/reporting/information.py)."""

    title: str
    baseline: str
    runs: Annotated[dict[str, str], Field(min_length=1)]
    A: str


class Table(Settings):
    """A table of a paper, and the runs of this suite that correspond to its rows.

    `source`, `table` and `reported_dataset` select rows of reported_results.csv. `rows` maps a method of the paper to a
    run. A method that the paper evaluates with several teachers is written with its setup ("CCL/AI"), or without to
    cover all setups. `baseline` is the method from which differences are computed, by default the first of `rows`.
    `metrics` are the columns."""

    title: str
    source: Literal["xia2023", "chen2021"]
    table: Count
    reported_dataset: str
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    rows: Annotated[dict[str, str], Field(min_length=1)]
    baseline: str = ""

    @model_validator(mode="after")
    def _baseline_has_a_run(self) -> Table:
        methods = [self.method_and_setup(row)[0] for row in self.rows]
        if self.base not in methods:
            raise ValueError(f"baseline '{self.baseline}' is not in rows; {nearest(self.baseline, methods)}")
        return self

    @staticmethod
    def method_and_setup(row: str) -> tuple[str, str]:
        """Split a key of `rows`: "CCL/AI" gives ("CCL", "AI"), "w/o MNF" gives ("w/o MNF", "")."""
        method, slash, setup = row.rpartition("/")
        return (method, setup) if slash and setup in {"A", "I", "AI"} else (row, "")

    @property
    def base(self) -> str:
        """Return the method from which differences are computed."""
        return self.baseline or self.method_and_setup(next(iter(self.rows)))[0]

    def run_of(self, method: str, setup: str) -> str | None:
        """Return the run for a row of the paper's table, or None."""
        return self.rows.get(f"{method}/{setup}", self.rows.get(method))


class Attention(Settings):
    """Attention maps of a run, drawn over the frames of `clips` test clips."""

    run: str
    clips: Annotated[int, Field(ge=2, le=16)] = 8


class Retrieval(Settings):
    """Retrieval results of `runs`: for each of `queries` test clips, the `shown` nearest clips of the gallery."""

    runs: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)]
    queries: Annotated[int, Field(ge=1, le=8)] = 4
    shown: Annotated[int, Field(ge=1, le=8)] = 6


class Figures(Settings):
    """Optional figures and the runs that they show, in addition to the figures of every suite.

    training_curves  accuracy by epoch, one run per label of the legend (Xia Fig. 3)
    attention        maps of the audio-guided attention of a run (Xia Fig. 4)
    gain_per_class   difference in accuracy of runs from the baseline, by class (Chen Fig. 3)
    large            recognition and retrieval of runs on the large dataset (Chen Fig. 4)
    retrieval        the gallery clips that runs retrieve (Chen Fig. 5)
    embedding        two-dimensional embedding of the features of training and test clips of runs (Chen Fig. 5)
    heard            features entry of an audio teacher whose own class predictions are shown (Chen Fig. 6)
    noise            by label of the curve, runs by the signal-to-noise ratio (dB) of the training sound, or `clean`
    scores           runs whose masks and temperatures are drawn as histograms"""

    training_curves: dict[str, str] = {}
    attention: Attention | None = None
    gain_per_class: Annotated[tuple[str, ...], Field(max_length=4)] = ()
    large: tuple[str, ...] = ()
    retrieval: Retrieval | None = None
    embedding: Annotated[tuple[str, ...], Field(max_length=4)] = ()
    heard: str = ""
    noise: dict[str, dict[Literal["clean"] | float, str]] = {}
    scores: Annotated[tuple[str, ...], Field(max_length=6)] = ()

    def runs(self) -> dict[str, list[str]]:
        """Return the runs in each figure."""
        return {
            "training_curves": list(self.training_curves.values()),
            "attention": [self.attention.run] if self.attention else [],
            "gain_per_class": list(self.gain_per_class),
            "large": list(self.large),
            "retrieval": list(self.retrieval.runs) if self.retrieval else [],
            "embedding": list(self.embedding),
            "noise": [run for curve in self.noise.values() for run in curve.values()],
            "scores": list(self.scores),
        }


class Report(Settings):
    """The contents of the report in addition to the table of all runs.

    `claims` are the claims to decide, by id, `settings` the settings in which to ask when distillation helps.
    `baseline` is the run that all others are compared with, `proposed` the run that is compared with each run of the
    other methods, `cost` the runs whose cost is measured."""

    baseline: str
    proposed: str | None = None
    cost: tuple[str, ...] = ()
    claims: dict[str, Claim] = {}
    settings: dict[str, ComparedSetting] = {}
    tables: dict[str, Table] = {}
    figures: Figures = Figures()

    @model_validator(mode="after")
    def _plain_names(self) -> Report:
        for section in ("claims", "settings", "tables"):
            for name in getattr(self, section):
                if not NAME.fullmatch(name):
                    raise ValueError(f"{section}: '{name}' is not a valid name; use letters, digits, '_', '-' and '.'")
        return self
