"""Batches: every item once an epoch, in an order of seed and epoch, kept in memory."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch
from bench_fixtures import small_digits
from hypothesis import given
from hypothesis import strategies as st

from compress.tasks.base import Split, Subset, Tensors
from compress.training import batch_loader as feed_module
from compress.training.batch_loader import BatchLoader, resident

CPU = torch.device("cpu")


class Slow(Split):
    """A split that counts how often an item is decoded."""

    def __init__(self, whole: Split) -> None:
        self.whole = whole
        self.fetched = 0

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        self.fetched += len(index)
        return self.whole.fetch(index)


DATA = small_digits()


@given(st.integers(2, 200), st.integers(2, 70), st.integers(0, 3))
def test_an_epoch_shows_every_item_once(items: int, batch_size: int, number: int) -> None:
    loader = BatchLoader(Subset(DATA.train, torch.arange(items)), DATA.task, CPU, 5, batch_size)
    batches = list(loader.epoch(number, 0))
    assert len(batches) == len(loader)
    seen = torch.cat([batch.index for batch in batches])
    # A rest of one item is left out: batch norm has no variance over it.
    assert len(seen) == items - (items % batch_size == 1)
    assert len(seen.unique()) == len(seen)
    for batch in batches:
        raw, targets = DATA.train.fetch(batch.index)
        assert torch.equal(batch.targets, targets)
        assert torch.equal(batch.inputs[0], DATA.task.prepare(raw, CPU)[0])


def test_the_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, number: int) -> list[int]:
        loader = BatchLoader(DATA.train, DATA.task, CPU, seed, 64)
        return torch.cat([batch.index for batch in loader.epoch(number, 0)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_a_view_is_the_same_in_every_epoch_and_batch() -> None:
    task = replace(DATA.task, augment="flip-crop-mixup")
    pictures = []
    for number, size in ((0, 64), (1, 50)):
        loader = BatchLoader(DATA.train, task, CPU, 3, size)
        found = {}
        for batch in loader.epoch(number, 7):
            for i, item in enumerate(batch.index.tolist()):
                found[item] = (batch.inputs[0][i], batch.targets[i])
        pictures.append(found)
    first, second = pictures
    assert first.keys() == second.keys()
    for item in first:
        assert torch.equal(first[item][0], second[item][0])
        assert torch.equal(first[item][1], second[item][1])
    other = BatchLoader(DATA.train, task, CPU, 3, 64).batch(torch.arange(5), 8)
    assert not torch.equal(other.inputs[0][0], first[0][0])


def test_a_part_of_a_batch() -> None:
    batch = BatchLoader(DATA.train, DATA.task, CPU, 0, 64).batch(torch.arange(10), 4)
    part = batch.of(slice(3, 7))
    assert len(part) == 4
    assert part.index.tolist() == [3, 4, 5, 6]
    assert torch.equal(part.inputs[0], batch.inputs[0][3:7])
    assert torch.equal(part.targets, batch.targets[3:7])
    assert part.view == 4


def test_items_are_decoded_once_if_they_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(DATA.train)
    loader = BatchLoader(slow, DATA.task, CPU, 0, 64)
    decoded = slow.fetched
    for number in range(3):
        assert sum(len(batch) for batch in loader.epoch(number, 0)) == len(slow)
    assert slow.fetched == decoded == len(slow) + 1
    monkeypatch.setattr(feed_module, "free_memory", lambda: 1000)
    assert resident(slow, CPU) is slow


def test_what_is_in_memory_already_is_not_copied() -> None:
    some = Subset(DATA.train, torch.arange(9))
    assert resident(some, CPU) is some


class OnDisk(Split):
    """A split that is not in memory, and tells when what was read; an item may be unreadable."""

    def __init__(self, whole: Split, broken: int = -1) -> None:
        self.whole, self.broken = whole, broken
        self.read: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.whole)

    def fetch(self, index: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        self.read.append(index.tolist())
        if self.broken in index:
            raise OSError("the disk is gone")
        return self.whole.fetch(index)


@pytest.fixture
def kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "resident", lambda split, device: split)


@pytest.mark.usefixtures("kept_on_disk")
@pytest.mark.parametrize("readers", [1, 4])
@pytest.mark.parametrize("augment", ["none", "flip-crop-mixup", "flip-resizedcrop-jitter-mixup"])
def test_what_is_read_ahead_is_what_would_be_read_in_turn(
    augment: str, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "READERS", readers)
    task = replace(DATA.task, augment=augment)
    there = BatchLoader(DATA.train, task, CPU, 3, 50)
    ahead = BatchLoader(OnDisk(DATA.train), task, CPU, 3, 50)
    for number in range(2):
        pairs = list(zip(there.epoch(number, number), ahead.epoch(number, number), strict=True))
        assert len(pairs) == 7
        for one, other in pairs:
            one = there.batch(one.index, number) if task.augments_raw else one
            assert torch.equal(one.index, other.index)
            assert torch.equal(one.inputs[0], other.inputs[0])
            assert torch.equal(one.targets, other.targets)


@pytest.mark.usefixtures("kept_on_disk")
def test_the_next_batches_are_read_while_one_is_used() -> None:
    split = OnDisk(DATA.train)
    epoch = BatchLoader(split, DATA.task, CPU, 3, 50).epoch(0, 0)
    batch = next(epoch)
    until = time.monotonic() + 10
    while len(split.read) < 1 + feed_module.READERS and time.monotonic() < until:
        time.sleep(0.01)
    assert len(split.read) == 1 + feed_module.READERS, "not more, either: memory is not for ever"
    assert split.read[0] == batch.index.tolist()
    epoch.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("reading")]


@pytest.mark.usefixtures("kept_on_disk")
def test_what_cannot_be_read_is_an_error_when_its_turn_comes() -> None:
    fourth = list(BatchLoader(OnDisk(DATA.train), DATA.task, CPU, 3, 50).epoch(0, 0))[3]
    split = OnDisk(DATA.train, broken=int(fourth.index[0]))
    epoch = BatchLoader(split, DATA.task, CPU, 3, 50).epoch(0, 0)
    assert len(list(itertools.islice(epoch, 3))) == 3
    with pytest.raises(OSError, match="the disk is gone"):
        next(epoch)
