"""The losses of distillation: terms of what a student minimises, each with its own options."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.compressor import require
from compress.parts import Part, by_name, flag, one_of, positive, positive_or_zero

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 0.0,
    "linear": lambda done: done,
    "cosine": lambda done: 0.5 * (1 - math.cos(math.pi * done)),
}
"""Name -> how much of the way is gone at a fraction of the training, both in [0, 1]."""


def between(first: float, last: float, shape: str, done: float) -> float:
    """Return the value at a fraction of a training that leads from `first` to `last`."""
    return first + (last - first) * SHAPES[shape](done)


@dataclass(frozen=True, repr=False, kw_only=True)
class Loss(Part, ABC):
    """The distance of a student's answers from its teacher's, (N, classes) both -> a scalar.

    `weight` is its share of what is minimised. `standardize` first scales each item's logits to
    mean 0 and standard deviation 1.
    """

    weight: float = field(default=0.9, metadata=positive())
    standardize: bool = field(default=False, metadata=flag())

    wants_labels: ClassVar[bool] = False
    """Whether it uses the targets."""
    wants_single_classes: ClassVar[bool] = False
    """Whether the targets it uses have to be class numbers, not the mixtures of mixup."""
    wants_logits: ClassVar[bool] = False
    """Whether it needs a teacher's logits, not only what gives the right probabilities."""

    def __call__(
        self, student: Tensor, teacher: Tensor, targets: Tensor, progress: float = 0.0
    ) -> Tensor:
        """Return the mean over a batch, a scalar, without the weight.

        `student` and `teacher` are logits, (N, classes); `targets` are class numbers, (N,), or
        probabilities, (N, classes), where the task mixes items; `progress` is the fraction of the
        training that is done.
        """
        if self.standardize:
            student, teacher = standardized(student), standardized(teacher)
        return self.compare(student, teacher, targets, progress)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, targets: Tensor, progress: float) -> Tensor:
        """Return what a call returns, for logits that are already standardized if requested."""


@dataclass(frozen=True, repr=False, kw_only=True)
class SoftenedLoss(Loss):
    """A loss of logits divided by a temperature T, times T².

    The factor T² keeps the size of the gradients independent of the temperature (Hinton, Vinyals
    and Dean 2015, section 2). With a `final_temperature`, the temperature moves there along
    `temperature_schedule` in the course of the training.
    """

    temperature: float = field(default=4.0, metadata=positive())
    final_temperature: float | None = field(default=None, metadata=positive())
    temperature_schedule: str = field(
        default="linear", metadata=one_of(*(shape for shape in SHAPES if shape != "constant"))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        moves = self.final_temperature is not None or self.temperature_schedule == "linear"
        require(moves, self, "temperature_schedule needs a final_temperature")

    def compare(self, student: Tensor, teacher: Tensor, targets: Tensor, progress: float) -> Tensor:
        last = self.temperature if self.final_temperature is None else self.final_temperature
        temperature = between(self.temperature, last, self.temperature_schedule, progress)
        value = self.compare_softened(student / temperature, teacher / temperature, targets)
        return value * temperature**2

    @abstractmethod
    def compare_softened(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits that are divided by the temperature, without its square."""


@dataclass(frozen=True, repr=False, kw_only=True)
class Kd(SoftenedLoss):
    """T² · KL(softmax(teacher / T) || softmax(student / T)).
    Hinton, Vinyals and Dean 2015, section 2.
    """

    def compare_softened(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return divergence(F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1))


@dataclass(frozen=True, repr=False, kw_only=True)
class Logits(Loss):
    """Σ (student - teacher)², over an item's logits.
    Ba and Caruana 2014, equation 1 without its factor 1/2.
    """

    wants_logits = True

    def compare(self, student: Tensor, teacher: Tensor, targets: Tensor, progress: float) -> Tensor:
        return (student - teacher).square().sum(1).mean()


@dataclass(frozen=True, repr=False, kw_only=True)
class Dkd(SoftenedLoss):
    """T² · (KL of the target against all others + beta · KL among the others).
    Zhao et al. 2022, equation 7 with alpha = 1.

    In plain distillation the second part is weighted by 1 - p(target), which is small for a sure
    teacher.
    """

    beta: float = field(default=2.0, metadata=positive_or_zero())

    wants_labels = True
    wants_single_classes = True

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


BUILT_IN: tuple[type[Loss], ...] = (Kd, Logits, Dkd, Dist)


@functools.cache
def losses() -> Mapping[str, type[Loss]]:
    """Return every loss by its name in chain text: entry points `compress.losses` included."""
    return by_name(Loss, "compress.losses", BUILT_IN)


def standardized(values: Tensor) -> Tensor:
    """Return each item's logits with mean 0 and standard deviation 1.

    Sun et al. 2024 (arXiv 2403.01427), algorithm 1: the student need not have the teacher's
    range of logits, only their relations. The deviation is that of a sample (K - 1), as in their
    code; the paper's has K.
    """
    centred = values - values.mean(1, keepdim=True)
    return centred / (values.std(1, keepdim=True) + 1e-7)


def divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of log-probabilities (N, classes), averaged over items."""
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return Pearson's correlation of each row of one matrix with that of the other."""
    left, right = (rows - rows.mean(1, keepdim=True) for rows in (left, right))
    return F.cosine_similarity(left, right, dim=1, eps=1e-8)
