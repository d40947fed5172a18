"""What a loss of distillation is: one term of what a student minimises, with its own options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.compressor import require, require_choice, require_positive
from compress.parts import Part
from compress.techniques.schedules import SHAPES, between


@dataclass(frozen=True, repr=False, kw_only=True)
class Loss(Part, ABC):
    """How far a student's answers are from its teacher's, (N, classes) both -> a scalar.

    `weight` is its share of what is minimised. `standardize` scales each item's logits to mean 0
    and deviation 1 before.
    """

    weight: float = 0.9
    standardize: bool = False

    wants_labels: ClassVar[bool] = False
    """Whether it looks at the targets."""
    wants_single_classes: ClassVar[bool] = False
    """Whether the targets it looks at have to be class numbers, not the mixtures of mixup."""
    wants_logits: ClassVar[bool] = False
    """Whether it needs a teacher's logits, not only what gives the right probabilities."""

    def __post_init__(self) -> None:
        require_positive(self, "weight")
        require(isinstance(self.standardize, bool), self, "standardize is True or False")

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
        """Return what a call returns, for logits that are standardized if they are to be."""


@dataclass(frozen=True, repr=False, kw_only=True)
class SoftenedLoss(Loss):
    """A loss of logits divided by a temperature T, times T².

    The factor T² keeps the size of the gradients independent of the temperature (Hinton, Vinyals
    and Dean 2015, section 2). `temperature` leads to `final_temperature`, if there is one, along
    `temperature_schedule` in the course of the training.
    """

    temperature: float = 4.0
    final_temperature: float | None = None
    temperature_schedule: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", "final_temperature")
        require_choice(self, "temperature_schedule", tuple(s for s in SHAPES if s != "constant"))
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


def standardized(values: Tensor) -> Tensor:
    """Return each item's logits with mean 0 and standard deviation 1.

    Sun et al. 2024 (arXiv 2403.01427), algorithm 1: the student need not have the teacher's
    range of logits, only their relations. The deviation is that of a sample (K - 1), as in their
    code; the paper's has K.
    """
    centred = values - values.mean(1, keepdim=True)
    return centred / (values.std(1, keepdim=True) + 1e-7)
