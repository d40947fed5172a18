"""A model with fresh weights: what its shapes cost, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from compress.compressor import Compressor
from compress.context import StepContext
from compress.model import Model
from compress.parts import a_name


@dataclass(frozen=True, repr=False)
class Untrained(Compressor):
    """Build the student and leave it untrained: its latency and size are those of a trained one.

    `untrained(student='resnet20') -> quantize()` tells in seconds what an architecture costs here;
    its accuracy is that of a guess.
    """

    student: str = field(metadata=a_name())

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return True

    @property
    def students(self) -> frozenset[str]:
        return frozenset({self.student})

    def compress(self, model: Model, context: StepContext) -> Model:
        return context.student(self.student)
