"""Maps of where the energy of features lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from compress.techniques.hints.base import Hint


@dataclass(frozen=True, repr=False, kw_only=True)
class Attention(Hint):
    """Squared distance of attention maps: the sums of squares over channels, scaled to length one.
    Zagoruyko and Komodakis 2017, equation 2 with p = 2, the norm squared as in their code.
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (attention(student) - attention(teacher)).square().sum(1).mean()


def attention(features: Tensor) -> Tensor:
    """Return each item's map of energy over places, (N, places), of length one."""
    channels = 1 if features.ndim == 4 else 2
    return F.normalize(features.square().mean(channels).flatten(1), dim=1)
