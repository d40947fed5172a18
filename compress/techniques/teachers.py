"""The teacher of a distillation: one model or an ensemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.context import StepContext
from compress.ensemble import averaged
from compress.errors import IllegalChain
from compress.heads import main_output
from compress.model import Model, forward, identity
from compress.tasks.base import Tensors
from compress.training.execution_mode import autocast, to_device
from compress.training.graphs import ReplayedAnswers, refuse_hooks
from compress.training.layout import place_inputs, suits_channels_last

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
        self.channels_last = [self._place(model) for model in self.models]

    def _place(self, model: Model) -> bool:
        """Move a teacher to the device; return whether it runs in channels_last there."""
        inputs = tuple(tensor.to(self.context.device) for tensor in model.items())
        last = suits_channels_last(model.module, inputs, self.context.log, trains=False)
        to_device(model.module, self.context, last).eval().requires_grad_(False)
        return last

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
        except Exception as error:  # whatever it is, plain passes still work
            self.context.log.row("teacher", replayed=False, reason=str(error)[:300])

    def _ask(self, inputs: Tensors) -> Tensor:
        outputs = []
        with torch.no_grad(), autocast(self.context.device, self.context.precision):
            for model, last in zip(self.models, self.channels_last, strict=True):
                placed = place_inputs(inputs, last)
                outputs.append(main_output(model.module, model.module(*placed)).float())
        return averaged(outputs, self.average, self.weights)

    def identity(self) -> dict[str, object]:
        """Return what the answers depend on, as JSON."""
        return {
            "models": [identity(model) for model in self.models],
            "average": self.average if len(self.models) > 1 else "",
            "weights": list(self.weights) if len(self.models) > 1 else [],
            "precision": self.context.precision,
            "device": self.context.device.type,
        }


def known_teachers(context: StepContext, enters: Model | None) -> dict[str, Model]:
    """Return by name every model that can teach a step: the baseline, its input, the suite's."""
    models = {**context.models, BASELINE: context.teacher, INPUT: enters}
    return {name: model for name, model in models.items() if model is not None}


def check_pair(teacher: Model, student: Model) -> None:
    """Raise IllegalChain for a student whose inputs or outputs have other shapes."""
    shapes = [[tuple(t.shape[1:]) for t in model.example] for model in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise IllegalChain(
            f"the teacher takes inputs of shape {shapes[0]} and the student {shapes[1]}: "
            f"both get the same items, so the shapes must be equal"
        )
    expected = forward(teacher.module, teacher.example).shape
    outputs = forward(student.module.eval(), teacher.example).shape
    if outputs != expected:
        raise IllegalChain(
            f"the student has {outputs[-1]} outputs and the teacher {expected[-1]}: both need one "
            f"for every class of the task"
        )
