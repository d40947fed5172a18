"""Losses of distillation, by name: (student logits, teacher logits) -> scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

SoftLoss = Callable[[Tensor, Tensor, float], Tensor]


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Both are logits of shape (N, classes). Hinton, Vinyals and Dean 2015, section 2: the factor
    T² keeps the size of the gradients independent of the temperature.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def logits(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Squared difference of the logits, summed over the logits, averaged over the batch.

    Ba and Caruana 2014, equation 1 (without its factor 1/2). The temperature has no part in it.
    """
    return (student - teacher).square().sum(1).mean()


SOFT_LOSSES: dict[str, SoftLoss] = {"kd": kd, "logits": logits}
