"""Distillation of relations: correlations instead of equal probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from compress.techniques.losses.base import SoftenedLoss

TINY = 1e-8


@dataclass(frozen=True, repr=False, kw_only=True)
class Dist(SoftenedLoss):
    """T² · (1 - correlation over classes + 1 - correlation over the batch), of probabilities.
    Huang et al. 2022, equations 7 to 10 with beta = gamma = 1.

    Pearson's correlation of each item's probabilities, averaged over items, and of each class's,
    averaged over classes. The paper's T is 1.
    """

    def compare_softened(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        ours, theirs = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
        inter = 1 - correlation(ours, theirs).mean()
        intra = 1 - correlation(ours.T, theirs.T).mean()
        return inter + intra


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of one matrix with that of the other."""
    left, right = (rows - rows.mean(1, keepdim=True) for rows in (left, right))
    return F.cosine_similarity(left, right, dim=1, eps=TINY)
