"""What a teacher says of every item, asked once and kept.

An item's augmented view is a function of its number, the view's number and the seed, so a view's
answers are right in whatever order the items come. They are kept as float16, by item number, under
a hash of what they depend on: other epochs, students, chains and runs use them, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.amounts import size
from compress.context import StepContext
from compress.errors import StepFailed
from compress.system.files import digest
from compress.system.memory import free_memory
from compress.tasks.base import Tensors
from compress.training import Batch
from compress.training.batch_loader import free_on

FILE = "logits.npy"
KEPT_BYTES = 1e9
"""Of all views together: more is kept only if the number of views is given."""
MEMORY_SHARE = 0.25
"""Of what is free: so much may the views that are held take."""
PLACE_SHARE = 0.02
"""Of a GPU's memory that is free: so much may one view take there, beside the training."""
LARGEST = 6e4
"""Beyond it, a logit does not fit into a float16."""

Ask = Callable[[Tensors], Tensor]
"""Inputs -> the teacher's logits in float32."""


@dataclass(frozen=True)
class Showing:
    """What is shown of a teacher's answers in a training."""

    items: int
    views: int
    """How many views of each item there are, in turns."""
    epochs: int
    keep: bool = True
    """Whether answers are rounded to float16, so that reusing them changes nothing."""
    given: bool = False
    """Whether the number of views was asked for."""


class SoftLabels:
    """A teacher's answers for the batches of one training, view by view.

    `key` is what they depend on besides the view and the context's setting. Where nothing tells
    what the context's data are (`setting` is empty) no cache is used.
    """

    def __init__(
        self, ask: Ask, context: StepContext, key: Mapping[str, Any], showing: Showing
    ) -> None:
        self.ask, self.context, self.showing = ask, context, showing
        self.key = {**key, "setting": context.setting}
        self.shape = (showing.items, *context.task.output_shape())
        self.unsaved = "" if context.cache is None or not context.setting else self._too_much()
        """Why no cache is used, where there is one."""
        self.uses_cache = context.cache is not None and bool(context.setting) and not self.unsaved
        self.known: np.ndarray | None = None
        self.filling: Tensor | None = None
        self.view: int | None = None
        """Of what is known."""
        self.held: dict[int, np.ndarray] = {}
        """Views that no cache has taken and that are shown again."""
        self.odd: Tensor | None = None
        """Whether an answer was no number."""
        self.asked = self.reused = 0
        self.seconds = 0.0

    @property
    def bytes(self) -> int:
        """Of one view."""
        return 2 * math.prod(self.shape)

    def before(self, view: int) -> None:
        """Look up a view, or get ready to keep it."""
        self.filling = None
        if not self.showing.keep or (view == self.view and self.known is not None):
            return
        self.view, self.known = view, self.held.get(view)
        if self.known is None and self.uses_cache:
            assert self.context.cache is not None, "there is one"
            try:
                kept = self.context.cache.get(self._name(view))
                if kept is not None:
                    self.known = np.load(kept.folder / FILE, mmap_mode="r")
            except OSError as error:
                self._stop_keeping(f"the store could not be read ({error})")
        if self.known is not None or not (self.uses_cache or self._again()):
            return
        if self._fits():
            self.filling = torch.full(
                self.shape, torch.nan, dtype=torch.float16, device=self._place()
            )
        else:
            self.unsaved = (
                f"one view takes {size(self.bytes)}, more than a quarter of the memory that "
                f"is free; the teacher was asked again in every epoch"
            )

    def __call__(self, batch: Batch) -> Tensor:
        """Return the teacher's logits for a batch, (N, classes) in float32."""
        if self.known is not None:
            answers = torch.from_numpy(self.known[batch.index.numpy()])
            # A last batch of one item is not trained on: what is said of it was not asked.
            absent = answers.isnan().flatten(1).any(1)
            if bool(absent.any()):
                answers[absent] = self._asked(batch.of(absent)).to("cpu", answers.dtype)
            self.reused += len(batch) - int(absent.sum())
            return answers.to(batch.inputs[0].device, non_blocking=True).float()
        answers = self._asked(batch)
        if self.filling is not None:
            place = self.filling.device
            self.filling[batch.index.to(place, non_blocking=True)] = answers.to(place)
        return answers.float()

    def after(self, view: int) -> None:
        """Keep a view that was filled."""
        if self.filling is None:
            return
        filled, self.filling = self.filling.cpu().numpy(), None
        if self.uses_cache:
            assert self.context.cache is not None, "there is one"

            def fill(folder: Path) -> Mapping[str, Any]:
                np.save(folder / FILE, filled)
                return {"soft_labels": self.key, "view": view}

            try:
                self.context.cache.put(self._name(view), fill)
                return
            except OSError as error:
                self._stop_keeping(f"the disk did not take it ({error})")
        if self._again():
            self.held[view] = filled

    def _stop_keeping(self, why: str) -> None:
        self.unsaved, self.uses_cache = why, False

    def blames(self) -> str:
        """Say that the teacher is at fault, if it has given what is no number."""
        if self.odd is None or not bool(self.odd):
            return ""
        return "the teacher's answers are not numbers (NaN) from there on"

    def tell(self) -> None:
        """Write to the log how often the teacher was asked."""
        step_log = self.context.log
        told: dict[str, Any] = {"asked": self.asked, "reused": self.reused}
        if self.context.device.type == "cpu":  # a GPU answers while this process goes on
            told["seconds"] = round(self.seconds, 3)
        step_log.row("soft_labels", **told)
        if self.unsaved:
            step_log.note(f"what the teacher said was not kept for other steps: {self.unsaved}")

    def _asked(self, batch: Batch) -> Tensor:
        started = time.perf_counter()
        answers = self.ask(batch.inputs)
        # Later on, what is no number shows in the loss, and the epochs before it are kept. To look
        # at every answer on a GPU would wait for it.
        odd = answers.isnan().any()
        self.odd = odd if self.odd is None else self.odd | odd
        if not self.asked and bool(odd):
            raise StepFailed("the teacher's answers are not numbers (NaN): nothing can be learnt")
        self.seconds += time.perf_counter() - started
        self.asked += len(batch)
        return answers.clamp(-LARGEST, LARGEST).half() if self.showing.keep else answers

    def _again(self) -> bool:
        """Whether views are shown more than once."""
        return self.showing.views < self.showing.epochs

    def _place(self) -> torch.device:
        """Return where answers are gathered: to fetch each batch's from a GPU would stop it."""
        device = self.context.device
        roomy = device.type == "cuda" and self.bytes <= PLACE_SHARE * free_on(device)
        return device if roomy else torch.device("cpu")

    def _fits(self) -> bool:
        return (len(self.held) + 1) * self.bytes <= MEMORY_SHARE * free_memory()

    def _too_much(self) -> str:
        total = self.bytes * self.showing.views
        if not self.showing.keep or self.showing.given or total <= KEPT_BYTES:
            return ""
        return (
            f"the answers of {self.showing.views} epochs take {size(total)}. With views=K "
            f"there are K views, shown in turns, and they are kept"
        )

    def _name(self, view: int) -> str:
        return digest({"soft_labels": self.key, "view": view})
