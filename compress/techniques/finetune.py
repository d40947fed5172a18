"""Training on labels from the current weights, for recovery after another step."""

from __future__ import annotations

from dataclasses import dataclass, field

from compress.context import StepContext
from compress.model import Model
from compress.parts import positive
from compress.training import Training, fit, labels_loss


@dataclass(frozen=True, repr=False)
class Finetune(Training):
    """Train on with the task's loss; weights that a pruning step masked stay zero."""

    learning_rate: float = field(default=5e-4, metadata=positive())

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"labels"}

    def compress(self, model: Model, context: StepContext) -> Model:
        return fit(model, context, self, labels_loss(context))
