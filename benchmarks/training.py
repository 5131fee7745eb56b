"""Benchmarks of training: a step of MNF+CSC at the papers' size, and the time that the trainer waits for data."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.data.loader import NORMALISATION, end_workers
from avdistill.pipeline.processes import cores
from avdistill.training.teachers import build_distiller
from avdistill.training.trainer import Sent, Trainer
from benchmarks import made_up
from benchmarks.harness import Measured, Setting, alternate, benchmark, speedup
from benchmarks.scaling import THIN
from models import students
from models.distillers.mnf_csc import MnfCsc, calibrated_contrast, temperatures, triplet_loss

LOOP = "float32 loop with the same network: Conv3d in contiguous layout, eager, two backward passes"
# Accepted relative differences of the loss and of the gradients between the two. Batch norms over few clips make
# gradients ill-conditioned: in float32 both differ from float64 by some per cent. The loss is the sharper test.
LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


class PlainLoop:
    """Training step as in the papers' programs: two optimizers, and a backward pass of each loss through the student.

    The student's gradient from the module's loss is discarded before that of its own loss is computed; the module
    keeps both. The result equals the trainer's with `gradients: released`."""

    def __init__(self, trainer: Trainer) -> None:
        recipe, device = trainer.recipe, trainer.device
        self.student = students.build_student(recipe.student, trainer.clips.classes, recipe.width)
        self.student.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.student.load_state_dict(trainer.student.state_dict())
        plain_convolutions(self.student)
        module = build_distiller(trainer.task, self.student, trainer.teachers, trainer.clips).to(device)
        assert isinstance(module, MnfCsc) and module.mask is not None
        self.module, self.mask = module, module.mask
        self.module.load_state_dict(trainer.distiller.state_dict())
        self.teacher = trainer.teachers["A"]
        self.mean, self.std = (torch.tensor(v, device=device) * 255 for v in NORMALISATION[recipe.normalisation])
        self.optimizer = torch.optim.Adam(self.student.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        rate = module.module_lr * recipe.lr
        self.module_optimizer = torch.optim.Adam(self.module.parameters(), rate, weight_decay=recipe.weight_decay)

    def step(self, clips: Tensor, labels: Tensor, rows: Tensor) -> float:
        """Train on one batch and return the sum of all terms, synchronising with the device as those programs do."""
        output = self.student(((clips - self.mean) / self.std).permute(0, 4, 1, 2, 3).contiguous())
        valid = self.teacher.mask[rows].nonzero().flatten()
        s, m = output.feature[valid], output.map[valid]
        t, y = self.module.project(self.teacher.feature[rows][valid]), labels[valid]
        purified, target, logits = self.module.filter(s, m, t)
        margin, tau = self.module.margin, temperatures(s, purified, self.module.delta)
        module_loss = F.cross_entropy(logits, y) + triplet_loss(s, t, purified, margin)
        module_loss = module_loss + self.module.mask_l1 * self.mask.w2.weight.abs().sum(1).mean()
        student_loss = F.cross_entropy(output.logits, labels) + calibrated_contrast(s, target, tau, y)
        self.module_optimizer.zero_grad()
        module_loss.backward(retain_graph=True)
        self.optimizer.zero_grad()
        student_loss.backward()
        self.optimizer.step()
        self.module_optimizer.step()
        return module_loss.item() + student_loss.item()


def plain_convolutions(student: nn.Module) -> None:
    """Run each convolution of a student as the one in three dimensions that it is."""
    for module in student.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = partial(nn.Conv3d.forward, module)  # type: ignore[method-assign]


def papers_size(setting: Setting, student: str, **changes: Any) -> Trainer:
    """Build a trainer at 16x112x112 (tiny in a quick run)."""
    gpu = setting.device != "cpu"
    recipe: dict[str, Any] = {"student": student, "batch": 32 if gpu else 4}
    recipe |= {"precision": "bfloat16", "compile": True} if gpu else {}
    recipe |= {"frames": 4, "size": 32, "width": 0.125} if setting.quick else {}
    shape = (8, 36, 48) if setting.quick else (20, 128, 171)
    clips = (16 if gpu else 4) * recipe["batch"]
    params = made_up.suite(setting.folder, clips, shape, recipe | changes, {"gradients": "released"})
    return made_up.trainer(params, setting.device)


def on_device(trainer: Trainer) -> list[Sent]:
    """Return the batches of an epoch, on the trainer's device."""
    return [trainer.to_device(batch) for batch in trainer.loader]


def compare_gradients(setting: Setting, student: str, **changes: Any) -> dict[str, float]:
    """Relative differences of losses and gradients between a step of the trainer and one of the plain loop, in float32.

    Not at the precision that is timed: in bfloat16 rounding alone moves the gradients of 18 layers by their own length.
    """
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    trainer = papers_size(setting, student, **changes | {"precision": "float32", "compile": False})
    batches, loop = on_device(trainer), PlainLoop(trainer)
    torch.use_deterministic_algorithms(True)
    ours = float(trainer.step(*batches[0])["loss"])
    torch.use_deterministic_algorithms(False)
    theirs = loop.step(*batches[0][:3])
    torch.backends.cudnn.allow_tf32 = before
    apart = {"loss": abs(ours - theirs) / abs(theirs)}
    for name, pair in {"student": (trainer.student, loop.student), "module": (trainer.distiller, loop.module)}.items():
        gradients = [torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]) for one in pair]
        apart[name] = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    assert apart["loss"] < LOSS_TOLERANCE["float32"] and max(apart["student"], apart["module"]) < 0.2, apart
    return apart


def step_of(setting: Setting, student: str, **changes: Any) -> Measured:
    """Compare a step of the trainer with one of the plain loop, after checking that both give the same gradients.

    `changes` are those of the recipe."""
    apart = compare_gradients(setting._replace(folder=setting.folder / "exact"), student, **changes)
    trainer = papers_size(setting, student, **changes)
    batches, loop = on_device(trainer), PlainLoop(trainer)

    def theirs(batch: Sent) -> float:
        torch.use_deterministic_algorithms(False)
        return loop.step(*batch[:3])

    torch.use_deterministic_algorithms(True)
    losses = float(trainer.step(*batches[0])["loss"]), theirs(batches[0])
    apart["loss_at_speed"] = abs(losses[0] - losses[1]) / abs(losses[1])
    assert apart["loss_at_speed"] < LOSS_TOLERANCE[trainer.recipe.precision], apart
    steps = batches[:4] if setting.device != "cpu" else batches[:1]  # on a GPU only the last is synchronised

    def several() -> None:
        torch.use_deterministic_algorithms(True)
        for batch in steps:
            trainer.step(*batch)

    measured = speedup(several, lambda: [theirs(batch) for batch in steps], 3 if setting.quick else 7)
    clips = len(steps) * len(batches[0][1])
    rates = {f"{name}_clips_per_s": clips / measured.detail[f"{name}_s"] for name in ("ours", "baseline")}
    return Measured(measured.value, measured.detail | rates | {"apart": apart, "batch": len(batches[0][1])})


@benchmark("training step, MNF+CSC, `r2plus1d_10`, 16x112x112", LOOP, cpu=1.4, gpu=5)
def step_r2plus1d_10(setting: Setting) -> Measured:
    """Times `Trainer.step` on a batch of 4 (GPU: 32, bfloat16, compiled) that is already on the device. The baseline is
    a loop that computes the same losses and gradients from the same batch and weights, and synchronises with the device
    in every step. Both normalise the uint8 frames and step their optimizers, on all cores."""
    return step_of(setting, "r2plus1d_10")


@benchmark("training step, MNF+CSC, `r2plus1d_18`, 16x112x112", LOOP, cpu=1.4, gpu=5)
def step_r2plus1d_18(setting: Setting) -> Measured:
    """Same method as for `r2plus1d_10`."""
    return step_of(setting, "r2plus1d_18")


@benchmark("training step, MNF+CSC, the embedded suite's student", LOOP, cpu=1.4)
def step_embedded(setting: Setting) -> Measured:
    """Same method as for `r2plus1d_10`, with the recipe of the embedded suite (`r2plus1d_10_small`, width 1/8, 8x24x24,
    batches of 16) on one core, as that suite trains."""
    torch.set_num_threads(1)
    return step_of(setting, "r2plus1d_10_small", **THIN)


@benchmark("share of time the trainer waits for data", unit="%", cpu=5, gpu=5)
def waiting_for_data(setting: Setting) -> Measured:
    """Time that an epoch of `Trainer.train_epoch` at 16x112x112 saves if its batches are already in memory, as a share
    of the epoch with the loader (random crops of 20 packed frames of 128x171); `r2plus1d_10`, batches of 4 (GPU: 32,
    one loader worker per core). The workers have started before."""
    workers = cores() if setting.device != "cpu" else 0
    trainer = papers_size(setting, "r2plus1d_10", loader_workers=workers)
    loader: Any = trainer.loader
    batches = list(loader)

    def epoch(batches: Any) -> None:
        trainer.loader = batches
        trainer.train_epoch()

    ways = {"loader": lambda: epoch(loader), "at_hand": lambda: epoch(batches)}
    seconds = alternate(ways, 2 if setting.quick else 5)
    shares = [1 - hand / load for load, hand in zip(seconds["loader"], seconds["at_hand"], strict=True)]
    end_workers(loader)
    medians = {f"{name}_s": statistics.median(times) for name, times in seconds.items()}
    return Measured(100 * max(0.0, statistics.median(shares)), medians | {"workers": workers})
