"""The section `report` of params.yaml: the tables and figures of a suite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from avdistill.config.types import NAME, Count, Settings
from avdistill.pipeline.errors import nearest


class Table(Settings):
    """A table of a paper, and which of our runs stands for which of its rows.

    `source`, `table` and `reported_dataset` select rows of reported_results.csv. `rows` maps a method of that table to
    one of our runs; a method that the paper tries with several teachers is written with its setup ("CCL/AI"), or
    without one to stand for all of them. `baseline` is the method that gains are measured from, by default the first
    of `rows`. `metrics` are the columns."""

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
            raise ValueError(f"baseline '{self.baseline}' is none of the rows; {nearest(self.baseline, methods)}")
        return self

    @staticmethod
    def method_and_setup(row: str) -> tuple[str, str]:
        """A key of `rows` in its two parts: "CCL/AI" is ("CCL", "AI"), "w/o MNF" is ("w/o MNF", "")."""
        method, slash, setup = row.rpartition("/")
        return (method, setup) if slash and setup in {"A", "I", "AI"} else (row, "")

    @property
    def base(self) -> str:
        """The method that gains are measured from."""
        return self.baseline or self.method_and_setup(next(iter(self.rows)))[0]

    def run_of(self, method: str, setup: str) -> str | None:
        """Our run that stands for a row of the paper's table; None where there is none."""
        return self.rows.get(f"{method}/{setup}", self.rows.get(method))


class Attention(Settings):
    """Clips over whose frames the attention of a run is drawn."""

    run: str
    clips: Annotated[int, Field(ge=2, le=16)] = 8


class Retrieval(Settings):
    """What runs retrieve: for each of `queries` test clips the nearest `shown` clips of the gallery."""

    runs: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)]
    queries: Annotated[int, Field(ge=1, le=8)] = 4
    shown: Annotated[int, Field(ge=1, le=8)] = 6


class Figures(Settings):
    """Figures beside those that every suite has, and the runs that they show. What is not given is not drawn.

    training_curves  accuracy by epoch of runs, by the label that they get (Xia Fig. 3)
    attention        where the audio-guided attention of a run looks (Xia Fig. 4)
    gain_per_class   gain of runs over the baseline, class by class (Chen Fig. 3)
    large            runs of the large set side by side: recognition and retrieval (Chen Fig. 4)
    retrieval        the gallery clips that runs find (Chen Fig. 5)
    embedding        features of training and test clips of runs, in the plane (Chen Fig. 5)
    heard            features entry of an audio teacher: the classes of its own that it hears (Chen Fig. 6)
    noise            by label, runs by the signal-to-noise ratio in dB of the sound that they learn from, or `clean`
    scores           runs whose mask and temperature are drawn as histograms"""

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
        """The runs that each figure shows."""
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
    """What the report shows beside the table of all runs. `baseline`: the run that the others are compared with;
    `proposed`: the run that is compared with those of each other method; `cost`: runs whose cost is measured."""

    baseline: str
    proposed: str | None = None
    cost: tuple[str, ...] = ()
    tables: dict[str, Table] = {}
    figures: Figures = Figures()

    @model_validator(mode="after")
    def _tables_have_plain_names(self) -> Report:
        for name in self.tables:
            if not NAME.fullmatch(name):
                raise ValueError(f"tables: '{name}' is not a name; use letters, digits, '_', '-' and '.'")
        return self
