"""Uni-modal baseline: the student learns from the labels alone, `L = CE(z^s, q)`.

    q = (1 - e) y + e / C

y is one-hot and C the number of classes. e (`label_smoothing`) is 0 by default, which leaves the plain cross-entropy.
Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, with e = 0.1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from models.distillers.base import Distiller, Sizes
from models.outputs import StudentOutput, TeacherBatch


class UniModal(Distiller):
    """Cross-entropy on the labels, without a teacher."""

    accepts = ("",)

    def __init__(self, sizes: Sizes, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in 0..1, not {label_smoothing}")
        self.label_smoothing = label_smoothing

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`."""
        return {"ce": functional.cross_entropy(student.logits, labels, label_smoothing=self.label_smoothing)}
