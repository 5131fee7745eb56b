"""Uni-modal baseline: the student learns from the labels alone, `L = CE(z^s, y)`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes
from models.outputs import StudentOutput, TeacherBatch


class UniModal(Distiller):
    """Cross-entropy on the labels, without a teacher."""

    accepts = ("",)

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`."""
        return {"ce": functional.cross_entropy(student.logits, labels)}
