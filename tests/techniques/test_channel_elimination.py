"""Losses in turn: against refitting by least squares what is left after every removal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.techniques import channel_elimination
from compress.techniques.channel_elimination import Reader, losses_in_turn


def reader(seed: int, channels: int, size: int, outputs: int = 3) -> Reader:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(80, channels * size, generator=generator, dtype=torch.float64)
    rows = rows @ torch.randn(*[channels * size] * 2, generator=generator, dtype=torch.float64)
    moments = rows.T @ rows / len(rows) + 0.01 * torch.eye(channels * size, dtype=torch.float64)
    weight = torch.randn(outputs, channels * size, generator=generator, dtype=torch.float64)
    places = [torch.arange(one * size, (one + 1) * size) for one in range(channels)]
    return Reader(weight, moments, places)


def lost(one: Reader, gone: list[int]) -> float:
    """Return the least loss without some channels, as a share: by a solve, nothing in turn."""
    weight, moments = one.weight.numpy(), one.moments.numpy()
    index = [int(place) for channel in gone for place in one.places[channel]]
    left = np.setdiff1d(np.arange(len(moments)), index)
    energy = np.trace(weight @ moments @ weight.T)
    if not len(left):
        return 1.0
    wanted = weight @ moments[:, left]
    best = np.linalg.solve(moments[np.ix_(left, left)], wanted.T).T
    return float((energy - np.trace(best @ wanted.T)) / energy)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(2, 6), st.sampled_from([1, 3]), st.integers(1, 2))
def test_channels_go_by_the_least_loss_of_all_readers(
    seed: int, channels: int, size: int, count: int
) -> None:
    readers = [reader(seed + number, channels, size) for number in range(count)]
    gone: list[int] = []
    order, worth = [], []
    for _ in range(channels):
        before = sum(lost(one, gone) for one in readers)
        costs = {
            c: sum(lost(one, [*gone, c]) for one in readers) - before
            for c in range(channels)
            if c not in gone
        }
        order.append(min(costs, key=costs.__getitem__))
        worth.append(costs[order[-1]])
        gone.append(order[-1])
    found = losses_in_turn(readers, channels).numpy()
    assert np.argsort(found).tolist() == order
    np.testing.assert_allclose(found[order], np.maximum.accumulate(worth), rtol=1e-6, atol=1e-9)


def test_a_copy_of_a_channel_costs_nothing_and_then_the_other_costs_much() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    rows = torch.cat([rows, rows[:, :1]], 1)
    moments = rows.T @ rows / 400 + 1e-6 * torch.eye(4, dtype=torch.float64)
    weight = torch.ones(2, 4, dtype=torch.float64)
    places = [torch.tensor([one]) for one in range(4)]
    worth = losses_in_turn([Reader(weight, moments, places)], 4)
    cheap, dear = sorted([float(worth[0]), float(worth[3])])
    assert cheap < 1e-5
    assert dear > 0.3


def test_a_reader_counts_for_the_channels_that_it_has() -> None:
    """One reads the first two, the other the last two, the second as two of its inputs."""
    first, second = reader(0, 2, 1), reader(1, 3, 1)
    none = torch.zeros(0, dtype=torch.int64)
    some = [
        Reader(first.weight, first.moments, [*first.places, none]),
        Reader(second.weight, second.moments, [none, torch.tensor([0, 2]), torch.tensor([1])]),
    ]
    found = losses_in_turn(some, 3)
    alone = [lost(some[0], [0]), lost(some[0], [1]) + lost(some[1], [1]), lost(some[1], [2])]
    assert int(found.argmin()) == int(np.argmin(alone))
    assert float(found.min()) == pytest.approx(min(alone), rel=1e-9)


def test_of_many_channels_several_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = reader(3, 40, 1)
    slow = losses_in_turn([one], 40)
    monkeypatch.setattr(channel_elimination, "ROUNDS", 10)
    fast = losses_in_turn([one], 40)
    assert len(fast.unique()) == 40, "each has a place of its own"
    half = [set(found.argsort()[:20].tolist()) for found in (slow, fast)]
    assert lost(one, sorted(half[1])) < 1.5 * lost(one, sorted(half[0]))
