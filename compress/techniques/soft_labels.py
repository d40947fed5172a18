"""What a teacher says of every item, asked once and kept.

An item's augmented view is a function of its number, the view's number and the seed, so a view's
answers are right in whatever order the items come. They are kept as float16, by item number, under
a hash of everything that they depend on: other epochs, students, chains and runs use them, too.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress import draws, task
from compress.compressor import Workbench
from compress.files import digest, sha256
from compress.memory import free_memory
from compress.task import Tensors
from compress.training import Batch

FILE = "logits.npy"
KEPT_BYTES = 1e9
"""Of all views together: more is kept only if the number of views is given."""
MEMORY_SHARE = 0.25
LARGEST = 6e4
"""Beyond it, a logit does not fit into a float16."""

Ask = Callable[[Tensors], Tensor]
"""Inputs -> the teacher's logits in float32."""


class SoftLabels:
    """A teacher's answers for the batches of one training, view by view.

    `items` is the number of items in the split, `key` what the answers depend on besides the
    view. With `keep` False the teacher is asked each time.
    """

    def __init__(
        self, ask: Ask, bench: Workbench, key: Mapping[str, Any], items: int, keep: bool
    ) -> None:
        self.ask, self.bench, self.key = ask, bench, dict(key)
        self.shape = (items, *bench.task.output_shape())
        self.keep = keep
        self.known: np.ndarray | None = None
        self.filling: np.ndarray | None = None
        self.memory: dict[int, np.ndarray] = {}
        """Views that no shelf has taken."""
        self.asked = self.reused = 0
        self.seconds = 0.0
        """That the teacher took."""
        self.unkept = ""

    def before(self, view: int) -> None:
        """Look up a view, or get ready to keep it."""
        self.known = self.filling = None
        if not self.keep:
            return
        self.known = self.memory.get(view)
        if self.known is None and self.bench.shelf is not None:
            kept = self.bench.shelf.get(self._name(view))
            if kept is not None:
                self.known = np.load(kept.folder / FILE, mmap_mode="r")
        if self.known is None:
            self.filling = np.full(self.shape, np.nan, np.float16)

    def __call__(self, batch: Batch) -> Tensor:
        """Return the teacher's logits for a batch, (N, classes) in float32."""
        if self.known is not None:
            answers = torch.from_numpy(self.known[batch.index.numpy()])
            # A last batch of one item is not trained on: what is said of it was not asked.
            absent = answers.isnan().flatten(1).any(1)
            if bool(absent.any()):
                answers[absent] = self._asked(batch.of(absent)).to("cpu", answers.dtype)
            self.reused += len(batch) - int(absent.sum())
            return answers.to(batch.inputs[0].device).float()
        answers = self._asked(batch)
        if self.filling is not None:
            self.filling[batch.index.numpy()] = answers.cpu().numpy()
        return answers.float()

    def after(self, view: int) -> None:
        """Keep a view that was filled."""
        filled, self.filling, self.known = self.filling, None, None
        if filled is None:
            return
        shelf = self.bench.shelf
        if shelf is not None and not self.unkept:

            def fill(folder: Path) -> Mapping[str, Any]:
                np.save(folder / FILE, filled)
                return {"soft_labels": self.key, "view": view}

            try:
                shelf.put(self._name(view), fill)
                return
            except OSError as error:
                self.unkept = str(error)
        self.memory[view] = filled

    def _asked(self, batch: Batch) -> Tensor:
        """Ask the teacher; as float16 where answers are kept, so that reusing changes nothing."""
        started = time.perf_counter()
        answers = self.ask(batch.inputs)
        if answers.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        self.asked += len(batch)
        return answers.clamp(-LARGEST, LARGEST).half() if self.keep else answers

    def tell(self) -> None:
        """Write to the journal how often the teacher was asked."""
        journal = self.bench.journal
        told = {"asked": self.asked, "reused": self.reused, "seconds": round(self.seconds, 3)}
        journal.row("soft_labels", **told)
        if self.unkept:
            journal.note(
                f"what the teacher said could not be kept ({self.unkept}): it was held in memory "
                f"for this training only"
            )

    def _name(self, view: int) -> str:
        return digest({"soft_labels": self.key, "view": view})


def affordable(items: int, classes: int, views: int, given: bool) -> str:
    """Return '' if so many views can be kept, else why not."""
    each = 2 * items * classes
    free = free_memory()
    if free is not None and each > MEMORY_SHARE * free:
        return f"a view's answers take {each / 1e9:.1f} GB of memory"
    if not given and each * views > KEPT_BYTES:
        return (
            f"the answers of {views} epochs take {each * views / 1e9:.1f} GB: views=K shows and "
            f"keeps K augmented views in turns"
        )
    return ""


def made_by() -> dict[str, str]:
    """Return what else decides how a view looks and what a teacher says: our code, torch."""
    sources = [Path(str(module.__file__)).read_bytes() for module in (draws, task)]
    return {
        "augmentation": sha256(b"\0".join(sources)),
        "torch": importlib.metadata.version("torch"),
    }
