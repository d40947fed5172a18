"""The settings of every step that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from compress.compressor import Compressor
from compress.context import StepContext
from compress.errors import IllegalChain
from compress.model import Model
from compress.parts import (
    Choices,
    Effort,
    one_of,
    positive,
    positive_or_zero,
    searched,
    whole_number,
)


@dataclass(frozen=True, repr=False)
class Training(Compressor):
    """The settings of every step that trains.

    The learning rate rises linearly over the first fifth of the steps and falls along a cosine
    to zero (after the one-cycle policy, Smith and Topin 2018); `learning_rate` is its peak.
    Weight decay spares norms and biases. Weights that the model's author froze
    (`requires_grad=False`) stay as they are; the running statistics of batch norms do not, as
    anywhere in torch. `keep='best'` keeps the epoch that is best on the validation split; with
    `patience` the training ends after so many epochs in a row that were no better than the best
    one.
    """

    always_shown = ("epochs",)

    epochs: int = field(default=1, metadata={**whole_number(), **searched(Effort(1, 60))})
    optimizer: str = field(default="adamw", metadata=one_of("adamw", "sgd"))
    learning_rate: float = field(
        default=2e-3, metadata={**positive(), **searched(Choices((1e-3, 2e-3, 5e-4)))}
    )
    weight_decay: float = field(default=0.01, metadata=positive_or_zero())
    batch_size: int = field(default=128, metadata=whole_number(least=2))
    keep: str = field(default="last", metadata=one_of("last", "best"))
    patience: int | None = field(default=None, metadata=whole_number())

    @property
    def judges(self) -> bool:
        """Whether the validation split decides something."""
        return self.keep == "best" or self.patience is not None

    @property
    def untrained(self) -> tuple[Compressor, ...] | None:
        return None if self.builds else ()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"train", "validation"} if self.judges else {"train"})

    def check(self, context: StepContext) -> None:
        with torch.random.fork_rng(devices=[]):
            learner = self.learner(context)
        if learner is not None:
            refuse_frozen(learner.module, self)

    def learner(self, context: StepContext) -> Model | None:
        """Return a model with the layers of the one that is trained, if they are known."""
        return context.enters


def refuse_frozen(module: nn.Module, step: Compressor) -> None:
    """Raise IllegalChain for a module of which nothing may be trained."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise IllegalChain(
            f"{step.name()}: all weights of the model are frozen (requires_grad is False), so "
            f"nothing can be trained: thaw some of them where the model is made, or leave the "
            f"step out"
        )


def one_cycle(progress: float, rise: float = 0.2) -> float:
    """Return the share of the peak learning rate at a fraction of the training, in [0, 1]."""
    if progress < rise:
        return progress / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - rise) / (1 - rise))))
