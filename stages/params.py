"""params.yaml as typed, validated objects: the one place that says what a suite may contain.

A *suite* is one params file and the graph it spans. A *run* is a named entry under a cell: a method, its teachers
and what is changed. A *cell* is a group of runs and seeds that one process trains.

`load` checks everything that needs no tensor library (types, ranges, unknown keys, names that refer to each
other); `stages.check` adds what does (the options of each method).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.errors import UserError, nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
NO_TEACHER = "none"


class Section(BaseModel):
    """A part of params.yaml: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "bfloat16", "float16"]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
# Without a user or password: what stands in params is seen in git, MLflow and the report.
Url = Annotated[str, Field(pattern=r"^(https?://[^/\s@]+(/\S*)?|file://\S*)$")]


class Suite(Section):
    """Where the suite lives. `root` leads from dvc.yaml to the repository's root; the other paths start there."""

    name: str
    title: str
    root: Literal[".", ".."]
    file: str
    out: str


class Split(Section):
    """Shares of the *groups* of each class that go to the test part, and of the rest to the select part."""

    test: Share = 0.3
    select: Share = 0.2
    seed: Seed = 0


class Frames(Section):
    """Pictures of `dataset`, sampled at `fps` and scaled so that the shorter side has `short_side` pixels.

    `jpeg` takes a tenth of the bytes of `raw` and, read, half a millisecond a frame; `quality` is libjpeg's."""

    dataset: str
    fps: Positive = 4
    short_side: Annotated[int, Field(ge=16)] = 128
    reader: Literal["auto", "decord", "pyav"] = "auto"
    encoding: Literal["raw", "jpeg"] = "raw"
    quality: Annotated[int, Field(ge=1, le=95)] = 90


class Origin(Section):
    """Where a dataset comes from. `source` is the file or folder that its download depends on (for DVC)."""

    source: str


class Avsynth(Origin):
    """The synthetic dataset with known truth; see stages/datasets/avsynth for what each value means."""

    kind: Literal["avsynth"]
    seed: Seed = 0
    classes: Annotated[int, Field(ge=2, le=12)] = 10
    groups: Annotated[int, Field(ge=3)] = 20
    clips_per_group: Count = 3
    seconds: Annotated[float, Field(ge=0.5, le=30)] = 3.0
    fps: Annotated[int, Field(ge=4, le=60)] = 12
    width: Annotated[int, Field(ge=32, multiple_of=2)] = 56
    height: Annotated[int, Field(ge=32, multiple_of=2)] = 42
    relevant: Share = 0.8
    strong: Share = 0.7
    no_sound: Share = 0.02
    music_db: tuple[float, float] = (-25.0, -5.0)
    clutter: Share = 0.5
    typical: Share = 0.6


class Folder(Origin):
    """Anybody's videos: `<source>/<class>/<clip>.<any video type>` and an optional `<source>/groups.csv`."""

    kind: Literal["folder"]
    group_pattern: str | None = None

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Folder:
        if self.group_pattern is not None:
            try:
                groups = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ValueError(f"group_pattern is not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError("group_pattern needs exactly one (group) in parentheses")
        return self


class Ucf51(Origin):
    """The clips of UCF101 that have sound, parted by the official lists of `split`.

    Without `videos` (a folder or an archive that is used where it lies) UCF101.rar is fetched from its site, or from
    `mirror`, and deleted when it is unpacked unless `keep_archive`. `source`: what DVC watches, the folder or archive
    where `videos` is given, else stages/datasets/ucf51.py."""

    kind: Literal["ucf51"]
    videos: str | None = None
    mirror: Url | None = None
    split: Literal[1, 2, 3] = 1
    keep_archive: bool = Field(default=False, repr=False)


class Videos(Origin):
    """Published videos. `videos`: a folder of those that the user already has, used in place, in any layout; with
    `fill` the others are downloaded into it, without they are marked as gone. Where it is not given, all are
    downloaded. `annotation`: the user's own copy of the official list of clips. `mirror`: a base URL in place of the
    official one. `source`: what DVC watches, the folder where `videos` is given without `fill`, else the dataset's
    module in stages/datasets."""

    videos: str | None = None
    fill: bool = Field(default=False, repr=False)
    annotation: str | None = None
    mirror: Url | None = None

    @model_validator(mode="after")
    def _something_to_fill(self) -> Videos:
        if self.fill and self.videos is None:
            raise ValueError("fill needs videos, the folder that is to be filled")
        return self


class YouTube(Videos):
    """Videos that yt-dlp downloads, at most `workers` at a time; see stages/youtube.py.

    `format` is yt-dlp's; the default, a small file that has both pictures and sound, needs no ffmpeg. `rate_limit`
    is in MB/s, for all workers together. A worker waits `pause` seconds before each video, and tries it again up to
    `retries` times; no more than the share `tolerated` of all videos may fail for reasons that could pass. What was
    gone an earlier time is asked for again with `retry_gone`. `cookies` is a file of cookies in Netscape's format,
    for a site that wants to know who asks. `{id}` in `video_url` stands for the video's id.

    What says only how to download stays out of the repr, by which download tells whether it goes on with what an
    interrupted one has left."""

    video_url: str = "https://www.youtube.com/watch?v={id}"
    format: str = "b[height<=360]/b"
    workers: Count = Field(default=4, repr=False)
    rate_limit: Positive | None = Field(default=None, repr=False)
    pause: Annotated[float, Field(ge=0)] = Field(default=5.0, repr=False)
    retries: Annotated[int, Field(ge=0)] = Field(default=5, repr=False)
    tolerated: Share = Field(default=0.01, repr=False)
    retry_gone: bool = Field(default=False, repr=False)
    cookies: str | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _url_has_a_place_for_the_id(self) -> YouTube:
        if "{id}" not in self.video_url:
            raise ValueError("video_url needs {id} where the video's id belongs")
        return self


class ActivityNet(YouTube):
    """ActivityNet v1.3: one example a segment of a video; see stages/datasets/activitynet.py."""

    kind: Literal["activitynet"]


class KineticsSounds(Videos):
    """The classes of Kinetics-400 that can be heard; see stages/datasets/kinetics_sounds.py.

    `annotation` is a folder that has Kinetics-400's train.csv and val.csv."""

    kind: Literal["kinetics_sounds"]


class VGGSound(YouTube):
    """VGGSound: clips of 10 s of YouTube videos; see stages/datasets/vggsound.py."""

    kind: Literal["vggsound"]


AnyOrigin = Annotated[Avsynth | Folder | Ucf51 | ActivityNet | KineticsSounds | VGGSound, Field(discriminator="kind")]


class Dataset(Section):
    """A dataset: where it comes from and how it is split."""

    origin: AnyOrigin
    split: Split


class NoiseMix(Section):
    """Each recording of `dataset` mixed with one of another class, `snr_db` decibels quieter than itself."""

    dataset: str
    snr_db: Annotated[float, Field(ge=-60, le=60)]
    seed: Seed = 0


class Teacher(Section):
    """A frozen network. `weights`: a published checkpoint by its name (see stages/checkpoints.py), a checkpoint's path,
    or `avsynth` to train it here on made sounds or images.

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


class Features(Section):
    """What teacher `teacher` makes of `input` (`spectrogram/…`, `mix_noise/…` or `frames/…`), a vector a clip.

    Or `published` features, which a paper's authors computed (see stages/published.py): then `teacher` is `none`,
    `input` is `split/<dataset>`, and `source` may be the URL or path of their archive in place of the official one.
    `precision` below float32 is for processors that are faster at it: features are then some thousandths off."""

    dataset: str
    teacher: str
    input: str
    precision: Precision = "float32"
    published: Literal["ccl_ucf51_audio"] | None = None
    source: str | None = None


class Recipe(Section):
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
    selection: Literal["select", "test", "last"] = "select"
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


class Run(Section):
    """One way of training by its cell's method: the teachers that it listens to, what is changed, and how many
    `repeats` it has, with the first of its cell's seeds (None: with all)."""

    teachers: Literal["", "A", "I", "AI", "S"] = ""
    options: dict[str, Any] = {}
    repeats: Count | None = None


class Cell(Section):
    """Runs of one method, and the seeds that one process trains them with.

    A and I name the features of an audio and of an image teacher; S names an earlier student, as <cell>/<run>."""

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


class Study(Section):
    """Cells that are run and read together. A cell that several studies name is read in the first of them."""

    title: str
    cells: Annotated[tuple[str, ...], Field(min_length=1)]


class Table(Section):
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


class Attention(Section):
    """Clips over whose frames the attention of a run is drawn."""

    run: str
    clips: Annotated[int, Field(ge=2, le=16)] = 8


class Retrieval(Section):
    """What runs retrieve: for each of `queries` test clips the nearest `shown` clips of the gallery."""

    runs: Annotated[tuple[str, ...], Field(min_length=1, max_length=4)]
    queries: Annotated[int, Field(ge=1, le=8)] = 4
    shown: Annotated[int, Field(ge=1, le=8)] = 6


class Figures(Section):
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


class Report(Section):
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


class Params(Section):
    """A whole suite."""

    suite: Suite
    device: str = "auto"
    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]
    frames: dict[str, Frames] = {}
    noise_mixes: dict[str, NoiseMix] = {}
    teachers: dict[str, Teacher] = {}
    features: dict[str, Features] = {}
    recipes: Annotated[dict[str, Recipe], Field(min_length=1)]
    cells: Annotated[dict[str, Cell], Field(min_length=1)]
    studies: dict[str, Study] = {}
    exports: tuple[str, ...] = ()  # datasets whose best student becomes a model to serve
    report: Report

    def runs(self) -> dict[str, tuple[str, Run]]:
        """Every run by name, with the name of its cell."""
        return {name: (cell, run) for cell, entry in self.cells.items() for name, run in entry.runs.items()}

    def study_of(self, cell: str) -> str:
        """The first study that names a cell; empty in a suite without studies."""
        return next((name for name, study in self.studies.items() if cell in study.cells), "")

    def path(self, stage: str, item: str | None = None) -> Path:
        """Where `stage` puts what it makes for `item`: one rule for the whole pipeline."""
        folder = Path(self.suite.out) / stage
        return folder / item if item is not None else folder


def load(file: str | os.PathLike[str]) -> Params:
    """Read and check a params file. Raises UserError, one line that names the key and what was expected."""
    path = Path(file)
    try:
        # As yaml.safe_load, but by the parser in C where PyYAML has it: ten times as fast, in every stage.
        raw = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such params file (run from the repository's root)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-99-99 is a ValueError
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    _check_keys(path, "", raw)
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None
    _check_references(path, params)
    return params


def _check_keys(path: Path, where: str, value: Any) -> None:
    """Keys must be text: DVC sorts them, and cannot sort numbers and text together."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}: {where}{key}: keys are text; write '{key}' in quotes")
            _check_keys(path, f"{where}{key}.", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(path, where, inner)


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings as one line: key, what is wrong, the nearest valid choice."""
    problems = error.errors()
    # A key that must be there and is misspelt is both missing and unknown: the latter says more.
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location = problem["loc"]
    # pydantic adds the tag of a discriminated union, which is no key of the file.
    where = [
        str(part)
        for before, part in zip((None, *location), location, strict=False)
        if before != "origin" or part not in _tags()
    ]
    key = ".".join(where)
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {nearest(where[-1], _fields_at(problem['loc'][:-1]))}"
    if kind in {"literal_error", "union_tag_invalid"}:
        context = problem["ctx"]
        expected = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags")))
        given = context.get("tag", problem["input"])
        return f"{key}: {given!r} is none of the choices; {nearest(given, [c for c in expected if c])}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "union_tag_not_found":
        return f"{key}.kind: missing; {nearest('', _tags())}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]} (found {problem['input']!r})"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys that params.yaml may have at a location, found by walking the models."""
    model: Any = Params
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            if part not in model.model_fields:
                return []
            annotation = model.model_fields[str(part)].annotation
            model = _models_in(annotation)
        elif isinstance(model, list):
            tagged = [m for m in model if "kind" in m.model_fields and part == _tag(m)]
            model = tagged[0] if tagged else (model[0] if len(model) == 1 else model)
    if isinstance(model, list):
        model = model[0] if model else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _tags() -> set[str]:
    return {_tag(model) for model in _models_in(AnyOrigin)}


def _tag(model: type[BaseModel]) -> str:
    """The `kind` by which a model of a discriminated union is chosen."""
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _models_in(annotation: Any) -> Any:
    """The model, or the list of models, inside an annotation such as dict[str, Avsynth | Folder]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found: list[Any] = []
    for inner in getattr(annotation, "__args__", ()):
        models = _models_in(inner)
        found += models if isinstance(models, list) else [models]
    if getattr(annotation, "__origin__", None) is Annotated:
        return _models_in(annotation.__origin__)
    return found


def _check_references(path: Path, params: Params) -> None:
    """Names must be plain (they become file names) and must refer to what exists."""

    def known(key: str, name: str, choices: dict[str, Any], what: str) -> None:
        if name not in choices:
            raise UserError(f"{path}: {key}: there is no {what} '{name}'; {nearest(name, choices)}")

    sections: dict[str, dict[str, Any]] = {
        "datasets": params.datasets,
        "frames": params.frames,
        "noise_mixes": params.noise_mixes,
        "teachers": params.teachers,
        "features": params.features,
        "recipes": params.recipes,
        "cells": params.cells,
        "studies": params.studies,
    }
    for cell_name, cell in params.cells.items():
        sections[f"cells.{cell_name}.runs"] = dict(cell.runs)
    for section, entries in sections.items():
        for name in entries:
            if not NAME.fullmatch(name) or name.endswith("."):
                raise UserError(
                    f"{path}: {section}: '{name}' is not a name; use letters, digits, '_', '-' and '.', "
                    "beginning with a letter or digit"
                )
    for section in ("features", "teachers"):
        if NO_TEACHER in sections[section]:
            raise UserError(f"{path}: {section}: '{NO_TEACHER}' is reserved for the absence of a teacher")

    audio = {f"spectrogram/{name}": name for name in params.datasets}
    audio |= {f"mix_noise/{name}": mix.dataset for name, mix in params.noise_mixes.items()}
    pictures = {f"frames/{name}": frames.dataset for name, frames in params.frames.items()}
    for name in params.exports:
        known("exports", name, params.datasets, "dataset")
    for name, frames in params.frames.items():
        known(f"frames.{name}.dataset", frames.dataset, params.datasets, "dataset")
    for name, mix in params.noise_mixes.items():
        known(f"noise_mixes.{name}.dataset", mix.dataset, params.datasets, "dataset")
    for name, features in params.features.items():
        key = f"features.{name}"
        known(f"{key}.dataset", features.dataset, params.datasets, "dataset")
        if features.published is not None:
            _check_published(path, key, features)
            continue
        if features.source is not None:
            raise UserError(f"{path}: {key}.source: only published features have a source; set {key}.published too")
        known(f"{key}.teacher", features.teacher, params.teachers, "teacher")
        hears = params.teachers[features.teacher].kind == "cnn14"
        inputs = audio if hears else pictures
        known(f"{key}.input", features.input, inputs, f"{'sound' if hears else 'picture'} input")
        if inputs[features.input] != features.dataset:
            raise UserError(f"{path}: {key}.input: {features.input} is not of dataset '{features.dataset}'")
    owner: dict[str, str] = {}
    for name, cell in params.cells.items():
        key = f"cells.{name}"
        known(f"{key}.dataset", cell.dataset, params.datasets, "dataset")
        known(f"{key}.recipe", cell.recipe, params.recipes, "recipe")
        listens = params.recipes[cell.recipe].student.endswith("_audio")
        inputs = audio if listens else pictures
        known(f"{key}.input", cell.input, inputs, f"input for student {params.recipes[cell.recipe].student}")
        if inputs[cell.input] != cell.dataset:
            raise UserError(f"{path}: {key}.input: {cell.input} is not of dataset '{cell.dataset}'")
        _check_seeds(path, key, cell)
        for letter in "AI":
            features_name = getattr(cell, letter)
            if features_name != NO_TEACHER:
                known(f"{key}.{letter}", features_name, params.features, "features entry")
                if params.features[features_name].dataset != cell.dataset:
                    raise UserError(
                        f"{path}: {key}.{letter}: features '{features_name}' are of dataset "
                        f"'{params.features[features_name].dataset}', the cell trains on '{cell.dataset}'"
                    )
        if cell.S != NO_TEACHER:
            _check_earlier(path, key, cell, params)
        for run_name, run in cell.runs.items():
            if run_name in owner:
                raise UserError(
                    f"{path}: {key}.runs.{run_name}: a run of that name stands in cell '{owner[run_name]}' too"
                )
            owner[run_name] = name
            for letter in run.teachers:
                if getattr(cell, letter) == NO_TEACHER:
                    raise UserError(
                        f"{path}: {key}.runs.{run_name}.teachers: the run listens to teacher {letter}, "
                        f"but {key}.{letter} names none"
                    )
    _check_order(path, params)
    for name, study in params.studies.items():
        for cell_name in study.cells:
            known(f"studies.{name}.cells", cell_name, params.cells, "cell")
    for name in params.cells if params.studies else ():
        if not params.study_of(name):
            raise UserError(f"{path}: studies: cell '{name}' stands in no study; add it to the cells of one")
    runs = params.runs()
    known("report.baseline", params.report.baseline, runs, "run")
    if params.report.proposed is not None:
        known("report.proposed", params.report.proposed, runs, "run")
    for run_name in params.report.cost:
        known("report.cost", run_name, runs, "run")
    for name, table in params.report.tables.items():
        for row, run_name in table.rows.items():
            known(f"report.tables.{name}.rows.{row}", run_name, runs, "run")
    for figure, shown in params.report.figures.runs().items():
        for run_name in shown:
            known(f"report.figures.{figure}", run_name, runs, "run")
    if params.report.figures.heard:
        known("report.figures.heard", params.report.figures.heard, params.features, "features entry")
    _check_figures(path, params)


def _check_seeds(path: Path, key: str, cell: Cell) -> None:
    """No seed stands twice, and no run has more repeats than its cell has seeds."""
    if len(set(cell.seeds)) != len(cell.seeds):
        raise UserError(f"{path}: {key}.seeds: a seed stands twice in {list(cell.seeds)}")
    for name, run in cell.runs.items():
        if run.repeats and run.repeats > len(cell.seeds):
            raise UserError(
                f"{path}: {key}.runs.{name}.repeats: expected at most {len(cell.seeds)}, the number of the cell's "
                f"seeds, found {run.repeats}"
            )


def _check_published(path: Path, key: str, features: Features) -> None:
    """Published features come from no teacher of the suite; all that they need of the dataset is its index."""
    for name, expected in {"teacher": NO_TEACHER, "input": f"split/{features.dataset}"}.items():
        if getattr(features, name) != expected:
            raise UserError(
                f"{path}: {key}.{name}: published features need '{expected}', found '{getattr(features, name)}'"
            )


def _check_figures(path: Path, params: Params) -> None:
    """What one figure shows must be of one kind, and have what the figure needs."""
    figures, runs = params.report.figures, params.runs()

    def cell(run: str) -> Cell:
        return params.cells[runs[run][0]]

    for name, shown in figures.runs().items():
        key = f"{path}: report.figures.{name}"
        beside = (
            params.report.baseline if name in ("training_curves", "gain_per_class", "noise") else next(iter(shown), "")
        )
        for run in shown:
            if name in ("attention", "retrieval") and not cell(run).input.startswith("frames/"):
                raise UserError(f"{key}: {run} takes {cell(run).input}; expected a run that takes frames/…")
            for part in ("dataset", "input", "recipe") if name != "scores" else ():
                ours, other = getattr(cell(run), part), getattr(cell(beside), part)
                if ours != other:
                    raise UserError(
                        f"{key}: {run} has {part} '{ours}', {beside} has '{other}'; the runs of one figure share it"
                    )
    for label, curve in figures.noise.items():
        for level, run in curve.items():
            features = cell(run).A
            source = params.features[features].input if features != NO_TEACHER else ""
            mix = params.noise_mixes.get(source.removeprefix("mix_noise/"))
            found = mix.snr_db if mix and source.startswith("mix_noise/") else "clean"
            if level != found:
                raise UserError(f"{path}: report.figures.noise.{label}.{level}: the sound of {run} is at {found}")
    if figures.heard and not params.features[figures.heard].input.startswith("spectrogram/"):
        heard = params.features[figures.heard].input
        raise UserError(
            f"{path}: report.figures.heard: {figures.heard} is of {heard}; expected features of spectrogram/…"
        )


def _check_earlier(path: Path, key: str, cell: Cell, params: Params) -> None:
    """S must be a run of another cell that sees the same classes and has every seed of those that listen to it."""
    choices = [f"{name}/{run}" for name, other in params.cells.items() for run in other.runs if other is not cell]
    if cell.S not in choices:
        raise UserError(f"{path}: {key}.S: there is no run '{cell.S}'; {nearest(cell.S, choices)}")
    other_name, _, run = cell.S.partition("/")
    other = params.cells[other_name]
    if (other.dataset, other.input) != (cell.dataset, cell.input):
        raise UserError(f"{path}: {key}.S: {cell.S} is trained on {other.input}, this cell on {cell.input}")
    seeds = {seed for name, seed in cell.trainings() if "S" in cell.runs[name].teachers}
    if lacking := sorted(seeds - set(other.seeds_of(run))):
        raise UserError(f"{path}: {key}.S: {cell.S} is not trained with seed {lacking[0]}")


def _check_order(path: Path, params: Params) -> None:
    """Cells that are each other's earlier students could never be trained."""
    for name in params.cells:
        seen = [name]
        while (earlier := params.cells[seen[-1]].S) != NO_TEACHER:
            seen.append(earlier.split("/")[0])
            if seen[-1] in seen[:-1]:
                raise UserError(f"{path}: cells.{name}.S: {' needs '.join(seen)}: a circle")
