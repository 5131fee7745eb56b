"""The sections of params.yaml, typed and validated.

A *suite* is one params file and the graph it spans. A *run* is a named entry under a job: a method, its teachers and
what is changed. A *job* is the runs of one method that one process trains, with their seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from avdistill.config.origins import AnyOrigin
from avdistill.config.report import Report
from avdistill.config.types import NO_TEACHER, Count, Positive, Precision, Seed, Settings, Share


class Suite(Settings):
    """Where the suite lives. `root` leads from dvc.yaml to the repository's root; the other paths start there."""

    name: str
    title: str
    root: Literal[".", ".."]
    file: str
    out: str


class Split(Settings):
    """Shares of the *groups* of each class that go to the test split, and of the rest to the validation split."""

    test: Share = 0.3
    val: Share = 0.2
    seed: Seed = 0


class Frames(Settings):
    """Pictures of `dataset`, sampled at `fps` and scaled so that the shorter side has `short_side` pixels.

    `jpeg` takes a tenth of the bytes of `raw` and, read, half a millisecond a frame; `quality` is libjpeg's."""

    dataset: str
    fps: Positive = 4
    short_side: Annotated[int, Field(ge=16)] = 128
    reader: Literal["auto", "decord", "pyav"] = "auto"
    encoding: Literal["raw", "jpeg"] = "raw"
    quality: Annotated[int, Field(ge=1, le=95)] = 90


class Dataset(Settings):
    """A dataset: where it comes from and how it is split."""

    origin: AnyOrigin
    split: Split


class NoiseMix(Settings):
    """Each recording of `dataset` mixed with one of another class, `snr_db` decibels quieter than itself."""

    dataset: str
    snr_db: Annotated[float, Field(ge=-60, le=60)]
    seed: Seed = 0


class Teacher(Settings):
    """A frozen network. `weights`: a published checkpoint by its name (see avdistill/data/sources/weights.py), the path
    of a checkpoint, or `avsynth` to train it here on made sounds or images.

    For a published checkpoint, `mirror` is a base URL in place of the official host's, and `checksum` (`md5:…` or
    `sha256:…`, in full) is expected in place of the published one. `embedding`, `examples`, `epochs` and `seed` are for
    teachers that are trained here; `width` is for them and for narrower networks' checkpoints."""

    kind: Literal["cnn14", "resnet10", "resnet34", "resnet50"]
    weights: str
    mirror: str | None = None
    checksum: Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")] | None = None
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    embedding: Count | None = None
    examples: Annotated[int, Field(ge=32)] = 800
    epochs: Count = 5
    seed: Seed = 0


class Features(Settings):
    """What teacher `teacher` makes of `input` (`spectrogram/…`, `mix_noise/…` or `frames/…`), a vector a clip.

    Or `published` features, which a paper's authors computed (see avdistill/data/sources/published_features.py):
    then `teacher` is `none`,
    `input` is `split/<dataset>`, and `source` may be the URL or path of their archive in place of the official one.
    `precision` below float32 is for processors that are faster at it: features are then some thousandths off."""

    dataset: str
    teacher: str
    input: str
    precision: Precision = "float32"
    published: Literal["ccl_ucf51_audio"] | None = None
    source: str | None = None


class Recipe(Settings):
    """How a student is trained. Lengths in frames and epochs, sizes in pixels, `scale` as a share of the area.

    The learning rate rises to `lr` over `warmup` epochs; then `steps` multiplies it by `gamma` at each of the
    `milestones`, `cosine` lets it fall to 0. `batch` is that of all `processes` together (a GPU each) which train one
    student; with one process, jobs spread over the GPUs instead. `compile` runs the student through torch.compile."""

    student: Literal["r2plus1d_10", "r2plus1d_18", "resnet10_audio", "resnet34_audio", "resnet50_audio"] = "r2plus1d_10"
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    frames: Count = 16
    size: Annotated[int, Field(ge=16)] = 112
    stride: Count = 16
    scale: tuple[Share, Share] = (0.25, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: bool = True
    normalisation: Literal["imagenet", "kinetics"] = "imagenet"
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Positive = 3e-4
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    batch: Annotated[int, Field(ge=2)] = 32
    epochs: Count = 200
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[Count, ...] = (150,)
    gamma: Share = 0.1
    warmup: Annotated[int, Field(ge=0)] = 0
    selection: Literal["val", "test", "last"] = "val"
    precision: Precision = "float32"
    loader_workers: Annotated[int, Field(ge=0)] = 0
    processes: Count = 1
    compile: bool = False
    train_groups: Count | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Recipe:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, not {[low, high]}")
        if self.batch % self.processes:
            raise ValueError(f"batch {self.batch} cannot be shared out among {self.processes} processes")
        return self


class Run(Settings):
    """One way of training by its job's method: the teachers that it listens to, what is changed, and how many
    `repeats` it has, with the first of its job's seeds (None: with all)."""

    teachers: Literal["", "A", "I", "AI", "S"] = ""
    options: dict[str, Any] = {}
    repeats: Count | None = None


class Job(Settings):
    """Runs of one method, and the seeds that one process trains them with.

    A and I name the features of an audio and of an image teacher; S names an earlier student, as <job>/<run>."""

    method: str
    dataset: str
    input: str
    recipe: str
    A: str = NO_TEACHER
    I: str = NO_TEACHER  # the letters are those of Chen's tables
    S: str = NO_TEACHER
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    runs: Annotated[dict[str, Run], Field(min_length=1)]

    def seeds_of(self, run: str) -> tuple[int, ...]:
        """The seeds that a run is trained with."""
        return self.seeds[: self.runs[run].repeats]

    def trainings(self) -> list[tuple[str, int]]:
        """Every run with each of its seeds."""
        return [(run, seed) for run in self.runs for seed in self.seeds_of(run)]


class Study(Settings):
    """Jobs that are run and read together. A job that several studies name is read in the first of them."""

    title: str
    jobs: Annotated[tuple[str, ...], Field(min_length=1)]


class Params(Settings):
    """A whole suite."""

    suite: Suite
    device: str = "auto"
    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]
    frames: dict[str, Frames] = {}
    noise_mixes: dict[str, NoiseMix] = {}
    teachers: dict[str, Teacher] = {}
    features: dict[str, Features] = {}
    recipes: Annotated[dict[str, Recipe], Field(min_length=1)]
    jobs: Annotated[dict[str, Job], Field(min_length=1)]
    studies: dict[str, Study] = {}
    exports: tuple[str, ...] = ()  # datasets whose best student becomes a model to serve
    report: Report

    def runs(self) -> dict[str, tuple[str, Run]]:
        """Every run by name, with the name of its job."""
        return {name: (job, run) for job, entry in self.jobs.items() for name, run in entry.runs.items()}

    def study_of(self, job: str) -> str:
        """The first study that names a job; empty in a suite without studies."""
        return next((name for name, study in self.studies.items() if job in study.jobs), "")

    def path(self, stage: str, item: str | None = None) -> Path:
        """Where `stage` puts what it makes for `item`: one rule for the whole pipeline."""
        folder = Path(self.suite.out) / stage
        return folder / item if item is not None else folder
