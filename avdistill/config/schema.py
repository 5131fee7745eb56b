"""The sections of params.yaml, typed and validated.

A *suite* is one params file and its DVC pipeline. A *job* is the runs of one method that one process trains, with their
seeds. A *run* is a named entry of a job: its teachers and its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from avdistill.config.origins import AnyOrigin
from avdistill.config.report import Report
from avdistill.config.types import NAME, NO_TEACHER, Count, Fraction, PlainPath, Positive, Precision, Seed, Settings


class Suite(Settings):
    """The name and the paths of the suite.

    `root` is the path from the folder of dvc.yaml to the root of the repository. The params file `file` and the output
    folder `out` are relative to that root."""

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    title: str
    root: Literal[".", ".."]
    file: PlainPath
    out: PlainPath


class Split(Settings):
    """Fractions of the *groups* of each class for the test split, and of the others for the validation split.

    `wrong_labels` is the fraction of the training clips that students and heads get with the label of another class,
    sampled at random: an experiment with label noise. Test clips and the gallery of retrieval keep their own."""

    test: Fraction = 0.3
    val: Fraction = 0.2
    wrong_labels: Fraction | None = None
    seed: Seed = 0


class Frames(Settings):
    """Frames of `dataset`, sampled at `fps` and scaled so that the shorter side has `short_side` pixels.

    `jpeg` needs a tenth of the bytes of `raw` and half a millisecond per frame to decode; `quality` is libjpeg's."""

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
    """The sound of each clip of `dataset`, mixed with that of a clip of another class at a ratio of `snr_db` (dB)."""

    dataset: str
    snr_db: Annotated[float, Field(ge=-60, le=60)]
    seed: Seed = 0


class Teacher(Settings):
    """A frozen network, or an oracle.

    `weights` is the name of a published checkpoint (see avdistill/data/sources/weights.py), the path of a checkpoint,
    or `avsynth` to train a network here on synthetic sounds or images. For a published checkpoint, `mirror` is a base
    URL in place of the official host's, and `checksum` (`md5:…` or `sha256:…`, in full) replaces the published one.
    `width`, `embedding`, `examples`, `epochs`, `seed` and `draws` apply to teachers trained here: a checkpoint has its
    own sizes. A teacher with several `draws` is trained with as many seeds, `seed` and those after it, among which the
    seeds of the students are divided (avdistill/data/draws.py).

    An entry of kind `r2plus1d_10_small`, trained here on synthetic motions, is not a teacher but what students start
    from (`init` of a job).

    A teacher of kind `truth` is an oracle without weights: it knows, for each clip, the value of `column` in index.csv.
    Its features (avdistill/data/sources/truth.py) have input `split/<dataset>`."""

    kind: Literal["cnn14", "resnet10", "resnet34", "resnet50", "r2plus1d_10_small", "truth"]
    weights: str = ""
    column: Annotated[str, Field(min_length=1)] | None = None
    mirror: str | None = None
    checksum: Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")] | None = None
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    embedding: Count | None = None
    examples: Annotated[int, Field(ge=32)] = 800
    epochs: Count = 5
    seed: Seed = 0
    draws: Count = 1

    @model_validator(mode="after")
    def _has_weights_or_a_column(self) -> Teacher:
        if self.kind != "truth":
            if not self.weights:
                raise ValueError("weights: missing; expected avsynth, a published checkpoint or the path of one")
            if self.column is not None:
                raise ValueError("column: only a teacher of kind truth has a column")
            if self.draws > 1 and self.weights != "avsynth":
                raise ValueError(f"draws: expected 1, because '{self.weights}' is not trained here, found {self.draws}")
        elif self.column is None:
            raise ValueError("column: missing; a teacher of kind truth needs a column of index.csv")
        elif others := sorted(self.model_fields_set - {"kind", "column"}):
            raise ValueError(f"{others[0]}: a teacher of kind truth has a column and no other settings")
        return self


class Features(Settings):
    """The features of `teacher` on `input` (`spectrogram/…`, `mix_noise/…` or `frames/…`), one vector per clip.

    The input of a teacher of kind `truth` is `split/<dataset>`.

    Alternatively, `published` features of a paper's authors (see avdistill/data/sources/published_features.py): then
    `teacher` is `none`, `input` is `split/<dataset>`, and `source` may be the URL or path of an archive in place of the
    official one. A `precision` below float32 is faster on some processors, with errors of some thousandths; see Recipe.

    `cross_fit`: the logits of a training clip, which methods distil, come from a linear layer that has not seen its
    group; the groups are divided into this many folds. 0: from the layer that was fitted on the clip itself."""

    dataset: str
    teacher: str
    input: str
    precision: Precision = "float32"
    published: Literal["ccl_ucf51_audio"] | None = None
    source: str | None = None
    cross_fit: Annotated[int, Field(ge=0, le=100)] = 5

    @model_validator(mode="after")
    def _more_than_one_fold(self) -> Features:
        if self.cross_fit == 1:
            raise ValueError("cross_fit must be 0 (no folds) or at least 2")
        return self


class Recipe(Settings):
    """How a student is trained. Lengths are in frames and epochs, sizes in pixels, `scale` is a fraction of the area.

    `precision` holds for training and evaluation alike. float32 has all 23 bits of mantissa everywhere; tf32 is float32
    whose products and convolutions a GPU computes with 10 bits, three to five times as fast (on a CPU it is float32);
    bfloat16 and float16 are autocast, which leaves what needs float32 in float32.

    The learning rate rises to `lr` over `warmup` epochs; then `steps` multiplies it by `gamma` at each of the
    `milestones`, and `cosine` lowers it to 0. `processes`, with one GPU each, train one student together; `batch` is
    their total batch size. With one process, the runs of a job are distributed over the GPUs. `compile` applies
    torch.compile to the student.

    `data_on_device` keeps the training clips in the device's memory (UCF51 at 4 frames per second: 12 GB) and crops
    them there, with the random numbers of the loader; a pixel differs from the loader's by one grey level at most. It
    needs frames of one size.

    With `train_groups`, students train on so many groups of each class: the first by name, or, with `resample`, groups
    that are sampled at random for each seed, so that seeds differ by their training clips, too. The linear layer on a
    teacher's features is then fitted on the same clips, so that no label of another clip reaches the student."""

    student: Literal[
        "r2plus1d_10",
        "r2plus1d_10_factored",
        "r2plus1d_10_small",
        "r2plus1d_18",
        "resnet10_audio",
        "resnet34_audio",
        "resnet50_audio",
    ] = "r2plus1d_10"
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    frames: Count = 16
    size: Annotated[int, Field(ge=16)] = 112
    stride: Count = 16
    scale: tuple[Fraction, Fraction] = (0.25, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: bool = True
    normalisation: Literal["imagenet", "kinetics"] = "imagenet"
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Positive = 3e-4
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    batch: Annotated[int, Field(ge=2)] = 32
    epochs: Count = 200
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[Count, ...] = (150,)
    gamma: Fraction = 0.1
    warmup: Annotated[int, Field(ge=0)] = 0
    selection: Literal["val", "test", "last"] = "val"
    precision: Precision = "float32"
    loader_workers: Annotated[int, Field(ge=0)] = 0
    processes: Count = 1
    compile: bool = False
    data_on_device: bool = False
    train_groups: Count | None = None
    resample: bool | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Recipe:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected [low, high] with 0 < low <= high, found {[low, high]}")
        if self.batch % self.processes:
            raise ValueError(f"batch {self.batch} must be a multiple of processes {self.processes}")
        return self


class Run(Settings):
    """A configuration of its job's method.

    `teachers` are the teachers that it uses, `options` the options of the method that differ from their defaults.
    It is trained with the first `repeats` seeds of its job (None: with all). With `shuffled`, each training clip has
    the outputs that its teachers have for a random training clip of another class (`other_class`: teachers that know
    less than nothing) or of its own (`within_class`: teachers that know nothing beyond the label)."""

    teachers: Literal["", "A", "I", "AI", "S"] = ""
    options: dict[str, Any] = {}
    repeats: Count | None = None
    shuffled: Literal["other_class", "within_class"] | None = None

    @model_validator(mode="after")
    def _shuffles_teachers(self) -> Run:
        if self.shuffled and not self.teachers:
            raise ValueError("shuffled needs a teacher; set teachers, or remove shuffled")
        return self


class Job(Settings):
    """Runs of one method that one process trains, with each of `seeds`.

    A and I name the features of an audio and of an image teacher; S names an earlier student, as <job>/<run>. `init`
    names the entry of `teachers` whose weights students start from, all but the last layer."""

    method: str
    dataset: str
    input: str
    recipe: str
    A: str = NO_TEACHER
    I: str = NO_TEACHER  # the letters of the tables of Chen et al.
    S: str = NO_TEACHER
    init: str = NO_TEACHER
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    runs: Annotated[dict[str, Run], Field(min_length=1)]

    def seeds_of(self, run: str) -> tuple[int, ...]:
        """Return the seeds of a run."""
        return self.seeds[: self.runs[run].repeats]

    def trainings(self) -> list[tuple[str, int]]:
        """Return every pair of a run and one of its seeds."""
        return [(run, seed) for run in self.runs for seed in self.seeds_of(run)]


class Study(Settings):
    """Jobs that are run and reported together. A job in several studies is reported in the first of them."""

    title: str
    jobs: Annotated[tuple[str, ...], Field(min_length=1)]


class Params(Settings):
    """The params of a suite."""

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
    exports: tuple[str, ...] = ()  # datasets whose best student is exported for serving
    report: Report

    def runs(self) -> dict[str, tuple[str, Run]]:
        """Return every run by name, with the name of its job."""
        return {name: (job, run) for job, entry in self.jobs.items() for name, run in entry.runs.items()}

    def study_of(self, job: str) -> str:
        """Return the first study that contains a job; empty in a suite without studies."""
        return next((name for name, study in self.studies.items() if job in study.jobs), "")

    def path(self, stage: str, item: str | None = None) -> Path:
        """Return the output folder of a stage: `<out>/<stage>/<item>`, or `<out>/<stage>` for a stage without items."""
        folder = Path(self.suite.out) / stage
        return folder / item if item is not None else folder

    def index(self, dataset: str) -> Path:
        """Return the table of a dataset's clips."""
        return self.path("split", dataset) / "index.csv"

    def evaluated(self, run: str) -> Path:
        """Return the folder with what stage evaluate writes for each student of a run."""
        return self.path("evaluate", self.runs()[run][0]) / run
