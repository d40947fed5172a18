"""What a moment's try says of a model's seconds, by a clock that the model itself turns."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compress.model import Model
from compress.recommender import probe


@dataclass
class Clock:
    now: float = 0.0
    batches: list[int] = field(default_factory=list)


class Net(nn.Module):
    """Takes `first` seconds once, and for a batch a fixed part and some for each item."""

    def __init__(self, clock: Clock, first: float, fixed: float, each: float) -> None:
        super().__init__()
        self.clock, self.first, self.fixed, self.each = clock, first, fixed, each
        self.linear = nn.Linear(2, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.clock.now += self.first + self.fixed + self.each * len(inputs)
        self.first = 0.0
        self.clock.batches.append(len(inputs))
        return self.linear(inputs)


@pytest.mark.parametrize(
    ("first", "fixed", "each", "batches", "seconds"),
    [
        # What is prepared once is not taken for what an item takes.
        (100.0, 0.0, 0.001, {4: 2, 16: 3, 64: 3, 128: 3}, 0.001),
        # The larger the batch, the less for each.
        (0.0, 0.1, 0.0, {4: 3, 16: 3, 64: 3, 128: 3}, 0.1 / 128),
        # Neither does it follow from a small batch how long a large one takes.
        (0.0, 0.4, 1e-4, {4: 3, 16: 3, 64: 3, 128: 3}, 0.4 / 128 + 1e-4),
        # A batch of which one pass takes long is the last one.
        (0.0, 0.0, 0.1, {4: 3, 16: 1}, 0.1),
        # What takes long is tried twice, in the smallest batch alone.
        (0.0, 0.0, 2.0, {4: 2}, 2.0),
    ],
)
def test_seconds_of_an_item(
    monkeypatch: pytest.MonkeyPatch,
    first: float,
    fixed: float,
    each: float,
    batches: dict[int, int],
    seconds: float,
) -> None:
    clock = Clock()
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = Model(Net(clock, first, fixed, each), (torch.zeros(1, 2),))
    assert probe._seconds(model) == pytest.approx(seconds)
    assert {size: clock.batches.count(size) for size in clock.batches} == batches
