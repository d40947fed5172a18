"""Knowledge distillation proper: softened probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from compress.techniques.losses.base import SoftenedLoss


@dataclass(frozen=True, repr=False, kw_only=True)
class Kd(SoftenedLoss):
    """T² · KL(softmax(teacher / T) || softmax(student / T)).
    Hinton, Vinyals and Dean 2015, section 2.
    """

    def compare_softened(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return divergence(F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1))


def divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of log-probabilities (N, classes), averaged over items."""
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
