"""Stage train: the student of every run and seed of a cell.

Makes, under train/<cell>/: <run>/seed-<n>.pt (the weights of the selected epoch), <run>/seed-<n>.csv (a row an
epoch), and history.csv (all of these rows).
An interrupted execution goes on where it stopped and ends at the same bits as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import distillers, outputs, resnet, students
from models.distillers import Distiller
from models.outputs import StudentOutput, TeacherBatch
from models.students import Student
from stages import parallel, stores
from stages.errors import UserError
from stages.jobs import gpus, resolve_device, run_jobs
from stages.loader import ClipSet, teacher_table, test_windows, to_input, training_loader
from stages.params import Cell, Params, Recipe, Run
from stages.stage import Stage
from stages.tracking import Run as TrackedRun

SYSTEM_SECONDS = 10.0  # shorter epochs say nothing of how busy the machine is
SAVE_SECONDS = 5.0  # a checkpoint is written after the first epoch that ends this long after the last one


class Task(NamedTuple):
    """All that one training, or one evaluation, needs; small enough to be sent to a worker process."""

    params: Params
    cell: str
    run: str
    seed: int
    device: str
    folder: Path
    tracked: TrackedRun


class Trainer:
    """One student, its distiller, and everything that must survive an interruption."""

    def __init__(self, task: Task) -> None:
        params, cell = task.params, task.params.cells[task.cell]
        self.task, self.cell, self.run = task, cell, cell.runs[task.run]
        self.recipe: Recipe = params.recipes[cell.recipe]
        self.device = torch.device(task.device)
        index, store = params.path("split", cell.dataset) / "index.csv", params.path(*cell.input.split("/"))
        self.clips = ClipSet(index, store, ("train",), self.recipe.train_groups)
        self.select = ClipSet(index, store, (selection_part(self.recipe),))
        share = number, self.processes = parallel.place()
        self.first = number == 0  # of several processes, the one that writes and logs
        self.loader, self.sampler = training_loader(self.clips, self.recipe, task.seed, share)
        self.teachers = teacher_tables(params, cell, self.run, self.clips, task.seed, self.device)
        torch.manual_seed(task.seed)
        self.student = students.build_student(self.recipe.student, self.clips.classes, self.recipe.width)
        self.student.to(self.device)
        if self.processes > 1:
            parallel.share_batch_norms(self.student)
        try:
            distiller = build_distiller(cell, self.run, self.student, self.teachers, self.clips)
        except ValueError as error:  # what only the widths of student and teacher tell
            raise UserError(f"{params.suite.file}: cells.{task.cell}.runs.{task.run}: {error}") from None
        self.distiller = distiller.to(self.device)
        self.optimizer = make_optimizer(self.recipe, self.student, self.distiller)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: rate(self.recipe, epoch))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "float16")
        if self.recipe.compile:
            self.student.compile()
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    def fit(self, epochs: int | None = None) -> None:
        """Train up to `epochs` epochs (the recipe's number if None), from wherever the checkpoint had come."""
        self.load()
        saved = time.monotonic()
        while self.epoch < (epochs or self.recipe.epochs):
            started = time.perf_counter()
            measured = self.train_epoch()
            self.scheduler.step()
            self.epoch += 1
            measured |= self.select_epoch()
            self.history.append({"run": self.task.run, "seed": self.task.seed, "epoch": self.epoch, **measured})
            if not self.first:
                continue
            seconds = time.perf_counter() - started
            self.task.tracked.log_metrics(measured | {"seconds": seconds}, step=self.epoch)
            if seconds >= SYSTEM_SECONDS:
                self.task.tracked.log_system(self.epoch)
            if time.monotonic() - saved >= SAVE_SECONDS or self.epoch == epochs:
                self.save()
                saved = time.monotonic()

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training clips: mean of each term of the loss, and the share that was classified right."""
        # Whatever a method draws (dropout, negatives) depends on (seed, epoch) alone, so a resumed run draws the same.
        torch.manual_seed(self.task.seed * 100_003 + self.epoch)
        self.sampler.epoch = self.epoch
        self.student.train()
        self.distiller.train()
        self.distiller.start_epoch(self.epoch)
        totals: dict[str, Tensor] = {}
        for batch in self.loader:
            for name, value in self.step(*(part.to(self.device, non_blocking=True) for part in batch)).items():
                totals[name] = totals[name] + value if name in totals else value
        # The only wait for the device: once an epoch.
        means = {name: float(value) / len(self.loader) for name, value in totals.items()}
        return {"lr": float(self.scheduler.get_last_lr()[0]), **means}

    def step(self, clips: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """One batch: one sum of terms, one backward, one step."""
        with autocast(self.device, self.recipe.precision):
            output: StudentOutput = self.student(to_input(clips, self.recipe.normalisation))
            if self.processes > 1:
                output = output.each(parallel.gather)
                labels, index = parallel.gather(labels), parallel.gather(index)
            teachers = {letter: table.take(index) for letter, table in self.teachers.items()}
            terms: dict[str, Tensor] = self.distiller(output, teachers, labels, index)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.processes > 1:
            parallel.add_gradients(self.student)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        right = (output.logits.detach().argmax(1) == labels).float().mean()
        named = {f"loss_{name}": term.detach() for name, term in terms.items()}
        return {"loss": loss.detach(), **named, "train_accuracy": right}

    def select_epoch(self) -> dict[str, float]:
        """Accuracy on the part that selects the epoch; keeps the weights if they are the best so far."""
        probabilities = predict(self.student, self.select, self.recipe, self.device)[0]
        labels = self.select.labels
        accuracy = float((probabilities.argmax(1) == labels).float().mean())
        loss = float(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels))
        # Many epochs tie on a small part: the lower loss decides, then the earlier epoch.
        rank = (accuracy, -loss) if self.recipe.selection != "last" else (float(self.epoch), 0.0)
        if not self.best or rank > tuple(self.best["rank"]):
            self.best = {
                "rank": list(rank),
                "epoch": self.epoch,
                "student": {name: value.clone() for name, value in self.student.state_dict().items()},
                "distiller": {name: value.clone() for name, value in self.distiller.state_dict().items()},
            }
        return {"select_accuracy": accuracy, "select_loss": loss}

    @property
    def checkpoints(self) -> tuple[Path, Path]:
        """Where an unfinished training is kept: the last state, and the one before it."""
        place = self.task.folder / self.task.run / f"seed-{self.task.seed}"
        return place.with_suffix(".checkpoint.pt"), place.with_suffix(".previous.pt")

    def save(self) -> None:
        """Write everything that the rest of the training depends on."""
        last, previous = self.checkpoints
        if last.exists():
            last.replace(previous)
        state = {name: getattr(self, name).state_dict() for name in self._stateful}
        state |= {"epoch": self.epoch, "history": self.history, "best": self.best}
        save_tensors(last, state | {"run": self.task.run, "seed": self.task.seed})

    def load(self) -> None:
        """Take up the last checkpoint, or the one before it if that is damaged; begin anew where there is none."""
        for path in filter(Path.exists, self.checkpoints):
            try:
                state = load_state(path, self.device, self.task.run, self.task.seed)
            except UserError as error:
                path.unlink(missing_ok=True)
                if self.first:
                    print(f"{error}; going on from the checkpoint before it", file=sys.stderr)
                continue
            for name in self._stateful:
                getattr(self, name).load_state_dict(state[name])
            self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
            return

    _stateful = ("student", "distiller", "optimizer", "scheduler", "scaler")


def selection_part(recipe: Recipe) -> str:
    """The part on which accuracy by epoch is measured."""
    return "test" if recipe.selection == "test" else "select"


def teacher_tables(
    params: Params, cell: Cell, run: Run, clips: ClipSet, seed: int, device: torch.device
) -> dict[str, TeacherBatch]:
    """What the teachers of a run know of each clip, by letter."""
    tables = {}
    for letter in run.teachers:
        name = getattr(cell, letter)
        if letter == "S":
            tables[letter] = earlier_student(params, name, clips, seed, device)
        else:
            features, head = params.path("teacher_features", name), params.path("teacher_head", name)
            tables[letter] = teacher_table(features, head, clips, distillers.methods()[cell.method].uses_blocks)
    return {letter: table.to(device) for letter, table in tables.items()}


def earlier_student(params: Params, name: str, clips: ClipSet, seed: int, device: torch.device) -> TeacherBatch:
    """What the student of run `name` ("<cell>/<run>") and the same seed knows of each clip, on its test windows."""
    cell, run = name.split("/")
    student, _ = load_student(params, cell, run, seed, clips.classes, device)
    probabilities, features = predict(student, clips, params.recipes[params.cells[cell].recipe], device)
    return TeacherBatch(features, probabilities.clamp_min(1e-12).log(), torch.ones(len(clips), dtype=torch.bool))


def load_student(
    params: Params, cell: str, run: str, seed: int, classes: int, device: torch.device
) -> tuple[Student, dict[str, Any]]:
    """A trained student on `device`, and all that was saved with it."""
    recipe = params.recipes[params.cells[cell].recipe]
    path = params.path("train", cell) / run / f"seed-{seed}.pt"
    state = load_state(path, device, run, seed)
    student = students.build_student(recipe.student, classes, recipe.width)
    student.to(device)
    student.load_state_dict(state["student"])
    return student, state


def build_distiller(
    cell: Cell, run: Run, student: Student, teachers: dict[str, TeacherBatch], clips: ClipSet
) -> Distiller:
    """The distiller of a run, with the widths that its student and teachers have."""
    return distillers.build(
        cell.method,
        student_dim=student.feature_dim,
        stage_dims=student.stage_dims,
        teacher_dims={letter: table.feature.shape[1] for letter, table in teachers.items()},
        classes=clips.classes,
        clips=len(clips),
        options=run.options,
    )


def make_optimizer(recipe: Recipe, student: Student, distiller: Distiller) -> torch.optim.Optimizer:
    """One optimizer for both, with the learning rates that the distiller asks for its own parameters."""
    groups = [{"params": list(student.parameters()), "lr": recipe.lr}, *distiller.param_groups(recipe.lr)]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        decay, momentum = recipe.weight_decay, recipe.momentum
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=momentum, weight_decay=decay, fused=True)
    return torch.optim.Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def rate(recipe: Recipe, epoch: int) -> float:
    """Share of the learning rate in an epoch, counted from 0."""
    warm = min(1.0, (epoch + 1) / (recipe.warmup + 1))
    if recipe.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    return warm * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Mixed precision where the recipe asks for it; similarities and exponentials stay in float32 by themselves."""
    enabled = precision != "float32"
    with torch.autocast(device.type, getattr(torch, precision) if enabled else None, enabled=enabled):
        yield


@torch.inference_mode()
def predict(
    student: Student, clips: ClipSet, recipe: Recipe, device: torch.device, batch: int = 64
) -> tuple[Tensor, Tensor]:
    """Softmax (N, C) and feature (N, D) of each clip, both averaged over its windows; on the CPU."""
    student.eval()
    probabilities = torch.zeros(len(clips), clips.classes)
    features = torch.zeros(len(clips), student.feature_dim)
    counts = torch.zeros(len(clips), 1)
    for windows, rows in test_windows(clips, recipe, batch):
        with autocast(device, recipe.precision):
            output: StudentOutput = student(to_input(windows.to(device), recipe.normalisation))
        probabilities.index_add_(0, rows, output.logits.float().softmax(1).cpu())
        features.index_add_(0, rows, output.feature.float().cpu())
        counts.index_add_(0, rows, torch.ones(len(rows), 1))
    return probabilities / counts, features / counts


def save_tensors(path: Path, value: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    # By itself torch would not say why it could not write: the reason is in what Python's file raises.
    with stores.replacing(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What save_tensors wrote. Raises UserError naming a file that is not that.

    torch would read a damaged file without a word: it does not look at the checksums that it writes."""
    if not path.exists():
        raise UserError(f"{path}: missing; run the stage that makes it")
    if not stores.intact(path):
        raise UserError(f"{path}: damaged (a part is missing, or its checksum differs)")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever another archive makes torch raise
        raise UserError(f"{path}: not a file of tensors ({str(error).splitlines()[0]})") from None
    return state


def load_state(path: Path, device: torch.device, run: str, seed: int) -> dict[str, Any]:
    """What was saved of the training of a run and seed. Raises UserError naming a file that is not that."""
    state = load_tensors(path, device)
    if (state.get("run"), state.get("seed")) != (run, seed):
        raise UserError(f"{path}: not of run '{run}' and seed {seed}")
    return state


def train_one(task: Task) -> None:
    """Train one run with one seed, unless that is done already; leaves seed-<n>.pt and seed-<n>.csv."""
    if stores.intact(task.folder / task.run / f"seed-{task.seed}.pt"):
        return
    cell = task.params.cells[task.cell]
    processes = task.params.recipes[cell.recipe].processes
    with task.tracked.child(f"{task.run} seed {task.seed}", {"run": task.run, "seed": task.seed}) as tracked:
        task = task._replace(tracked=tracked)
        if processes == 1:
            train_student(task)
        else:
            parallel.launch(train_student, (task,), processes, task.device)


def make_deterministic(compiled: bool = False) -> None:
    """Same input, same bits; an operation that cannot promise it is an error."""
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:  # the same without word to the compiler, whose import takes 2 s of each process
        torch.set_deterministic_debug_mode("error")
    # PyTorch would write NaN into all memory that it takes, an eighth of a small step, to show who reads it unwritten:
    # the tests do that.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def train_student(task: Task) -> None:
    """The training itself: of one student in this process, or of this process's share of one."""
    make_deterministic(task.params.recipes[task.params.cells[task.cell].recipe].compile)
    trainer = Trainer(task)
    if trainer.first:
        task.tracked.log_params(
            {
                "method": trainer.cell.method,
                "teachers": trainer.run.teachers,
                "seed": task.seed,
                "device": task.device,
                "options": trainer.run.options,
                "recipe": trainer.recipe.model_dump(),
                "training_clips": len(trainer.clips),
                "student_parameters": count_parameters(trainer.student),
                "added_parameters": count_parameters(trainer.distiller),
            }
        )
    trainer.fit()
    if trainer.first:
        best, final = trainer.best, task.folder / task.run / f"seed-{task.seed}.pt"
        stores.write_csv(final.with_suffix(".csv"), pd.DataFrame(trainer.history))
        kept = {name: best[name] for name in ("epoch", "student", "distiller")}
        save_tensors(final, {"run": task.run, "seed": task.seed} | kept)
        for checkpoint in trainer.checkpoints:
            checkpoint.unlink(missing_ok=True)
        task.tracked.log_metrics({"selected_epoch": best["epoch"]}, step=trainer.recipe.epochs)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def main(stage: Stage) -> None:
    """Train all runs of the cell with all its seeds."""
    params = stage.params
    cell = params.cells[stage.item or ""]
    # cuBLAS is deterministic only with a workspace of fixed size, to be set before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = resolve_device(params.device)
    processes = params.recipes[cell.recipe].processes
    if device != "cpu" and processes > gpus(device):
        raise UserError(f"recipes.{cell.recipe}.processes: {processes} GPUs are asked for, {device} has {gpus(device)}")
    inputs = [stage.input("split", cell.dataset), stage.input(*cell.input.split("/"))]
    inputs += [stage.input(s, getattr(cell, t)) for t in "AI" for s in ("teacher_features", "teacher_head")]
    inputs += [stage.input("train", cell.S)]
    methods = Path(distillers.__file__).parent
    code = [methods / f"{name}.py" for name in ("__init__", "banks", "base", cell.method)]
    code += [Path(students.__file__).parent, Path(outputs.__file__), Path(resnet.__file__), Path(__file__)]
    code += [Path(__file__).with_name(name) for name in ("loader.py", "parallel.py")]
    settings = f"{cell.model_dump_json()}{params.recipes[cell.recipe].model_dump_json()}{device}{torch.__version__}"
    fingerprint = f"{stores.digest(*inputs, *code)} {settings}"
    stage.run.log_params({"cell": cell.model_dump(), "recipe": params.recipes[cell.recipe].model_dump()})
    stage.run.log_dataset(
        name=cell.dataset, path=inputs[0] / "index.csv", digest=stores.digest(inputs[0])[:32], context="training"
    )
    with stage.output(key=fingerprint) as folder:
        tasks = [
            (Task(params, stage.item or "", run, seed, device, folder, stage.run),) for run, seed in cell.trainings()
        ]
        # Where several processes train one student, they have the devices to themselves.
        run_jobs(train_one, tasks, device, f"train {stage.item}", alone=processes > 1)
        pieces = [folder / run / f"seed-{seed}.csv" for run, seed in cell.trainings()]
        stores.write_csv(folder / "history.csv", pd.concat([pd.read_csv(piece) for piece in pieces], ignore_index=True))
        stage.run.log_artifact(folder / "history.csv")
