"""One step of an optimizer, also where memory cannot hold a whole batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.context import StepContext
from compress.errors import StepFailed
from compress.ranks import ranks
from compress.training.batch_loader import Batch
from compress.training.execution_mode import ExecutionMode, Run, execution_context
from compress.training.graphs import Replayed
from compress.training.layout import place_inputs
from compress.training.out_of_memory import OutOfMemoryElsewhere, ran_out_of_memory
from compress.training.synchronized import SynchronizedBatchNorms

Loss = Callable[[Tensor, Batch], Tensor]
"""(outputs in float32, batch) -> scalar, the mean over the batch's items."""

LabelWeight = Callable[[float], float]
"""Fraction of the training that is done -> the weight of the labels' loss within the loss."""

AUXILIARY = 0.3
"""The share of the labels' loss that every auxiliary head adds: Szegedy et al. 2014 (GoogLeNet),
section 5. (torchvision's reference training gives no figure: it takes models of one output.)"""
LARGEST_NORM = 5.0
"""Of all gradients together; beyond it they are scaled down."""


class Stepper:
    """Steps of an optimizer, in micro-batches where memory cannot hold a whole batch.

    When memory runs out the batch is halved for good, and the gradients of its micro-batches, each
    weighted by its share of the items, add up to that of the whole. Batch norm sees one of them at
    a time, so its statistics are those of smaller batches; so does a loss that compares the items
    of a batch with one another.
    """

    def __init__(
        self,
        run: Run,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        context: StepContext,
        mode: ExecutionMode,
        label_weight: LabelWeight = lambda progress: 1.0,
    ) -> None:
        self.run, self.parameters, self.optimizer = run, parameters, optimizer
        self.loss, self.context, self.mode = loss, context, mode
        self.label_weight = label_weight
        self.micro_batches = 1

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take one step; return the mean loss and the number of right answers, detached.

        Of several processes each has a part of the batch; the result is that of the whole.

        Memory that runs out in the optimizer itself is an error: smaller batches do not help there,
        and some weights may have been moved already.
        """
        result = self._gradients(batch)
        nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM)
        self.optimizer.step()
        return result

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Leave the batch's gradients in the parameters, in micro-batches that memory holds."""
        while True:
            failed, known, message = False, False, "memory ran out in another process"
            try:
                with self._shared():
                    loss, right = self._in_micro_batches(batch)
            except OutOfMemoryElsewhere:
                known = True
            except (RuntimeError, MemoryError) as error:
                # Batch norm has no variance over one item, so a part has two at least.
                if not ran_out_of_memory(error) or 4 * self.micro_batches > len(batch):
                    raise
                failed, message = True, str(error).strip().partition("\n")[0]
            if not known and not ranks().anywhere(failed):
                count = right.float()
                ranks().add([loss, count, *(p.grad for p in self.parameters if p.grad is not None)])
                return loss, count.long()
            self.optimizer.zero_grad(set_to_none=True)
            if isinstance(self.run, Replayed):
                # The recording holds the memory of a whole batch: without it one may fit.
                self.run = self.run.run
                self.mode = replace(self.mode, replayed=False)
            else:
                self.micro_batches *= 2
            if self.context.device.type == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
            self.context.log.row("memory", micro_batches=self.micro_batches, error=message)

    def _shared(self) -> SynchronizedBatchNorms | nullcontext[None]:
        """Return the context in which batch norms see the batch of all processes."""
        traced = self.mode.compiled or self.mode.replayed  # what has no batch norms: see the loop
        return nullcontext() if ranks().count == 1 or traced else SynchronizedBatchNorms()

    def about(self, batch_size: int) -> dict[str, int]:
        """Return the size of micro-batches for the log, with a note, if batches were split."""
        if self.micro_batches == 1:
            return {}
        self.context.log.note(
            f"memory ran out in training: batches of {batch_size} were split into "
            f"{self.micro_batches} micro-batches, whose gradients were added up"
        )
        return {"micro_batch": -(-batch_size // self.micro_batches)}

    def _in_micro_batches(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        count, whole = len(batch), batch.whole or len(batch)
        total = torch.zeros((), device=batch.targets.device)
        right = torch.zeros((), dtype=torch.int64, device=batch.targets.device)
        # As many in every process, whose batch norms wait for one another.
        pieces = max(1, min(self.micro_batches, whole // ranks().count // 2))
        for index in range(pieces):
            begin, end = index * count // pieces, (index + 1) * count // pieces
            part = batch.of(slice(begin, end))
            with execution_context(self.context, self.mode):
                heads = self.run(*place_inputs(part.inputs, self.mode.channels_last))
            # The loss is computed in float32: bfloat16 keeps three digits only.
            outputs, *others = (head.float() for head in heads)
            value = self.loss(outputs, part)
            weight = AUXILIARY * self.label_weight(batch.progress)
            for head in others if weight else ():
                value = value + weight * self.context.task.loss(head, part.targets)
            value = value * ((end - begin) / whole)
            if not value.requires_grad:
                raise StepFailed(
                    "the model's outputs depend on no weight that may be trained: all that do are "
                    "frozen (requires_grad is False), or the model switches gradients off"
                )
            value.backward()
            total = total + value.detach()
            right = right + self.context.task.correct(outputs.detach(), part.targets).sum()
        return total, right
