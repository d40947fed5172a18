"""Decoupled distillation: the target against the rest, and the rest among themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.compressor import require_positive
from compress.techniques.losses.base import SoftenedLoss
from compress.techniques.losses.kd import divergence


@dataclass(frozen=True, repr=False, kw_only=True)
class Dkd(SoftenedLoss):
    """T² · (KL of the target against all others + beta · KL among the others).
    Zhao et al. 2022, equation 7 with alpha = 1.

    In plain distillation the second part is weighted by 1 - p(target), which is small for a sure
    teacher.
    """

    beta: float = 2.0

    wants_labels = True
    wants_single_classes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "beta", zero=True)

    def compare_softened(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        target = targets[:, None]
        # Numbers, not a mask: a GPU would have to wait for how many items a mask picks.
        others = torch.arange(student.shape[1] - 1, device=student.device)
        others = others + (others >= target)
        first, second = [], []
        for values in (student, teacher):
            logs = F.log_softmax(values, dim=1)
            rest = logs.gather(1, others).logsumexp(1, keepdim=True)
            first.append(torch.cat([logs.gather(1, target), rest], dim=1))
            second.append(F.log_softmax(values.gather(1, others), dim=1))
        return divergence(*first) + self.beta * divergence(*second)
