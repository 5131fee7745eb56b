"""Load a trained student and predict with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avdistill.config.schema import Recipe
from avdistill.data.loader import ClipSet, EvaluationWindows, end_workers, sent_ahead, to_device, to_input
from avdistill.pipeline.errors import UserError
from avdistill.training.precision import autocast
from avdistill.training.task import TrainedStudent
from avdistill.training.tensors import load_state
from models import students
from models.outputs import StudentOutput
from models.students import Student


class NotConvergedError(UserError):
    """The training of a student diverged, so it has no weights."""


class NotFiniteError(UserError):
    """The output of a student contains NaN or infinity."""


def load_student(trained: TrainedStudent, classes: int, device: torch.device) -> tuple[Student, dict[str, Any]]:
    """Load a trained student to `device`; return it with the saved state.

    Raises NotConvergedError if its training diverged, UserError for a missing or damaged file."""
    state = load_state(trained.weights, device, trained.run, trained.seed)
    if not state.get("converged", True):
        epoch = state["epoch"]
        raise NotConvergedError(
            f"{trained.weights}: the training did not converge: its loss was not finite in epoch {epoch}"
        )
    student = students.build_student(trained.recipe.student, classes, trained.recipe.width)
    student.to(device)
    student.load_state_dict(state["student"])
    return student, state


@torch.inference_mode()
def predict(
    student: Student,
    clips: ClipSet,
    recipe: Recipe,
    device: torch.device,
    windows: EvaluationWindows | None = None,
    also: Callable[[StudentOutput, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return probabilities (N, C) and features (N, D) of the clips, averaged over their windows; on the CPU.

    `windows` are those of the clips, if they are read again and again. `also` is called with the output for each batch
    of windows, and the rows of their clips. Raises NotFiniteError with the first clip if the output contains NaN or
    infinity."""
    student.eval()
    read = EvaluationWindows(clips, recipe) if windows is None else windows
    probabilities = torch.zeros(len(clips), clips.classes, device=device)
    features = torch.zeros(len(clips), student.feature_dim, device=device)
    counts = torch.zeros(len(clips), 1, device=device)
    # Sums stay on the device: the host waits for it once, at the end.
    for frames, rows in sent_ahead(read, lambda pair: to_device(pair, device), device):
        with autocast(device, recipe.precision):
            output: StudentOutput = student(to_input(frames, recipe.normalisation))
            if also:
                also(output, rows)
        probabilities.index_add_(0, rows, output.logits.float().softmax(1))
        features.index_add_(0, rows, output.feature.float())
        counts.index_add_(0, rows, counts.new_ones(len(rows), 1))
    if windows is None:
        end_workers(read.loader)
    probabilities, features, counts = probabilities.cpu(), features.cpu(), counts.cpu()
    bad = ~(probabilities.isfinite().all(1) & features.isfinite().all(1))
    if bad.any():
        first = clips.ids[int(bad.nonzero()[0])]
        raise NotFiniteError(
            f"clip {first!r}: the student's output is not finite ({int(bad.sum())} of {len(clips)} clips)"
        )
    return probabilities / counts, features / counts
