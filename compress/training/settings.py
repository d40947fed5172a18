"""The settings that all steps that train share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from compress.compressor import Compressor, is_number, require, require_choice, require_count
from compress.context import StepContext
from compress.errors import IllegalChain
from compress.model import Model

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, repr=False)
class Training(Compressor):
    """The settings that all steps that train share.

    The learning rate rises linearly over the first fifth of the steps and falls along a cosine
    to zero (after the one-cycle policy, Smith and Topin 2018); `learning_rate` is its peak.
    Weight decay spares norms and biases. Weights that the model's author froze
    (`requires_grad=False`) stay as they are; the running statistics of batch norms do not, as
    anywhere in torch. `keep='best'` keeps the epoch that is best on the validation split; with
    `patience` the training ends after so many epochs in a row that were no better than the best
    one.
    """

    always_shown = ("epochs",)

    epochs: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 128
    keep: str = "last"
    patience: int | None = None

    def __post_init__(self) -> None:
        require_count(self, "epochs")
        require_count(self, "batch_size", least=2)
        require_choice(self, "optimizer", OPTIMIZERS)
        require_choice(self, "keep", ("last", "best"))
        rate, decay = self.learning_rate, self.weight_decay
        require(is_number(rate) and rate > 0, self, f"learning_rate must be positive, not {rate!r}")
        require(is_number(decay) and decay >= 0, self, f"weight_decay must be >= 0, not {decay!r}")
        if self.patience is not None:
            require_count(self, "patience")

    @property
    def judges(self) -> bool:
        """Whether the validation split decides something."""
        return self.keep == "best" or self.patience is not None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"train", "validation"} if self.judges else {"train"})

    def check(self, context: StepContext) -> None:
        with torch.random.fork_rng(devices=[]):
            learner = self.learner(context)
        if learner is not None:
            refuse_frozen(learner.module, self)

    def learner(self, context: StepContext) -> Model | None:
        """Return a model with the layers of the one that is trained, where they are known."""
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
