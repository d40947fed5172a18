"""Losses of distillation, by name: student and teacher logits -> scalar.

All logits have the shape (N, classes); every loss is the mean over the batch. `targets` are class
numbers, (N,), for the losses that look at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SoftLoss = Callable[..., Tensor]
"""(student, teacher, temperature, targets) -> scalar."""
TINY = 1e-8


def kd(student: Tensor, teacher: Tensor, temperature: float, targets: Any = None) -> Tensor:
    """T² · KL(softmax(teacher / T) || softmax(student / T)).

    Hinton, Vinyals and Dean 2015, section 2: the factor T² keeps the size of the gradients
    independent of the temperature.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return _divergence(log_student, log_teacher) * temperature**2


def logits(student: Tensor, teacher: Tensor, temperature: float, targets: Any = None) -> Tensor:
    """Squared difference of the logits, summed over the logits.

    Ba and Caruana 2014, equation 1 (without its factor 1/2). The temperature has no part in it.
    """
    return (student - teacher).square().sum(1).mean()


def dkd(
    student: Tensor, teacher: Tensor, temperature: float, targets: Tensor, beta: float = 2.0
) -> Tensor:
    """T² · (KL of target against all others + beta · KL among the others).

    Decoupled distillation, Zhao et al. 2022, equation 7 with alpha = 1: in plain distillation
    the second part is weighted by 1 - p(target), which is small for a sure teacher.
    """
    target = targets[:, None]
    # Numbers, not a mask: a GPU would have to wait for how many items a mask picks.
    others = torch.arange(student.shape[1] - 1, device=student.device)
    others = others + (others >= target)
    first, second = [], []
    for values in (student / temperature, teacher / temperature):
        logs = F.log_softmax(values, dim=1)
        rest = logs.gather(1, others).logsumexp(1, keepdim=True)
        first.append(torch.cat([logs.gather(1, target), rest], dim=1))
        second.append(F.log_softmax(values.gather(1, others), dim=1))
    return (_divergence(*first) + beta * _divergence(*second)) * temperature**2


def dist(student: Tensor, teacher: Tensor, temperature: float, targets: Any = None) -> Tensor:
    """T² · (1 - correlation over classes + 1 - correlation over the batch), of probabilities.

    Huang et al. 2022, equations 7 to 10 with beta = gamma = 1: Pearson's correlation of each
    item's probabilities, averaged over items, and of each class's, averaged over classes.
    """
    ours = F.softmax(student / temperature, dim=1)
    theirs = F.softmax(teacher / temperature, dim=1)
    inter = 1 - correlation(ours, theirs).mean()
    intra = 1 - correlation(ours.T, theirs.T).mean()
    return (inter + intra) * temperature**2


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of one matrix with that of the other."""
    left, right = (rows - rows.mean(1, keepdim=True) for rows in (left, right))
    return F.cosine_similarity(left, right, dim=1, eps=TINY)


def standardized(values: Tensor) -> Tensor:
    """Return each item's logits with mean 0 and standard deviation 1.

    Sun et al. 2024 (arXiv 2403.01427), algorithm 1: the student need not have the teacher's
    range of logits, only their relations. The deviation is that of a sample (K - 1), as in their
    code; the paper's has K.
    """
    centred = values - values.mean(1, keepdim=True)
    return centred / (values.std(1, keepdim=True) + 1e-7)


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


SOFT_LOSSES: dict[str, SoftLoss] = {"kd": kd, "logits": logits, "dkd": dkd, "dist": dist}
LABEL_LOSSES = frozenset({"dkd"})
"""Those that look at the targets' class numbers."""
