"""RC-MC: Hu et al., "Learning Cross-Modal Retrieval with Noisy Labels", CVPR 2021 (robust clustering and
multi-modal contrast).

Student and teacher are the modalities m. Both are embedded in one space, z^m = n(f_m(x^m)). It has a centre c_k of
unit length for each class, shared by the modalities and initialised orthogonal:

    p(k|z) = softmax_k(c_k . z / tau)
    L_r = 1/N sum_m sum_i log(1 - p(y_i | z^m_i))
    L_c = -1/N sum_m sum_i log( sum_l exp(z^l_i . z^m_i / tau) / sum_l sum_t exp(z^l_t . z^m_i / tau) )
    L   = CE(z^s, y) + weight (beta L_r + (1 - beta) L_c)

L_r is negative. Its derivative with respect to the label's logit is -p(y_i | z_i), so clips far from their centre,
such as those with a wrong label, get the smallest gradient.

Defaults are those of the authors' program. tau 1 and 512 dimensions are defaults of its arguments; beta 0.7, which the
paper does not give, is the value in its README's command (the argument's default is 0.5).

The paper keeps the similarity of z^m_i to itself in both sums of L_c (`self_similarity: true`). The authors' program
leaves it out, which for two modalities is NT-Xent; this is the default here.

Choices of this implementation: f_m is a linear layer, because the features already come from deep networks. Centres
are normalised where they are used. Two teachers form one pair each with the student and share its f and the centres.
CE and `weight` are added here; the paper trains embeddings for retrieval alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.distillers.base import Distiller, Sizes, by_teacher
from models.outputs import StudentOutput, TeacherBatch


def robust_clustering(z: Tensor, centres: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute mean_i log(1 - p(y_i | z_i)) of unit vectors z (N, D) and centres (C, D), C >= 2; finite where p is 1."""
    x = z @ centres.T / temperature
    right = labels[:, None] == torch.arange(len(centres), device=labels.device)
    return (x.masked_fill(right, -torch.inf).logsumexp(1) - x.logsumexp(1)).mean()


def multimodal_contrast(student: Tensor, teacher: Tensor, temperature: float, self_similarity: bool) -> Tensor:
    """Compute L_c of two modalities, unit vectors (N, D) each."""
    z, clip = torch.cat([student, teacher]), torch.arange(len(student), device=student.device).repeat(2)
    x = z @ z.T / temperature
    if not self_similarity:
        x = x.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), -torch.inf)
    own = x.masked_fill(clip[:, None] != clip, -torch.inf)
    return (x.logsumexp(1) - own.logsumexp(1)).sum() / len(student)


class RcMc(Distiller):
    """Robust clustering with multi-modal contrast. Clips without audio contribute to the cross-entropy only."""

    def __init__(
        self,
        sizes: Sizes,
        *,
        beta: float = 0.7,
        temperature: float = 1.0,
        dim: int = 512,
        self_similarity: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if sizes.classes < 2:
            raise ValueError(f"rc_mc needs two classes or more, found {sizes.classes}")
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in 0..1, not {beta}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        if dim < sizes.classes:
            raise ValueError(f"dim must be at least {sizes.classes}, the number of orthogonal centres, not {dim}")
        if weight < 0:
            raise ValueError(f"weight must not be negative, but is {weight}")
        self.beta, self.temperature, self.self_similarity, self.weight = beta, temperature, self_similarity, weight
        self.student = nn.Linear(sizes.student, dim)
        self.teachers = nn.ModuleDict({letter: nn.Linear(width, dim) for letter, width in sizes.teachers.items()})
        self.centres = nn.Parameter(nn.init.orthogonal_(torch.empty(sizes.classes, dim)))

    def terms(
        self, student: StudentOutput, teachers: dict[str, TeacherBatch], labels: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        """Compute `ce`, `clustering` and `contrast`; with two teachers the last two end in `_A` or `_I`."""
        centres = functional.normalize(self.centres, dim=1)

        def distil(letter: str, rows: Tensor) -> list[Tensor]:
            s = functional.normalize(self.student(student.feature[rows]), dim=1)
            t = functional.normalize(self.teachers[letter](teachers[letter].feature[rows]), dim=1)
            pulls = [robust_clustering(z, centres, labels[rows], self.temperature) for z in (s, t)]
            contrast = multimodal_contrast(s, t, self.temperature, self.self_similarity)
            return [
                self.weight * self.beta * torch.stack(pulls).sum(),
                self.weight * (1 - self.beta) * contrast,
            ]

        ce = functional.cross_entropy(student.logits, labels)
        return {"ce": ce} | by_teacher(["clustering", "contrast"], student, teachers, distil)
