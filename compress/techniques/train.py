"""Training on labels from fresh weights: the baseline's own, or a student's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress.compressor import Workbench
from compress.model import Model
from compress.training import Training, fit


@dataclass(frozen=True, repr=False)
class Train(Training):
    """Train from fresh weights with the task's loss.

    Without `student`, the architecture of the model that enters; with it, the named student,
    which is the control of a distilled one.
    """

    student: str | None = None

    @property
    def restarts(self) -> bool:  # type: ignore[override]
        return True

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"labels"}

    @property
    def students(self) -> frozenset[str]:
        return frozenset() if self.student is None else frozenset({self.student})

    def compress(self, model: Model, bench: Workbench) -> Model:
        return fit(
            fresh_model(self.student, model, bench),
            bench,
            self,
            lambda outputs, targets, _: bench.task.loss(outputs, targets),
        )


def fresh_model(student: str | None, model: Model, bench: Workbench) -> Model:
    """Build the student, or the architecture of `model` again, with fresh weights."""
    if student is not None:
        return bench.student(student)
    if model.blueprint is not None:
        return bench.student(model.blueprint.factory)
    bench.journal.note("a module instance has no factory: trained from the weights it came with")
    return replace(model, sparse=frozenset(), hints={})
