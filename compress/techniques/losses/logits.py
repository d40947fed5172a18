"""Squared difference of the logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.techniques.losses.base import Loss


@dataclass(frozen=True, repr=False, kw_only=True)
class Logits(Loss):
    """Σ (student - teacher)², over an item's logits.
    Ba and Caruana 2014, equation 1 without its factor 1/2.
    """

    wants_logits = True

    def compare(self, student: Tensor, teacher: Tensor, targets: Tensor, progress: float) -> Tensor:
        return (student - teacher).square().sum(1).mean()
