"""A teacher's answers for every item, computed once and kept.

An item's augmented view is a function of its number, the view's number and the seed, so the answers
for a view are right in whatever order the items come. They are kept as float16, by item number,
under a hash of what they depend on: other epochs, students, chains and runs use them, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.context import CacheEntry, StepContext
from compress.errors import StepFailed
from compress.ranks import ranks
from compress.system.amounts import size
from compress.system.files import digest
from compress.system.memory import free_memory
from compress.training import Batch
from compress.training.batch_loader import free_on

FILE = "logits.npy"
KEPT_BYTES = 1e9
"""Of all views together: more is kept only if the number of views is given."""
MEMORY_SHARE = 0.25
"""The share of free memory that the views held there may take."""
GPU_SHARE = 0.02
"""The share of a GPU's free memory that one view may take there, beside the training."""
LARGEST = 6e4
"""Beyond it, a logit does not fit into a float16."""

Ask = Callable[[Batch], Tensor]
"""Items -> the teacher's logits in float32."""


class SoftLabels:
    """A teacher's answers for the batches of one training, view by view.

    `key` is what they depend on besides the view and the context's setting; where nothing
    identifies the context's data (`setting` is empty) no cache is used. `views` of each of `items`
    are shown in turns, an epoch each. With `keep`, answers are rounded to float16, so that reusing
    them changes nothing; `limited` says that more than KEPT_BYTES are not kept.
    """

    def __init__(
        self,
        ask: Ask,
        context: StepContext,
        key: Mapping[str, Any],
        *,
        items: int,
        views: int,
        epochs: int,
        keep: bool,
        limited: bool,
    ) -> None:
        self.ask, self.context, self.keep = ask, context, keep
        self.key = {**key, "setting": context.setting}
        self.shape = (items, *context.task.output_shape())
        self.view_bytes = 2 * math.prod(self.shape)
        self.views_repeat = views < epochs
        self.asking_epochs = min(views, epochs) if keep else epochs
        """In which answers are asked for, at most."""
        self.cache = context.cache if context.setting else None
        self.not_kept = ""
        """Why no cache is used, where there is one."""
        total = self.view_bytes * views
        if self.cache is not None and keep and limited and total > KEPT_BYTES:
            self._stop_keeping(
                f"the answers of {views} epochs take {size(total)}. With views=K "
                f"there are K views, shown in turns, and they are kept"
            )
        self.known: np.ndarray | None = None
        """The answers for the current view, where they exist already."""
        self.filling: Tensor | None = None
        """The answers for the current view as they come, where they are to be kept."""
        self.view: int | None = None
        self.held: dict[int, np.ndarray] = {}
        """Views that no cache has taken and that are shown again."""
        self.has_nan: Tensor | None = None
        self.asked = self.reused = 0
        self.seconds = 0.0

    @property
    def asks(self) -> bool:
        """Whether the answers for the current view are not there yet."""
        return self.known is None

    def before(self, view: int) -> None:
        """Look up a view, or get ready to keep it."""
        self.filling = None
        if not self.keep or (view == self.view and self.known is not None):
            return
        self.view, self.known = view, self.held.get(view)
        if self.known is None and self.cache is not None:
            unread = ""
            try:
                # What the first of several processes has kept is there for all before it answers.
                if ranks().agreed(lambda: self._entry(view) is not None):
                    self.known = self._loaded(view)
            except OSError as error:
                unread = str(error) or "an error without a reason"
            if ranks().anywhere(bool(unread)):
                self.known = None
                self._stop_keeping(f"the store could not be read ({unread})")
        if self.known is not None or (self.cache is None and not self.views_repeat):
            return
        views = len(self.held) + 1
        room = MEMORY_SHARE / ranks().count
        if ranks().agreed(lambda: views * self.view_bytes <= room * free_memory()):
            self.filling = torch.full(
                self.shape, torch.nan, dtype=torch.float16, device=self._filling_device()
            )
        else:
            self.not_kept = (
                f"one view takes {size(self.view_bytes)}, more than a quarter of the memory that "
                f"is free; the teacher was asked again in every epoch"
            )

    def __call__(self, batch: Batch) -> Tensor:
        """Return the teacher's logits for a batch, (N, classes) in float32."""
        if self.known is not None:
            answers = torch.from_numpy(self.known[batch.index.numpy()])
            # A last batch of one item is not trained on: the teacher was not asked about it.
            absent = answers.isnan().flatten(1).any(1)
            if bool(absent.any()):
                answers[absent] = self._ask(batch.of(absent)).to("cpu", answers.dtype)
            self.reused += len(batch) - int(absent.sum())
            return answers.to(batch.inputs[0].device, non_blocking=True).float()
        answers = self._ask(batch)
        if self.filling is not None:
            device = self.filling.device
            self.filling[batch.index.to(device, non_blocking=True)] = answers.to(device)
        return answers.float()

    def after(self, view: int) -> None:
        """Keep a view that was filled."""
        if self.filling is None:
            return
        filled, self.filling = _merged(self.filling).cpu().numpy(), None

        def fill(folder: Path) -> Mapping[str, Any]:
            np.save(folder / FILE, filled)
            return {"soft_labels": self.key, "view": view}

        cache = self.cache
        if cache is not None:
            try:
                ranks().agreed(lambda: bool(cache.put(self._name(view), fill)))
                return
            except OSError as error:
                self._stop_keeping(f"the disk did not take it ({error})")
        if self.views_repeat:
            self.held[view] = filled

    def nan_reason(self) -> str:
        """Return that the teacher is at fault, if any of its answers was NaN; '' if none was."""
        if self.has_nan is None or not bool(self.has_nan):
            return ""
        return "the teacher's answers are not numbers (NaN) from there on"

    def write_log(self) -> None:
        """Write to the log for how many items the teacher was asked."""
        counts: dict[str, Any] = {"asked": self.asked, "reused": self.reused}
        if self.context.device.type == "cpu":  # a GPU answers while this process goes on
            counts["seconds"] = round(self.seconds, 3)
        self.context.log.row("soft_labels", **counts)
        if self.not_kept:
            self.context.log.note(
                f"the teacher's answers were not kept for other steps: {self.not_kept}"
            )

    def _ask(self, batch: Batch) -> Tensor:
        started = time.perf_counter()
        answers = self.ask(batch)
        # Later on, NaN shows in the loss, and the epochs before it are kept. To look at every
        # answer on a GPU would wait for it.
        has_nan = answers.isnan().any()
        self.has_nan = has_nan if self.has_nan is None else self.has_nan | has_nan
        if not self.asked and bool(has_nan):
            raise StepFailed("the teacher's answers are not numbers (NaN): nothing can be learnt")
        self.seconds += time.perf_counter() - started
        self.asked += len(batch)
        return answers.clamp(-LARGEST, LARGEST).half() if self.keep else answers

    def _filling_device(self) -> torch.device:
        """Return where answers are gathered: to fetch each batch's from a GPU would stop it."""
        device = self.context.device
        roomy = device.type == "cuda" and self.view_bytes <= GPU_SHARE * free_on(device)
        return device if roomy else torch.device("cpu")

    def _stop_keeping(self, reason: str) -> None:
        self.not_kept, self.cache = reason, None

    def _entry(self, view: int) -> CacheEntry | None:
        return None if self.cache is None else self.cache.get(self._name(view))

    def _loaded(self, view: int) -> np.ndarray:
        """Return a view's answers. Raises OSError if the store has lost them."""
        if (entry := self._entry(view)) is None:
            raise OSError("it has lost the answers")
        loaded: np.ndarray = np.load(entry.folder / FILE, mmap_mode="r")
        return loaded

    def _name(self, view: int) -> str:
        return digest({"soft_labels": self.key, "view": view})


def _merged(filled: Tensor) -> Tensor:
    """Return the answers that this process and others have filled in, NaN where none has."""
    if ranks().count == 1:
        return filled
    known = filled.float().nan_to_num(nan=-torch.inf)
    ranks().most(known)
    return known.where(known.isfinite(), torch.nan).to(filled.dtype)
