"""Train one student: the loop over epochs, the choice of the epoch, what a checkpoint has.

An interrupted training continues from its last checkpoint, within an epoch too, and ends with the same bits as an
uninterrupted one.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from avdistill.config.schema import Recipe
from avdistill.data.files import intact, write_csv
from avdistill.data.loader import (
    Batch,
    ClipSet,
    EvaluationWindows,
    end_workers,
    sent_ahead,
    to_device,
    to_input,
    training_loader,
)
from avdistill.data.resident import ResidentClips
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress
from avdistill.training import parallel
from avdistill.training.checkpoints import Checkpoints
from avdistill.training.inference import NotFiniteError, predict
from avdistill.training.precision import autocast, float32_as, make_deterministic
from avdistill.training.speed import Clock, step_flops
from avdistill.training.task import Task
from avdistill.training.teachers import build_distiller, shuffled, teacher_tables, training_clips
from avdistill.training.tensors import load_tensors, save_tensors
from models import students
from models.distillers import Distiller
from models.outputs import StudentOutput
from models.students import Student

SYSTEM_SECONDS = 10.0  # shorter epochs say nothing of how busy the machine is


Sent = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]  # the arguments of Trainer.step


class Trainer:
    """One student, its distiller, and everything that must survive an interruption.

    `epoch` epochs are finished, and `steps` steps of the next one, whose sums so far are `totals`.
    `diverged`: a loss or an output was not finite; the training has ended without a result."""

    def __init__(self, task: Task) -> None:
        self.task, self.recipe, self.device = task, task.recipe, torch.device(task.device)
        self.clips = training_clips(task)
        self.val = ClipSet(task.index, task.store, (selection_split(self.recipe),))
        self.val_windows = EvaluationWindows(self.val, self.recipe)
        shard = rank, self.processes = parallel.rank_and_world_size()
        self.is_main = rank == 0  # only this rank writes files and logs
        self.loader: DataLoader[Any] | ResidentClips
        self.loader, self.sampler = training_loader(self.clips, self.recipe, task.seed, shard)
        if self.recipe.data_on_device:
            self.loader = ResidentClips(self.clips, self.recipe, task.seed, self.sampler, self.device)
        self.teachers = teacher_tables(task, self.clips, self.device)
        torch.manual_seed(task.seed)
        self.student = students.build_student(self.recipe.student, self.clips.classes, self.recipe.width)
        if task.first_weights:
            load_first_weights(self.student, task.first_weights)
        self.student.to(self.device)
        if self.processes > 1:
            parallel.sync_batch_norms(self.student)
        try:
            if task.shuffled:
                self.teachers = shuffled(self.teachers, self.clips.given, task.seed, task.shuffled)
            distiller = build_distiller(task, self.student, self.teachers, self.clips)
        except ValueError as error:  # what only the clips and the widths of student and teacher tell
            raise UserError(f"{task.place}: {error}") from None
        self.distiller = distiller.to(self.device)
        self.masks = {name: table.mask.cpu() for name, table in self.teachers.items()} if self.processes == 1 else {}
        self.optimizer = make_optimizer(self.recipe, self.student, self.distiller)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda epoch: lr_factor(self.recipe, epoch))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.recipe.precision == "float16")
        if self.recipe.compile:
            self.student.compile()
        self.batch = self.sampler.batch  # clips of a step, of all processes together
        self.flops = step_flops(self.recipe, self.clips.classes, self.device)
        self.speed: dict[str, float] = {}  # of the last epoch, from where it was taken up
        self.checkpoints = Checkpoints(task.result)
        self.epoch = self.steps = 0
        self.totals: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.diverged = False

    def fit(self, epochs: int | None = None) -> None:
        """Train up to `epochs` epochs (the recipe's number if None) from the last checkpoint, or until it diverges."""
        self.load()
        shown = self.shown(range(self.epoch, epochs or self.recipe.epochs))
        try:
            while self.epoch < (epochs or self.recipe.epochs) and not self.diverged:
                next(shown)
                started = time.perf_counter()
                measured = self.train_epoch()
                self.scheduler.step()
                self.epoch, self.steps, self.totals = self.epoch + 1, 0, {}
                measured |= self.validate()
                self.diverged = not all(map(math.isfinite, measured.values()))
                self.history.append({"run": self.task.run, "seed": self.task.seed, "epoch": self.epoch, **measured})
                if not self.is_main:
                    continue
                seconds = time.perf_counter() - started
                self.task.tracked.log_metrics(measured | self.speed | {"seconds": seconds}, step=self.epoch)
                if seconds >= SYSTEM_SECONDS:
                    self.task.tracked.log_system(self.epoch)
                if not self.diverged and (self.checkpoints.due() or self.epoch == epochs):
                    self.save()
            next(shown, None)
        finally:
            self.checkpoints.wait()
            end_workers(self.loader)
            end_workers(self.val_windows.loader)

    def shown(self, epochs: range) -> Iterator[int]:
        """Yield epochs and show the progress, unless other trainings run beside this one."""
        alone = self.processes > 1 or multiprocessing.parent_process() is None
        if not (self.is_main and alone):
            return iter(epochs)
        clips = self.batch * len(self.loader)
        return progress(epochs, f"train {self.task.run} seed {self.task.seed}", size=clips, unit="clips")

    def train_epoch(self) -> dict[str, float]:
        """The rest of an epoch: mean of each term of the loss, and the share of clips that was classified right."""
        if not self.steps:  # else `load` has set the generators as they were after the last step
            # Whatever a method draws (dropout, negatives) depends on (seed, epoch) alone.
            torch.manual_seed(self.task.seed * 100_003 + self.epoch)
            torch.empty((), dtype=torch.int64).random_()  # DataLoader drew this one when published results were made
        self.sampler.epoch, self.sampler.done = self.epoch, self.steps
        self.student.train()
        self.distiller.train()
        self.distiller.start_epoch(self.epoch)
        clock, begun = Clock(self.loader), self.steps
        for batch in sent_ahead(clock, self.to_device, self.device):
            for name, value in self.step(*batch).items():
                self.totals[name] = self.totals[name] + value if name in self.totals else value
            self.steps += 1
            if self.is_main and self.checkpoints.due():
                self.save()
        # The only wait for the device: once an epoch.
        means = {name: float(value) / len(self.loader) for name, value in self.totals.items()}
        self.speed = clock.speed(self.batch * (len(self.loader) - begun), self.flops)
        return {"lr": float(self.scheduler.get_last_lr()[0]), **means}

    def to_device(self, batch: Batch) -> Sent:
        """Send a batch to the device, with the positions of the clips that each teacher knows, without waiting for it.

        They are found here, where the clips' rows still lie on the host: counting them on the device would make every
        step wait. (Of several processes that train one student, none knows the others' rows.)"""
        found = {name: mask[batch.rows].nonzero().flatten() for name, mask in self.masks.items()}
        clips, labels, rows, *valid = to_device([*batch, *found.values()], self.device)
        return clips, labels, rows, dict(zip(found, valid, strict=True))

    def step(
        self, clips: Tensor, labels: Tensor, index: Tensor, valid: Mapping[str, Tensor] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """One batch: one sum of terms, one backward, one step. `valid` is as `to_device` returns it; of a teacher that
        is not in it, the clips that it knows are found on the device."""
        with float32_as(self.recipe.precision):
            return self._step(clips, labels, index, valid)

    def _step(self, clips: Tensor, labels: Tensor, index: Tensor, valid: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with autocast(self.device, self.recipe.precision):
            output: StudentOutput = self.student(to_input(clips, self.recipe.normalisation))
            if self.processes > 1:
                output = output.each(parallel.gather)
                labels, index = parallel.gather(labels), parallel.gather(index)
            teachers = {name: table.take(index, valid.get(name)) for name, table in self.teachers.items()}
            terms: dict[str, Tensor] = self.distiller(output, teachers, labels, index)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.processes > 1:
            parallel.all_reduce_gradients(self.student)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        right = (output.logits.detach().argmax(1) == labels).float().mean()
        named = {f"loss_{name}": term.detach() for name, term in terms.items()}
        return {"loss": loss.detach(), **named, **self.distiller.measured, "train_accuracy": right}

    def validate(self) -> dict[str, float]:
        """Accuracy on the split that selects the epoch; keeps the weights if they are the best so far."""
        try:
            probabilities = predict(self.student, self.val, self.recipe, self.device, self.val_windows)[0]
        except NotFiniteError:
            return {"val_accuracy": math.nan, "val_loss": math.nan}
        labels = self.val.labels
        accuracy = float((probabilities.argmax(1) == labels).float().mean())
        loss = float(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels))
        # Many epochs tie on a small split: the lower loss decides, then the earlier epoch.
        rank = (accuracy, -loss) if self.recipe.selection != "last" else (float(self.epoch), 0.0)
        if not self.best or rank > tuple(self.best["rank"]):
            self.best = {
                "rank": list(rank),
                "epoch": self.epoch,
                "student": {name: value.clone() for name, value in self.student.state_dict().items()},
                "distiller": {name: value.clone() for name, value in self.distiller.state_dict().items()},
            }
        return {"val_accuracy": accuracy, "val_loss": loss}

    def save(self) -> None:
        """Save everything that the rest of the training depends on."""
        state = {name: getattr(self, name).state_dict() for name in self._stateful}
        state |= {name: getattr(self, name) for name in self._values}
        state |= {"run": self.task.run, "seed": self.task.seed, "generator": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        self.checkpoints.save(state)

    def load(self) -> None:
        """Take up the last checkpoint, or the one before it if that is damaged; begin anew where there is none."""
        state = self.checkpoints.load(self.device, self.task.run, self.task.seed, warn=self.is_main)
        if state is None:
            return
        for name in self._stateful:
            getattr(self, name).load_state_dict(state[name])
        for name in self._values:
            setattr(self, name, state[name])
        torch.set_rng_state(state["generator"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"].cpu(), self.device)

    _stateful = ("student", "distiller", "optimizer", "scheduler", "scaler")
    _values = ("epoch", "steps", "totals", "history", "best")


def load_first_weights(student: Student, path: Path) -> None:
    """Load the weights of a network of the same kind and width, all but its last layer.

    Raises UserError if the file is missing or damaged."""
    state = load_tensors(path)
    student.load_state_dict(student.state_dict() | {k: v for k, v in state.items() if not k.startswith("fc.")})


def selection_split(recipe: Recipe) -> str:
    """The split on which accuracy by epoch is measured."""
    return "test" if recipe.selection == "test" else "val"


def make_optimizer(recipe: Recipe, student: Student, distiller: Distiller) -> torch.optim.Optimizer:
    """One optimizer for both, with the learning rates that the distiller asks for its own parameters."""
    groups = [{"params": list(student.parameters()), "lr": recipe.lr}, *distiller.param_groups(recipe.lr)]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        decay, momentum = recipe.weight_decay, recipe.momentum
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=momentum, weight_decay=decay, fused=True)
    return torch.optim.Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def lr_factor(recipe: Recipe, epoch: int) -> float:
    """Share of the learning rate in an epoch, counted from 0."""
    warm = min(1.0, (epoch + 1) / (recipe.warmup + 1))
    if recipe.schedule == "cosine":
        return warm * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    return warm * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)


def train_one(task: Task) -> None:
    """Train one run with one seed, unless that is done already; leaves seed-<n>.pt and seed-<n>.csv."""
    if intact(task.result.with_suffix(".pt")):
        Checkpoints(task.result).delete()  # it may have been killed before it did that
        return
    processes = task.recipe.processes
    with task.tracked.child(f"{task.run} seed {task.seed}", {"run": task.run, "seed": task.seed}) as tracked:
        task = replace(task, tracked=tracked)
        if processes == 1:
            train_student(task)
        else:
            parallel.launch(train_student, (task,), processes, task.device)


def train_student(task: Task) -> None:
    """The training itself: of one student in this process, or of this process's share of one."""
    make_deterministic(task.recipe.compile)
    trainer = Trainer(task)
    if trainer.is_main:
        task.tracked.log_params(
            {
                "method": task.method,
                "teachers": "".join(task.teachers),
                "shuffled": task.shuffled,
                "seed": task.seed,
                "draw": task.draw,
                "device": task.device,
                "options": task.options,
                "recipe": trainer.recipe.model_dump(),
                "training_clips": len(trainer.clips),
                "student_parameters": count_parameters(trainer.student),
                "added_parameters": count_parameters(trainer.distiller),
            }
        )
    trainer.fit()
    if trainer.is_main:
        best = trainer.best
        write_csv(task.result.with_suffix(".csv"), pd.DataFrame(trainer.history))
        kept = {name: best[name] for name in ("epoch", "student", "distiller")} if not trainer.diverged else {}
        about = {"run": task.run, "seed": task.seed, "converged": not trainer.diverged, "epoch": trainer.epoch}
        save_tensors(task.result.with_suffix(".pt"), about | kept)
        trainer.checkpoints.delete()
        task.tracked.set_tags({"converged": not trainer.diverged})
        if trainer.diverged:
            place = f"{task.run} seed {task.seed}"
            print(f"{place}: not converged: the loss is not finite in epoch {trainer.epoch}", file=sys.stderr)
        else:
            task.tracked.log_metrics({"selected_epoch": best["epoch"]}, step=trainer.recipe.epochs)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
