"""The teacher of a distillation: one model or an ensemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from compress.context import StepContext
from compress.ensemble import averaged
from compress.errors import IllegalChain, UserError
from compress.heads import main_output
from compress.model import Model, forward, identity
from compress.tasks.base import Split, Tensors
from compress.training.batch_loader import Batch, Reader
from compress.training.execution_mode import autocast, to_device
from compress.training.graphs import ReplayedAnswers, refuse_hooks
from compress.training.layout import place_inputs, suits_channels_last

REPLAYED_AFTER = 20
"""Batches of one shape after which a teacher on a GPU is recorded: that costs as much as a few."""
BASELINE, INPUT = "baseline", "input"


class Teacher:
    """One model or several, on the context's device; they are copies and never change.

    They see the student's inputs, or, of the items of `split`, their own: `readers` have them.
    """

    def __init__(
        self,
        models: Sequence[Model],
        context: StepContext,
        average: str,
        weights: Sequence[float],
        split: Split | None = None,
    ) -> None:
        self.context, self.average, self.weights = context, average, tuple(weights)
        self.readers: list[Reader] = []
        self.counts: list[int] = []
        """Of the inputs of each reader."""
        self.seen: list[int] = []
        """For each model its place among the student's inputs and those of the readers."""
        self.models = [self._with_inputs(model.copy(), split) for model in models]
        self.replayed: ReplayedAnswers | None = None
        self.asked: Counter[tuple[torch.Size, ...]] = Counter()
        self.channels_last = [self._place(model) for model in self.models]

    def _with_inputs(self, model: Model, split: Split | None) -> Model:
        """Settle which inputs a model sees; return it as it takes them."""
        self.seen.append(0)
        if model.sight is None:
            return model
        task, context = model.sight.task, self.context
        remade = None if split is None else task.remade(split)
        if remade is None:
            change = model.sight.change
            context.log.note(
                f"a teacher sees {'' if change is None else f'{change.words}, made of '}the "
                f"student's inputs: these items have no files to be made anew as it should see "
                f"them, {model.sight.words}"
            )
            if change is not None:
                model.module.register_forward_pre_hook(change)
            return replace(model, probe=context.task.probe(), sight=None)
        if split is not None and len(remade) != len(split):
            raise UserError(
                f"{type(split).__name__}.remade() gives {len(remade):,} items where there are "
                f"{len(split):,}: it must give the same ones, in their order"
            )
        if task not in [reader.task for reader in self.readers]:
            self.readers.append(Reader(remade, task, context.device, context.seed))
            self.counts.append(len(model.probe))
        self.seen[-1] = 1 + [reader.task for reader in self.readers].index(task)
        return model

    def ready(self, epochs: int) -> Sequence[Reader]:
        """Return the readers; where they are for several epochs, with their items in memory."""
        for reader in self.readers if epochs > 1 else ():
            reader.hold()
        return self.readers

    def inputs(self, batch: Batch) -> Tensors:
        """Return all that the models see of a batch: the student's inputs, then the readers'."""
        seen = batch.seen or [reader.inputs(batch.index, batch.view) for reader in self.readers]
        return (*batch.inputs, *chain(*seen))

    def _place(self, model: Model) -> bool:
        """Move a teacher to the device; return whether it runs in channels_last there."""
        inputs = tuple(tensor.to(self.context.device) for tensor in model.items())
        last = suits_channels_last(model.module, inputs, self.context.log, trains=False)
        to_device(model.module, self.context, last).eval().requires_grad_(False)
        return last

    def ask(self, inputs: Tensors) -> Tensor:
        """Return the logits, (N, classes) in float32, for the `inputs` of a batch."""
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
        groups = self._groups(inputs)
        with torch.no_grad(), autocast(self.context.device, self.context.precision):
            for model, seen, last in zip(self.models, self.seen, self.channels_last, strict=True):
                placed = place_inputs(groups[seen], last)
                outputs.append(main_output(model.module, model.module(*placed)).float())
        return averaged(outputs, self.average, self.weights)

    def _groups(self, inputs: Tensors) -> list[Tensors]:
        """Return the student's inputs and those of each reader, of all one after the other."""
        ends = [*accumulate([len(inputs) - sum(self.counts), *self.counts])]
        return [inputs[begin:end] for begin, end in pairwise([0, *ends])]

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
    if shapes[0] != shapes[1] and teacher.sight is None:
        raise IllegalChain(
            f"the teacher takes inputs of shape {shapes[0]} and the student {shapes[1]}: "
            f"both get the same items, so the shapes must be equal"
        )
    expected = forward(teacher.module, teacher.example).shape
    outputs = forward(student.module.eval(), student.example).shape
    if outputs != expected:
        raise IllegalChain(
            f"the student has {outputs[-1]} outputs and the teacher {expected[-1]}: both need one "
            f"for every class of the task"
        )
