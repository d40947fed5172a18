"""Who teaches: one model or an ensemble, looked up by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.context import StepContext
from compress.ensemble import averaged
from compress.errors import IllegalChain, unknown
from compress.model import Model, forward, identity, main_output
from compress.tasks.base import Tensors
from compress.training import autocast, has_convolutions, place_inputs, to_device
from compress.training.graphs import ReplayedAnswers, refuse_hooks

REPLAYED_AFTER = 20
"""Batches of one shape after which a teacher on a GPU is recorded: that costs as much as a few."""
BASELINE, INPUT = "baseline", "input"


class Teacher:
    """One model or several, on the context's device; they are copies and never change."""

    def __init__(
        self, models: Sequence[Model], context: StepContext, average: str, weights: Sequence[float]
    ) -> None:
        self.models = [model.copy() for model in models]
        self.context, self.average, self.weights = context, average, tuple(weights)
        self.replayed: ReplayedAnswers | None = None
        self.asked: Counter[tuple[torch.Size, ...]] = Counter()
        for model in self.models:
            to_device(model.module, context).eval().requires_grad_(False)

    def ask(self, inputs: Tensors) -> Tensor:
        """Return the logits, (N, classes) in float32."""
        if self.context.device.type == "cuda":
            shapes = tuple(tensor.shape for tensor in inputs)
            self.asked[shapes] += 1
            # The most frequent shape comes first; the last batch of an epoch has another one.
            if self.asked[shapes] == REPLAYED_AFTER == max(self.asked.values()):
                self._record(inputs)
        return self._ask(inputs) if self.replayed is None else self.replayed(inputs)

    def forget(self) -> None:
        """Free the recording, which holds memory of the GPU."""
        self.replayed = None

    def _record(self, inputs: Tensors) -> None:
        try:
            for model in self.models:
                refuse_hooks(model.module)
            self.replayed = ReplayedAnswers(self._ask, inputs)
        except Exception as error:  # whatever it is, the plain way is there
            self.context.log.row("teacher", replayed=False, reason=str(error)[:300])

    def _ask(self, inputs: Tensors) -> Tensor:
        outputs = []
        with torch.no_grad(), autocast(self.context):
            for model in self.models:
                placed = place_inputs(inputs, has_convolutions(model.module))
                outputs.append(main_output(model.module(*placed)).float())
        return averaged(outputs, self.average, self.weights)

    def identity(self) -> dict[str, object]:
        """Return what the answers depend on, as JSON."""
        return {
            "models": [identity(model) for model in self.models],
            "average": self.average if len(self.models) > 1 else "",
            "weights": list(self.weights) if len(self.models) > 1 else [],
            "precision": self.context.precision,
            "device": str(self.context.device),
        }


def find_teachers(names: Sequence[str], model: Model, context: StepContext) -> list[Model]:
    """Return the models of some names: the baseline, the one that enters, those of the suite."""
    found = []
    for name in names:
        if name == INPUT:
            found.append(model)
        elif name == BASELINE:
            assert context.teacher is not None, "run() has checked needs"
            found.append(context.teacher)
        elif name in context.models:
            found.append(context.models[name])
        else:
            raise unknown("teacher", name, [BASELINE, INPUT, *context.models])
    return found


def check_pair(teacher: Model, student: Model) -> None:
    """Refuse a student that takes other inputs or gives outputs of another shape."""
    shapes = [[tuple(t.shape[1:]) for t in model.example] for model in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise IllegalChain(
            f"the teacher takes inputs of shape {shapes[0]} and the student {shapes[1]}: both "
            f"see the same items, so both need the same"
        )
    taught = forward(teacher.module, teacher.example).shape
    learnt = forward(student.module.eval(), teacher.example).shape
    if taught != learnt:
        raise IllegalChain(
            f"the student has {learnt[-1]} outputs and the teacher {taught[-1]}: both need one "
            f"for every class of the task"
        )
