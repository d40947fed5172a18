"""The teacher's features, learnt through a projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from compress.techniques.hints.base import Hint


@dataclass(frozen=True, repr=False, kw_only=True)
class Fitnets(Hint):
    """Mean of (learnt 1x1 convolution of the student's features - the teacher's)².
    Romero et al. 2015, equation 3; of tokens, a linear map.
    """

    def projection(self, student: Tensor, teacher: Tensor) -> nn.Module:
        if teacher.ndim == 3:
            return nn.Linear(student.shape[2], teacher.shape[2])
        return nn.Conv2d(student.shape[1], teacher.shape[1], 1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)
