"""Batches for training: shuffled, read and augmented ahead where that takes time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from compress.ranks import ranks
from compress.stateless_rng import StatelessRNG, seed_of
from compress.system.memory import free_memory
from compress.system.progress import stage
from compress.tasks.base import Split, Subset, Task, Tensors, TensorSplit

CHUNK = 1024
READERS = min(4, os.cpu_count() or 1)
"""Batches that are read from the disk, or augmented item by item, at the same time."""
MEMORY_SHARE = 0.25
"""The share of free memory that a split's raw items may take."""


_Raw = list[tuple[Tensors, Tensor]]
"""Raw items and targets, as `Split.fetch` returns them; where items are mixed, two of them."""


@dataclass(frozen=True)
class Batch:
    """Some items, as a loss sees them.

    `index` (int64, shape (N,)) are their numbers in the split and `view` is the number of the
    augmented view that each shows: the same number and view give the same inputs. `targets` are
    those of the split, or probabilities where the task mixes items. `progress` is the fraction
    of the training that is done.
    """

    index: Tensor
    inputs: Tensors
    targets: Tensor
    view: int = 0
    progress: float = 0.0
    whole: int = 0
    """The items of the whole batch, of which another process may have the others."""
    seen: tuple[Tensors, ...] = ()
    """The same views of the same items as other models' inputs, where readers of them were given
    to the loader; `()` elsewhere."""

    def __len__(self) -> int:
        return len(self.index)

    def of(self, items: slice | Tensor) -> Batch:
        """Return some of the items: a slice, or those that are true in a tensor of the length."""
        on_device = items if isinstance(items, slice) else items.to(self.targets.device)
        return replace(
            self,
            index=self.index[items],
            inputs=tuple(tensor[on_device] for tensor in self.inputs),
            targets=self.targets[on_device],
            seen=tuple(tuple(tensor[on_device] for tensor in one) for one in self.seen),
        )


class Reader:
    """The items of a split as a model's inputs in training: by their numbers, view and seed."""

    fetching: ClassVar[threading.Lock] = threading.Lock()
    """Whoever wrote a split need not have thought of threads, nor of others of the same files."""

    def __init__(self, split: Split, task: Task, device: torch.device, seed: int) -> None:
        self.split, self.task, self.device, self.seed = split, task, device, seed
        self.held = task.ragged

    def hold(self) -> None:
        """Hold all raw items in memory from now on, if they easily fit."""
        if not self.held:
            # Raw items are augmented on the CPU, whatever trains on them.
            place = torch.device("cpu") if self.task.augments_raw else self.device
            self.split, self.held = resident(self.split, place), True

    @property
    def takes_time(self) -> bool:
        """Whether items are read, or augmented one by one, so that it pays to do it ahead."""
        return not in_memory(self.split) or self.task.augments_raw

    def inputs(self, index: Tensor, view: int) -> Tensors:
        """Return what the model sees of some items."""
        return self.made(index, view, self.read(index, view))[0]

    def read(self, index: Tensor, view: int) -> _Raw:
        """Fetch items, and those that they are mixed with; augment them if raw."""
        rng = StatelessRNG(index, view, self.seed)
        wanted = [rng]
        if self.task.mixes:
            wanted.append(rng.of(rng.below("partner", len(self.split))))
        with self.fetching:
            fetched = [self.split.fetch(one.items) for one in wanted]
        if not self.task.augments_raw:
            return fetched
        pairs = zip(fetched, wanted, strict=True)
        return [(self.task.augment_raw(raw, one), targets) for (raw, targets), one in pairs]

    def made(self, index: Tensor, view: int, raw: _Raw) -> tuple[Tensors, Tensor]:
        """Return the inputs and targets of items that were read."""
        rng = StatelessRNG(index, view, self.seed)
        inputs, targets = self._prepared(raw[0], rng)
        if self.task.mixes:
            others = rng.of(rng.below("partner", len(self.split)))
            inputs, targets = self.task.mix((inputs, targets), self._prepared(raw[1], others), rng)
        return inputs, targets

    def _prepared(
        self, fetched: tuple[Tensors, Tensor], rng: StatelessRNG
    ) -> tuple[Tensors, Tensor]:
        raw, targets = fetched
        return self.task.prepare(raw, self.device, rng), targets.to(self.device)


class BatchLoader:
    """The batches of a split, epoch by epoch; the order depends on seed and epoch alone."""

    def __init__(
        self, split: Split, task: Task, device: torch.device, seed: int, batch_size: int
    ) -> None:
        self.own = Reader(split, task, device, seed)
        self.own.hold()
        self.seed, self.batch_size = seed, batch_size

    @property
    def split(self) -> Split:
        return self.own.split

    def __len__(self) -> int:
        """The number of batches that hold at least `least` items."""
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest >= self.least)

    @property
    def least(self) -> int:
        """Two, of which batch norm has a variance; and one for every process."""
        return max(2, ranks().count)

    def epoch(self, number: int, view: int, others: Sequence[Reader] = ()) -> Iterator[Batch]:
        """Yield the batches of an epoch, the items in the augmented view of that number.

        They bring along what `others` make of the same items.
        What takes its time (reading items that are not in memory, augmenting raw ones) is done
        while the batches before them are trained on, in several threads. Which thread does what
        changes nothing: draws depend on an item, a view and the seed alone.
        """
        order = torch.Generator().manual_seed(seed_of("order", self.seed, number))
        whole = torch.randperm(len(self.split), generator=order).split(self.batch_size)
        indexes = [index for index in whole if len(index) >= self.least]
        readers = [self.own, *others]
        # The others' items may lie on a GPU, to which this thread alone should talk.
        ahead = [reader for reader in readers if reader.takes_time]
        if not ahead:
            for index in indexes:
                yield self.batch(index, view, others)
            return
        with ThreadPoolExecutor(READERS, thread_name_prefix="reading") as pool:
            waiting: deque[Future[list[_Raw]]] = deque()
            try:
                for number, index in enumerate(indexes):
                    for later in indexes[number + len(waiting) : number + 1 + READERS]:
                        waiting.append(pool.submit(_read, later, view, ahead))
                    raw = dict(zip(ahead, waiting.popleft().result(), strict=True))
                    here = [reader for reader in readers if reader not in raw]
                    raw |= zip(here, _read(index, view, here), strict=True)
                    yield _batch(index, view, readers, [raw[reader] for reader in readers])
            finally:
                for one in waiting:
                    one.cancel()

    def batch(self, index: Tensor, view: int, others: Sequence[Reader] = ()) -> Batch:
        readers = [self.own, *others]
        return _batch(index, view, readers, _read(index, view, readers))


def _read(index: Tensor, view: int, readers: Sequence[Reader]) -> list[_Raw]:
    """Have a batch's items read. Of several processes each has a part of them."""
    mine = ranks().part(index)
    return [reader.read(mine, view) for reader in readers]


def _batch(index: Tensor, view: int, readers: Sequence[Reader], raw: Sequence[_Raw]) -> Batch:
    mine = ranks().part(index)
    made = [reader.made(mine, view, one) for reader, one in zip(readers, raw, strict=True)]
    (inputs, targets), *others = made
    seen = tuple(inputs for inputs, _ in others)
    return Batch(mine, inputs, targets, view, whole=len(index), seen=seen)


def resident(split: Split, device: torch.device) -> Split:
    """Return a split with all its raw items in memory, on the device, if they easily fit.

    Decoding image files and resizing is then done once and not in every epoch, and a GPU need
    not wait for copies.
    """
    count = len(split)
    if count == 0 or (device.type == "cpu" and in_memory(split)):
        return split
    raw, targets = split.fetch(torch.zeros(1, dtype=torch.int64))
    each = sum(tensor.nbytes for tensor in (*raw, targets))
    if each * count > MEMORY_SHARE * free_on(device):
        return split
    parts = []
    with stage(f"reading {count:,} items into memory", count, "items") as read:
        for index in torch.arange(count).split(CHUNK):
            parts.append(split.fetch(index))
            read.advance(len(index))
    inputs = tuple(
        torch.cat([raw[number] for raw, _ in parts]).to(device) for number in range(len(raw))
    )
    return TensorSplit(inputs, torch.cat([targets for _, targets in parts]).to(device))


def in_memory(split: Split) -> bool:
    """Whether all of a split's items are tensors in memory."""
    return in_memory(split.whole) if isinstance(split, Subset) else isinstance(split, TensorSplit)


def free_on(device: torch.device) -> float:
    """Return the bytes of memory that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(free_memory()) / ranks().count
